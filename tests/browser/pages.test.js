// Run by tests/browser/test_pages.py. ORIGIN: a gateway in development mode; CHROMIUM: the path of the browser; PYTHON: that
// of an interpreter with httpx.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

const require = createRequire(new URL("../javascript/package.json", import.meta.url));
const { chromium } = require("playwright-core");
const axe = require("axe-core");
const { ORIGIN, CHROMIUM, PYTHON } = process.env;

const TIMEOUT_MS = 30_000;
const FLAGS =
  "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync";

let browser;
let context;
let seen;
/** Pages of earlier tests. A page that is used again has compiled the scripts: it opens in a quarter of the time. */
const idle = [];
const inUse = [];

before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS.split(" ") });
  context = await browser.newContext({ permissions: ["clipboard-read", "clipboard-write"] });
  context.setDefaultTimeout(TIMEOUT_MS);
  context.on("request", (request) => seen.urls.push(request.url()));
  context.on("weberror", (error) => seen.errors.push(error.error().message));
  context.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
  // Violations of the policy by workers and styles are reported to the page too.
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`violates ${event.violatedDirective}`));
  });
});

after(() => browser.close());

beforeEach(() => {
  seen = { urls: [], errors: [] };
});

// After each test: no request to another host, no violation of the policy, nothing stored in the browser.
afterEach(async () => {
  const left = [];
  for (const page of inUse.splice(0)) {
    left.push(await page.evaluate(async () => [
      { ...localStorage }, { ...sessionStorage }, document.cookie, (await indexedDB.databases()).length, location.href,
    ]));
    await release(page);
  }
  const toOtherHosts = seen.urls.filter((url) => !new RegExp(`^(${ORIGIN}/|data:|blob:${ORIGIN}/)`).test(url));
  assert.deepEqual(toOtherHosts, []);
  assert.deepEqual(seen.urls.filter((url) => /dev\b|token|bearer/i.test(url) && !url.includes("/assets/")), []);
  assert.deepEqual(seen.errors, []);
  for (const [local, session, cookies, databases, address] of left) {
    assert.deepEqual([local, session, cookies, databases], [{}, {}, "", 0]);
    assert.ok([`${ORIGIN}/`, `${ORIGIN}/graphql`, `${ORIGIN}/docs`].includes(address), address);
  }
});

async function open(path, size = { width: 1280, height: 720 }, colorScheme = "light") {
  const page = idle.pop() ?? await context.newPage();
  inUse.push(page);
  await page.bringToFront();
  await page.setViewportSize(size);
  await page.emulateMedia({ colorScheme });
  page.on("websocket", (socket) => seen.urls.push(socket.url().replace(/^ws/, "http")));
  await page.goto(ORIGIN + path);
  return page;
}

/** Leave the document, and with it all that the test has entered, and keep the page for later. */
async function release(page) {
  page.removeAllListeners("dialog");
  page.removeAllListeners("websocket");
  page.once("dialog", (dialog) => dialog.accept());
  await page.goto("about:blank");
  page.removeAllListeners("dialog");
  idle.push(page);
}

async function authorize(page, token) {
  await page.getByRole("button", { name: `${token} brand` }).click();
  await page.locator("#signed-in", { hasText: token }).waitFor();
}

async function openExplorer({ token = "dev", size } = {}) {
  const page = await open("/graphql", size);
  await page.locator(".graphiql-query-editor .view-line").first().waitFor();
  if (token) await authorize(page, token);
  return page;
}

async function openRest({ token = "dev", size } = {}) {
  const page = await open("/docs", size);
  await page.locator("#recordEncounter").waitFor();
  if (token) await authorize(page, token);
  return page;
}

/** Send the form of a call on the REST page, and return the section when its answer has a status. */
async function send(page, call, status) {
  const section = page.locator(`#${call}`);
  await section.getByRole("button", { name: "Send", exact: true }).click();
  await section.locator(".answer .status b", { hasText: String(status) }).waitFor();
  return section;
}

const answerOf = (section) => section.locator(".answer pre").innerText();

/** Return the sample of a call in a language. */
async function sample(section, language) {
  await section.getByRole("tab", { name: language, exact: true }).click();
  return section.locator(".sample pre").innerText();
}

/** Return the text of the response editor. */
const shown = (page) =>
  page.locator(".result-window .view-lines").evaluate((lines) =>
    [...lines.querySelectorAll(".view-line")]
      .sort((one, other) => Number.parseFloat(one.style.top) - Number.parseFloat(other.style.top))
      .map((line) => line.textContent.replaceAll("\u00a0", " "))
      .join("\n"),
  );

