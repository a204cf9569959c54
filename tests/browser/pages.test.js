// Run by tests/browser/test_pages.py. ORIGIN: a gateway in development mode; CHROMIUM: the path of the browser.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { after, afterEach, before, beforeEach, test } from "node:test";

const { chromium } = createRequire(new URL("../javascript/package.json", import.meta.url))("playwright-core");
const { ORIGIN, CHROMIUM } = process.env;

const TIMEOUT_MS = 30_000;
const FLAGS =
  "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync";

let browser;
let context;
let seen;

before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS.split(" ") });
});

after(() => browser.close());

beforeEach(async () => {
  context = await browser.newContext({ permissions: ["clipboard-read", "clipboard-write"] });
  context.setDefaultTimeout(TIMEOUT_MS);
  seen = { urls: [], errors: [] };
  context.on("request", (request) => seen.urls.push(request.url()));
  context.on("weberror", (error) => seen.errors.push(error.error().message));
  context.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
  // Violations of the policy by workers and styles are reported to the page too.
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => console.error(`violates ${event.violatedDirective}`));
  });
});

// After each test: no request to another host, no violation of the policy, nothing stored in the browser.
afterEach(async () => {
  const left = [];
  for (const page of context.pages()) {
    left.push(await page.evaluate(async () => [
      { ...localStorage }, { ...sessionStorage }, document.cookie, (await indexedDB.databases()).length, location.href,
    ]));
  }
  await context.close();
  const toOtherHosts = seen.urls.filter((url) => !new RegExp(`^(${ORIGIN}/|data:|blob:${ORIGIN}/)`).test(url));
  assert.deepEqual(toOtherHosts, []);
  assert.deepEqual(seen.urls.filter((url) => /dev\b|token|bearer/i.test(url) && !url.includes("/assets/")), []);
  assert.deepEqual(seen.errors, []);
  for (const [local, session, cookies, databases, address] of left) {
    assert.deepEqual([local, session, cookies, databases], [{}, {}, "", 0]);
    assert.ok([`${ORIGIN}/`, `${ORIGIN}/graphql`, `${ORIGIN}/docs`].includes(address), address);
  }
});

async function open(path) {
  const page = await context.newPage();
  page.on("websocket", (socket) => seen.urls.push(socket.url().replace(/^ws/, "http")));
  await page.goto(ORIGIN + path);
  return page;
}

async function openExplorer({ token = "dev" } = {}) {
  const page = await open("/graphql");
  await page.locator(".graphiql-query-editor .view-line").first().waitFor();
  if (token) {
    await page.getByRole("button", { name: `${token} brand` }).click();
    await page.locator("#signed-in", { hasText: token }).waitFor();
  }
  return page;
}

/** Return the text of the response editor. */
const shown = (page) =>
  page.locator(".result-window .view-lines").evaluate((lines) =>
    [...lines.querySelectorAll(".view-line")]
      .sort((one, other) => Number.parseFloat(one.style.top) - Number.parseFloat(other.style.top))
      .map((line) => line.textContent.replaceAll("\u00a0", " "))
      .join("\n"),
  );

async function waitForAnswer(page, pattern) {
  const deadline = Date.now() + TIMEOUT_MS;
  for (;;) {
    const text = await shown(page);
    if (pattern.test(text)) return text;
    assert.ok(Date.now() < deadline, `not answered: ${text}`);
    await page.waitForTimeout(50);
  }
}

const run = (page) => page.locator(".graphiql-execute-button").click();

async function type(page, editor, text) {
  await page.locator(`.${editor} .monaco-editor`).click();
  await page.keyboard.press("ControlOrMeta+A");
  await page.evaluate((copied) => navigator.clipboard.writeText(copied), text);
  await page.keyboard.press("ControlOrMeta+V");
}

async function copyAsRest(page) {
  await page.getByRole("button", { name: "Copy as REST" }).click();
  await page.getByRole("status").filter({ hasText: "Copied" }).waitFor();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  await page.getByRole("dialog").getByRole("button", { name: "Close" }).click();
  return copied;
}

async function pasteRest(page, text) {
  await page.getByRole("button", { name: "Paste REST as GraphQL" }).click();
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

  await page.getByRole("tab", { name: "ReadBack" }).click();
  await run(page);
  const read = await waitForAnswer(page, /"encounterType": "TELEHEALTH"/);
  assert.equal(read.match(id)[1], first.match(id)[1]);
});

