// Run by tests/browser/test_behind_a_path.py. BASES: URLs of the same gateway below a path, by the name of the proxy, as JSON;
// CHROMIUM: the path of the browser.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { after, afterEach, before, beforeEach, test } from "node:test";

const require = createRequire(new URL("../javascript/package.json", import.meta.url));
const { chromium } = require("playwright-core");
const { BASES, CHROMIUM } = process.env;

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
  // The certificate is one of this test.
  context = await browser.newContext({ ignoreHTTPSErrors: true, permissions: ["clipboard-read", "clipboard-write"], timezoneId: "UTC", locale: "en-GB" });
  context.setDefaultTimeout(20_000);
  seen = { urls: [], errors: [] };
  context.on("request", (request) => seen.urls.push(request.url()));
  context.on("weberror", (error) => seen.errors.push(error.error().message));
  context.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
});

// After each test: every request stayed below the path, and the console has no error.
afterEach(async () => {
  await context.close();
  assert.deepEqual(seen.urls.filter((url) => !/^(data:|blob:|https:\/\/localhost:\d+\/gateway\/)/.test(url)), []);
  assert.deepEqual(seen.errors, []);
});

async function open(url) {
  const page = await context.newPage();
  page.on("websocket", (socket) => seen.urls.push(socket.url().replace(/^ws/, "http")));
  await page.goto(url);
  return page;
}

async function authorize(page) {
  await page.getByRole("button", { name: "dev brand loop", exact: true }).click();
  await page.locator("#signed-in", { hasText: "dev" }).waitFor();
}

const answerOf = (page) => page.locator(".result-window .view-lines");

/** Record an encounter as another program does, over REST. */
async function record(page, base, members) {
  const answer = await page.request.post(`${base}/v1/patients/demo-patient/encounters`, {
    headers: { Authorization: "Bearer dev" },
    data: { brand_id: "loop", encounter_type: "lab", ...members },
    ignoreHTTPSErrors: true,
  });
  assert.equal(answer.status(), 201);
}

for (const [proxy, base] of Object.entries(JSON.parse(BASES))) {
  test(`${proxy}: the start page shows public URLs, and links to the other pages`, async () => {
    const page = await open(`${base}/`);

    assert.match(await page.locator("#curl").innerText(), new RegExp(`^curl \\\\\\n  ${base}/v1/patients/demo-patient/encounters `));
    assert.equal(await page.locator(".doors code").first().innerText(), "/gateway/graphql");
    await page.getByRole("button", { name: "GraphQL schema (SDL)" }).click();
    await authorize(page);
    await page.locator("#sdl code", { hasText: "type Query" }).waitFor();
    await page.getByRole("button", { name: "Close" }).click();
    for (const name of ["Explorer", "REST", "Board"]) await page.getByRole("navigation").getByRole("link", { name }).click();
    assert.equal(page.url(), `${base}/board`);
  });

  test(`${proxy}: the REST page records an encounter, and its Location is read`, async () => {
    const page = await open(`${base}/docs`);
    const section = page.locator("#recordEncounter");
    await section.waitFor();
    await authorize(page);

    assert.ok((await section.locator(".sample pre").innerText()).includes(`${base}/v1/patients/demo-patient/encounters`));
    await section.getByRole("button", { name: "Send", exact: true }).click();
    await section.locator(".answer .status b", { hasText: "201" }).waitFor();
    await section.getByRole("tab", { name: "Headers" }).click();
    const [, location] = (await section.locator(".answer pre").innerText()).match(/^location: (.*)$/m);
    const status = await page.evaluate(async (url) => (await fetch(url, { headers: { Authorization: "Bearer dev" } })).status, location);

    assert.match(location, /^\/gateway\/v1\//);
    assert.equal(status, 200);
    assert.equal(await page.locator("#statuses a", { hasText: "not_found" }).first().evaluate((link) => link.href), `${base}/problems/not_found`);
  });

  test(`${proxy}: the explorer runs a mutation and a subscription, and copies a public URL`, async () => {
    const page = await open(`${base}/graphql`);
    await page.locator(".graphiql-query-editor .view-line").first().waitFor();
    await authorize(page);

    await page.locator(".graphiql-execute-button").click();
    await answerOf(page).filter({ hasText: "EncounterRecorded" }).waitFor();
    await page.getByRole("button", { name: "Copy as REST call" }).click();
    await page.getByRole("status").filter({ hasText: "Copied" }).waitFor();
    assert.ok((await page.evaluate(() => navigator.clipboard.readText())).startsWith(`curl ${base}/v1/`));
    await page.getByRole("dialog").getByRole("button", { name: "Close" }).click();

    await page.getByRole("tab", { name: "4 EncounterEvents" }).click();
    await page.locator(".graphiql-execute-button").click();
    // The start of a subscription is not visible, so record until its first event arrives.
    do {
      await record(page, base, {});
      await page.waitForTimeout(100);
    } while (!/RECORDED/.test(await answerOf(page).innerText()));
  });

  test(`${proxy}: the board shows an encounter that is recorded elsewhere, live`, async () => {
    const page = await open(`${base}/board`);
    const day = `2031-05-0${1 + Object.keys(JSON.parse(BASES)).indexOf(proxy)}`;
    await authorize(page);
    await page.getByLabel("Day", { exact: true }).last().fill(day);
    await page.getByRole("status").filter({ hasText: "Live" }).waitFor();

    await record(page, base, { scheduled_at: `${day}T10:00:00Z` });

    const card = page.getByRole("article", { name: "10:00 demo-patient", exact: true });
    await card.getByRole("button", { name: "Start" }).click();
    await card.locator(".badge", { hasText: "In progress" }).waitFor();
  });
}