async function waitFor(condition, message = () => `not true: ${condition}`) {
  const deadline = Date.now() + TIMEOUT_MS;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, message());
    await sleep(50);
  }
}

async function waitForAnswer(page, pattern) {
  let text;
  await waitFor(async () => pattern.test(text = await shown(page)), () => `not answered: ${text}`);
  return text;
}

const run = (page) => page.locator(".graphiql-execute-button").click();

async function type(page, editor, text) {
  await page.locator(`.${editor} .monaco-editor`).click();
  await page.keyboard.press("ControlOrMeta+A");
  await page.evaluate((copied) => navigator.clipboard.writeText(copied), text);
  await page.keyboard.press("ControlOrMeta+V");
}

async function copyAsRest(page) {
  await page.getByRole("button", { name: "Copy as REST call" }).click();
  await page.getByRole("status").filter({ hasText: "Copied" }).waitFor();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  await page.getByRole("dialog").getByRole("button", { name: "Close" }).click();
  return copied;
}

async function pasteRest(page, text) {
  await page.getByRole("button", { name: "Paste REST call" }).click();
  await page.getByLabel("REST call", { exact: true }).fill(text);
  await page.getByRole("button", { name: "Open in a new tab" }).click();
}

const sh = (command) => JSON.parse(execFileSync("sh", ["-ec", command], { env: { ...process.env, TOKEN: "dev" }, stdio: ["ignore", "pipe", "ignore"] }));

test("without a token the explorer requests one and shows no error", async () => {
  const page = await openExplorer({ token: null });

  assert.ok(await page.locator("#authorize").isVisible());
  assert.equal(await shown(page).catch(() => ""), "");

  await run(page);
  await waitForAnswer(page, /Authorize first/);
});

test("an invalid token is refused with a message and not stored", async () => {
  const page = await openExplorer({ token: null });

  await page.getByLabel("Bearer token").fill("nonsense");
  await page.getByLabel("Bearer token").press("Enter");

  await page.locator("#authorize .said", { hasText: /token/i }).waitFor();
  assert.ok(await page.locator("#authorize").isVisible());
  seen.errors = seen.errors.filter((text) => !text.includes("401"));
});

test("the explorer records an encounter once under its key and reads it", async () => {
  const page = await openExplorer();

  await run(page);
  const first = await waitForAnswer(page, /"replayed": false/);
  await run(page);
  const again = await waitForAnswer(page, /"replayed": true/);
  const id = /"id": "([0-9a-f-]{36})"/;
  assert.equal(again.match(id)[1], first.match(id)[1]);

  await page.getByRole("tab", { name: "2 ReadBack" }).click();
  await run(page);
  const read = await waitForAnswer(page, /"encounterType": "TELEHEALTH"/);
  assert.equal(read.match(id)[1], first.match(id)[1]);
});

test("the recorded encounter can be started and completed without copying its id", async () => {
  const page = await openExplorer();
  await run(page);
  const id = (await waitForAnswer(page, /"replayed": (true|false)/)).match(/"id": "([0-9a-f-]{36})"/)[1];

  await page.getByRole("tab", { name: "5 StartEncounter" }).click();
  // The button offers the choice a moment later.
  await page.locator(".graphiql-execute-button[aria-haspopup=menu]").waitFor();
  await run(page);
  await page.getByRole("menuitem", { name: "StartEncounter", exact: true }).click();
  const started = await waitForAnswer(page, /"status": "IN_PROGRESS"/);
  await run(page);
  await page.getByRole("menuitem", { name: "CompleteEncounter" }).click();
  const completed = await waitForAnswer(page, /"status": "COMPLETED"/);

  assert.ok(started.includes(id) && completed.includes(id));
});

test("the schema is shown after a token was entered", async () => {
  const page = await openExplorer();

  await page.getByRole("button", { name: "Show Documentation Explorer" }).click();

  await page.locator(".graphiql-doc-explorer-content", { hasText: "Mutation" }).waitFor();
});

test("the token is gone after `Forget token` and after a reload", async () => {
  const page = await openExplorer();

  await page.getByRole("button", { name: "Forget token" }).click();
  await run(page);
  await waitForAnswer(page, /Authorize first/);
  await page.getByRole("button", { name: "dev brand" }).click();
  await page.locator("#signed-in", { hasText: "dev" }).waitFor();
  await page.reload();

  await page.locator("#authorize").waitFor();
});