test("the recorded encounter can be started and completed without copying its id", async () => {
  const page = await openExplorer();
  await run(page);
  const id = (await waitForAnswer(page, /"replayed": (true|false)/)).match(/"id": "([0-9a-f-]{36})"/)[1];

  await page.getByRole("tab", { name: "StartEncounter", exact: true }).click();
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

test("`Copy as REST` gives a shell command that records the encounter of the tab", async () => {
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
  await page.getByRole("tab", { name: "LatestEncounters" }).click();

  await page.getByRole("button", { name: "Copy as REST" }).click();
  await page.getByRole("status").filter({ hasText: "no recordEncounter" }).waitFor();
  await page.getByRole("dialog").getByRole("button", { name: "Close" }).click();
  await pasteRest(page, "curl http://elsewhere/v2");
  await page.getByRole("status").filter({ hasText: "The path" }).waitFor();
});

test("the REST page's `try it out` records an encounter", async () => {
  const page = await open("/docs");
  await page.getByRole("button", { name: "dev brand loop" }).click();
  await page.locator("#signed-in", { hasText: "dev" }).waitFor();
  const operation = page.locator(".opblock-post");
  await operation.getByPlaceholder("patient_id").fill("demo-patient");

  await operation.getByRole("button", { name: "Execute" }).click();

  await operation.locator(".live-responses-table .response-col_status", { hasText: "201" }).waitFor();
  assert.match(await operation.locator(".live-responses-table").innerText(), /"status": "scheduled"/);
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

test("a recording in one window arrives in the subscription of another", async () => {
  const [watching, recording] = [await openExplorer(), await openExplorer()];
  await watching.getByRole("tab", { name: "EncounterEvents" }).click();
  await run(watching);
  // Without a key, each run records another encounter.
  await pasteRest(recording, 'POST /v1/patients/demo-patient/encounters {"brand_id": "loop", "encounter_type": "lab"}');
  const deadline = Date.now() + TIMEOUT_MS;

  // The start of a subscription is not visible, so record until its first event arrives.
  let events = "";
  do {
    assert.ok(Date.now() < deadline, `no event arrived: ${events}`);
    await run(recording);
    await waitForAnswer(recording, /"replayed": false/);
    events = await shown(watching);
  } while (!/"kind": "RECORDED"/.test(events));

  assert.match(events, /"encounterType": "LAB"/);
});

test("the first operation is allowed for each token, and edited variables are kept", async () => {
  const page = await openExplorer({ token: "dev-loopbio" });
  await run(page);
  await waitForAnswer(page, /"replayed": false/);
  await page.getByRole("tab", { name: "LatestEncounters" }).click();
  assert.match(await page.locator(".graphiql-editor-tool .view-lines").first().innerText(), /demo-patient-loopbio/);
  await type(page, "graphiql-editor-tool .graphiql-editor:not(.hidden)", '{"patientId": "mine"}');

  await page.getByRole("button", { name: "Forget token" }).click();
  await page.getByRole("button", { name: "dev brand" }).click();
  await page.locator("#signed-in", { hasText: "dev" }).waitFor();

  assert.match(await page.locator(".graphiql-editor-tool .view-lines").first().innerText(), /mine/);
});

test("the REST page records with the chosen token and presets no header", async () => {
  const page = await open("/docs");
  const operation = page.locator(".opblock-post");
  await operation.getByPlaceholder("patient_id").waitFor();
  for (const header of ["Idempotency-Key", "X-Request-Id", "X-Brand-Id"])
    assert.equal(await operation.getByPlaceholder(header).inputValue(), "");

  await page.getByRole("button", { name: "dev-loopbio brand" }).click();
  await page.locator("#signed-in", { hasText: "dev-loopbio" }).waitFor();
  await operation.getByRole("button", { name: "Execute" }).click();

  await operation.locator(".live-responses-table .response-col_status", { hasText: "201" }).waitFor();
  assert.match(await operation.locator(".live-responses-table").innerText(), /"brand_id": "loopbio"/);
});

test("no page is wider than a small screen", async () => {
  for (const [path, there] of [["/", "#mutation"], ["/docs", ".opblock-post .responses-table"], ["/graphql", ".view-line"]]) {
    const page = await open(path);
    await page.setViewportSize({ width: 400, height: 800 });
    await page.locator(there).first().waitFor();
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(width <= 400, `${path} is ${width} wide`);
  }
});