test("`Copy as REST call` gives a shell command that records the encounter of the tab", async () => {
  const page = await openExplorer();
  await run(page);
  const answer = await waitForAnswer(page, /"replayed": false/);

  const copied = await copyAsRest(page);

  assert.match(copied, /-H "Authorization: Bearer \$TOKEN"/);
  assert.equal(sh(copied).id, answer.match(/"id": "([0-9a-f-]{36})"/)[1]);
});

test("a pasted REST call becomes a tab and is copied unchanged", async () => {
  const page = await openExplorer();
  const notes = String.raw`It's "fine" \ 5 > 3`;
  const command = [
    `curl ${ORIGIN}/v1/patients/demo-patient/encounters`,
    `-H "Authorization: Bearer $TOKEN"`,
    `-H 'Content-Type: application/json'`,
    `-H 'Idempotency-Key: ${crypto.randomUUID()}'`,
    `-d '${JSON.stringify({ brand_id: "loop", encounter_type: "lab", notes }).replaceAll("'", String.raw`'\''`)}'`,
  ].join(" \\\n  ");

  await pasteRest(page, command);

  await run(page);
  const answer = await waitForAnswer(page, /"replayed": false/);
  assert.equal(await copyAsRest(page), command);
  const recorded = sh(command);
  assert.equal(recorded.id, answer.match(/"id": "([0-9a-f-]{36})"/)[1]);
  assert.equal(recorded.notes, notes);
});

test("a call that cannot be converted is refused with a message, in both directions", async () => {
  const page = await openExplorer();
  await page.getByRole("tab", { name: "3 LatestEncounters" }).click();

  await page.getByRole("button", { name: "Copy as REST call" }).click();
  await page.getByRole("status").filter({ hasText: "no recordEncounter" }).waitFor();
  await page.getByRole("dialog").getByRole("button", { name: "Close" }).click();
  await pasteRest(page, "curl http://elsewhere/v2");
  await page.getByRole("status").filter({ hasText: "The path" }).waitFor();
});

test("the REST page records, replays and reads an encounter", async () => {
  const page = await openRest();
  const record = page.locator("#recordEncounter");
  await record.getByRole("button", { name: "New key" }).click();
  const metadata = '{"price": 1.10, "number": 12345678901234567890}';
  await record.locator("textarea").fill(`{"brand_id": "loop", "encounter_type": "lab", "metadata": ${metadata}}`);

  await send(page, "recordEncounter", 201);
  const first = await answerOf(record);
  assert.match(first, /"price": 1\.10\b/);
  assert.match(first, /"number": 12345678901234567890\b/);
  await send(page, "recordEncounter", 201);
  await record.locator(".status", { hasText: "replayed" }).waitFor();
  assert.equal(await answerOf(record), first);

  const read = await send(page, "getEncounter", 200);
  assert.match(await answerOf(read), /"price": 1\.10\b/);
  assert.deepEqual(JSON.parse(await answerOf(read)), JSON.parse(first));
  await read.getByRole("tab", { name: "Headers" }).click();
  assert.match(await answerOf(read), /^etag: "1"$/m);
  await read.getByLabel("If-None-Match").fill('"1"');
  await send(page, "getEncounter", 304);
  const list = page.locator("#listEncounters");
  await list.getByLabel("limit").fill("1");
  await send(page, "listEncounters", 200);
  assert.equal((await answerOf(list)).match(/"id"/g).length, 1);
});

test("the REST page's code follows the form, and runs", async () => {
  const page = await openRest();
  const record = page.locator("#recordEncounter");
  await record.getByRole("button", { name: "New key" }).click();
  const key = await record.getByLabel("Idempotency-Key").inputValue();
  await record.locator("textarea").fill(JSON.stringify({
    brand_id: "loop", encounter_type: "lab", notes: String.raw`It's "fine" \ 5 > 3`, metadata: { yes: true, none: null, many: [1, 2.5] },
  }, null, 2));
  const env = { ...process.env, TOKEN: "dev" };
  const options = { env, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] };

  const recorded = sh(await sample(record, "curl"));
  const python = execFileSync(PYTHON, ["-c", await sample(record, "Python")], options);
  const typescript = execFileSync("node", ["--input-type=module", "-e", await sample(record, "TypeScript")], options);

  assert.equal(recorded.notes, String.raw`It's "fine" \ 5 > 3`);
  for (const printed of [python, typescript]) {
    assert.match(printed, /^201 /);
    assert.deepEqual(JSON.parse(printed.slice(4)), recorded);
  }
  for (const language of ["Java", "C#"]) {
    const code = await sample(record, language);
    for (const part of [key, `${ORIGIN}/v1/patients/demo-patient/encounters`, '"encounter_type": "lab"']) assert.ok(code.includes(part), code);
  }
  // Another call shows the same language.
  assert.match(await page.locator("#getEncounter .sample pre").innerText(), /HttpMethod\.Get/);
});

test("a number that a language would change is sent as text", async () => {
  const page = await openRest();
  const record = page.locator("#recordEncounter");
  await record.locator("textarea").fill('{"brand_id": "loop", "encounter_type": "lab", "metadata": {"price": 1.10}}');

  const printed = execFileSync(PYTHON, ["-c", await sample(record, "Python")], { env: { ...process.env, TOKEN: "dev" }, encoding: "utf8" });

  assert.match(printed, /"price": ?1\.10\}/);
});

test("code on the REST page has the token only if the user wants it", async () => {
  const page = await openRest();
  const record = page.locator("#recordEncounter");
  assert.match(await sample(record, "curl"), /"Authorization: Bearer \$TOKEN"/);

  await record.getByLabel(/The token is read/).check();

  assert.match(await sample(record, "curl"), /'Authorization: Bearer dev'/);
});

test("the REST page requests a token, and explains a refusal", async () => {
  const page = await openRest({ token: null });
  const record = page.locator("#recordEncounter");
  await record.getByRole("button", { name: "Send", exact: true }).click();
  await record.locator(".status", { hasText: "Authorize first" }).waitFor();
  await authorize(page, "dev");
  await record.locator("textarea").fill('{"brand_id": ');
  await record.locator(".fault", { hasText: "not JSON" }).waitFor();

  await send(page, "recordEncounter", 400);

  assert.match(await answerOf(record), /"error": "validation_error"/);
  assert.equal(await record.locator(".status a").evaluate((link) => link.href), `${ORIGIN}/problems/validation_error`);
  seen.errors = seen.errors.filter((text) => !text.includes("400"));
});

test("the REST page shows every parameter, member and status of the description", async () => {
  const page = await openRest({ token: null });
  const { paths, components } = await (await fetch(`${ORIGIN}/openapi.json`)).json();
  const statuses = new Set();
  for (const path of Object.values(paths)) {
    for (const { operationId, tags, parameters, responses } of Object.values(path)) {
      if (!tags?.includes("encounters")) continue;
      Object.keys(responses).forEach((status) => statuses.add(status));
      const shown = await page.locator(`#${operationId} .fields label`).allInnerTexts();
      assert.deepEqual(shown.sort(), [...path.parameters, ...parameters].map(({ name }) => name).sort());
    }
  }

  assert.deepEqual(await page.locator("#recordEncounter .scrolls th[scope=row] code").allInnerTexts(), Object.keys(components.schemas.RecordEncounter.properties));
  assert.deepEqual(await page.locator("#encounter th[scope=row] code").allInnerTexts(), Object.keys(components.schemas.Encounter.properties));
  assert.deepEqual(await page.locator(".statuses th[scope=row]").allInnerTexts(), [...statuses].sort());
  const cells = await page.locator(".statuses td").allInnerTexts();
  assert.deepEqual(cells.filter((text) => !text.trim()), []);
});

test("each call of the REST page needs less than two screens", async () => {
  const page = await openRest({ size: { width: 1280, height: 800 } });

  for (const call of await page.locator(".call:has(form)").all()) {
    const { height } = await call.boundingBox();
    assert.ok(height < 1600, `${await call.getAttribute("id")} is ${height} high`);
  }
});

test("the two calls of the start page work", async () => {
  const page = await open("/");
  const copy = async (name) => {
    await page.locator(`[data-copies=${name}]`).click();
    await page.locator(`[data-copies=${name}]`, { hasText: "Copied" }).waitFor();
    return page.evaluate(() => navigator.clipboard.readText());
  };
  assert.equal(sh(await copy("curl")).status, "scheduled");
  const mutation = await copy("mutation");

  await page.getByRole("link", { name: "Open the explorer" }).click();
  await page.locator(".graphiql-query-editor .view-line").first().waitFor();
  await page.getByRole("button", { name: "dev brand" }).click();
  await page.locator("#signed-in", { hasText: "dev" }).waitFor();
  await page.getByRole("button", { name: "New tab" }).click();
  await type(page, "graphiql-query-editor", mutation);
  await run(page);

  await waitForAnswer(page, /"__typename": "EncounterRecorded"/);
});

test("events of a subscription are appended, also those of another window", async () => {
  const [watching, recording] = [await openExplorer({ size: { width: 1280, height: 1600 } }), await openExplorer()];
  await watching.getByRole("tab", { name: "4 EncounterEvents" }).click();
  await run(watching);
  // Without a key, each run records another encounter.
  await pasteRest(recording, 'POST /v1/patients/demo-patient/encounters {"brand_id": "loop", "encounter_type": "lab"}');
  // Only the page in front is rendered.
  const record = async () => {
    await recording.bringToFront();
    const before = await shown(recording);
    await run(recording);
    await waitFor(async () => (await shown(recording)) !== before);
    await waitForAnswer(recording, /"replayed": false/);
    await watching.bringToFront();
  };

  // The start of a subscription is not visible, so record until its first event arrives.
  let events = "";
  await waitFor(async () => {
    await record();
    events = await shown(watching);
    return /"kind": "RECORDED"/.test(events);
  });

  assert.match(events, /"encounterType": "LAB"/);
  const first = events.match(/"cursor": "([^"]+)"/)[1];
  const before = events.match(/"kind": "RECORDED"/g).length;
  await record();
  const later = await waitForAnswer(watching, new RegExp(`("kind": "RECORDED"[^]*){${before + 1}}`));
  assert.ok(later.includes(first));
});

test("the first operation is allowed for each token, and edited variables are kept", async () => {
  const page = await openExplorer({ token: "dev-loopbio" });
  await run(page);
  await waitForAnswer(page, /"replayed": false/);
  await page.getByRole("tab", { name: "3 LatestEncounters" }).click();
  assert.match(await page.locator(".graphiql-editor-tool .view-lines").first().innerText(), /demo-patient-loopbio/);
  await type(page, "graphiql-editor-tool .graphiql-editor:not(.hidden)", '{"patientId": "mine"}');

  await page.getByRole("button", { name: "Forget token" }).click();
  await page.getByRole("button", { name: "dev brand" }).click();
  await page.locator("#signed-in", { hasText: "dev" }).waitFor();

  assert.match(await page.locator(".graphiql-editor-tool .view-lines").first().innerText(), /mine/);
});

test("the REST page records with the chosen token and presets no header", async () => {
  const page = await openRest({ token: null });
  const record = page.locator("#recordEncounter");
  for (const header of ["Idempotency-Key", "X-Request-Id", "X-Brand-Id"]) assert.equal(await record.getByLabel(header).inputValue(), "");

  await authorize(page, "dev-loopbio");
  await send(page, "recordEncounter", 201);

  assert.match(await answerOf(record), /"brand_id": "loopbio"/);
});

test("the tabs of the explorer have numbers, and the Delete key closes one", async () => {
  const page = await openExplorer();
  const tabs = page.getByRole("tab");
  const count = await tabs.count();
  await page.getByRole("button", { name: "New tab" }).click();
  await page.getByRole("tab", { name: String(count + 1), exact: true }).waitFor();
  await page.getByRole("tab", { name: "1 RecordEncounter" }).waitFor();

  await page.getByRole("tab", { name: String(count + 1), exact: true }).press("Delete");

  await page.getByRole("tab", { name: String(count + 1), exact: true }).waitFor({ state: "detached" });
  assert.equal(await tabs.count(), count);
});

test("a reload asks only if it would lose text", async () => {
  const page = await openExplorer();
  const dialogs = [];
  page.on("dialog", (dialog) => {
    dialogs.push(dialog.type());
    dialog.accept();
  });
  // A gesture of the user, without which browsers never ask.
  await run(page);
  await waitForAnswer(page, /"replayed": false/);
  await page.reload();
  assert.deepEqual(dialogs, []);

  await page.locator(".graphiql-query-editor .view-line").first().waitFor();
  await type(page, "graphiql-query-editor", "{ viewer { clientId } }");
  await page.locator(".graphiql-query-editor .view-lines", { hasText: "clientId" }).waitFor();
  await page.reload();

  assert.deepEqual(dialogs, ["beforeunload"]);
});

test("the explorer follows the colour scheme of the system while it is open", async () => {
  const page = await openExplorer();
  const background = () => page.locator(".monaco-editor-background").first().evaluate((each) => getComputedStyle(each).backgroundColor);
  const light = await background();

  await page.emulateMedia({ colorScheme: "dark" });

  await waitFor(async () => (await background()) !== light);
});

test("neither focus nor a tab scrolls the explorer", async () => {
  for (const size of [{ width: 1280, height: 720 }, { width: 390, height: 844 }]) {
    const page = await openExplorer({ size });
    const positions = () =>
      page.evaluate(() => [scrollY, document.documentElement.scrollHeight - innerHeight, document.querySelector("#graphiql-session").scrollTop]);
    assert.deepEqual(await positions(), [0, 0, 0]);

    await page.locator(".graphiql-query-editor .monaco-editor").click();
    await page.keyboard.press("ControlOrMeta+End");
    await page.getByRole("tab", { name: "2 ReadBack" }).click();
    await page.getByRole("tab", { name: "1 RecordEncounter" }).click();
    await run(page);
    await waitForAnswer(page, /"replayed": (true|false)/);

    assert.deepEqual(await positions(), [0, 0, 0]);
  }
});

test("the query builder adds a field on a small screen", async () => {
  const page = await openExplorer({ size: { width: 390, height: 844 } });
  await page.getByRole("tab", { name: "2 ReadBack" }).click();
  await page.getByRole("button", { name: "Show GraphiQL Explorer" }).click();
  const builder = page.locator(".graphiql-plugin");
  await builder.getByText("encounterCounts").click();

  // The editor renders only the lines that are visible, and the field is added at the end.
  await page.locator(".graphiql-query-editor .monaco-editor").click();
  await page.keyboard.press("ControlOrMeta+End");
  await page.locator(".graphiql-query-editor .view-lines", { hasText: "encounterCounts" }).waitFor();
  const { width, height } = await builder.boundingBox();
  assert.ok(width > 320 && height > 300, `${width} × ${height}`);
});

test("the start page says what this is, its version and its schema", async () => {
  const page = await open("/");
  assert.match(await page.locator("h1").innerText(), /^An HTTP gateway that records patient encounters/);
  assert.match(await page.locator("#version").innerText(), /^Version \d+\.\d+\.\d+/);
  assert.ok(await page.locator("#authorize").isHidden());

  await page.getByRole("button", { name: "GraphQL schema (SDL)" }).click();
  await authorize(page, "dev");
  await page.locator("#sdl pre", { hasText: "type Mutation {" }).waitFor();

  assert.equal((await page.request.get(await page.getByRole("link", { name: "OpenAPI description" }).evaluate((link) => link.href))).status(), 200);
});

const PAGES = {
  "/": { async loaded() {}, async used() {} },
  "/docs": {
    loaded: (page) => page.locator("#recordEncounter").waitFor(),
    async used(page) {
      await authorize(page, "dev");
      await send(page, "recordEncounter", 201);
    },
  },
  "/graphql": {
    async loaded(page) {
      await page.locator(".graphiql-query-editor .view-line").first().waitFor();
      await page.locator(".graphiql-tab-button[role=tab]").first().waitFor();
    },
    async used(page) {
      await authorize(page, "dev");
      await run(page);
      await waitForAnswer(page, /"replayed": (true|false)/);
      await page.getByRole("button", { name: "Show GraphiQL Explorer" }).click();
      await page.locator(".graphiql-explorer-actions select[aria-label]").waitFor();
    },
  },
};

async function violationsOf(page) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id}: ${target.join(" ")}: ${failureSummary}`));
}

for (const colorScheme of ["light", "dark"])
  test(`axe finds no fault on any page, wide and narrow (${colorScheme})`, async () => {
    for (const [path, { loaded, used }] of Object.entries(PAGES)) {
      for (const width of [1280, 390]) {
        const page = await open(path, { width, height: 844 }, colorScheme);
        await loaded(page);
        assert.deepEqual(await violationsOf(page), [], `${path} at ${width}, as loaded`);
        await used(page);
        assert.deepEqual(await violationsOf(page), [], `${path} at ${width}, in use`);
        await release(inUse.pop());
      }
    }
  });

test("no page is wider than a small screen", async () => {
  for (const [path, there] of [["/", "#mutation"], ["/docs", "#recordEncounter"], ["/graphql", ".view-line"]]) {
    const page = await open(path);
    await page.setViewportSize({ width: 390, height: 844 });
    await page.locator(there).first().waitFor();
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(width <= 390, `${path} is ${width} wide`);
  }
});
