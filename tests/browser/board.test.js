// Run by tests/browser/test_board.py. ORIGIN: a gateway in development mode that enforces the trusted documents of the
// board and of SEEDS; CHROMIUM: the path of the browser.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { after, afterEach, before, beforeEach, test } from "node:test";

const require = createRequire(new URL("../javascript/package.json", import.meta.url));
const { chromium } = require("playwright-core");
const AXE = require.resolve("axe-core/axe.min.js");
const { ORIGIN, CHROMIUM } = process.env;

const FLAGS =
  "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync";
const NOTES = "Slept badly since Tuesday.";
const PROVIDERS = ["6f9619ff-8b86-4d01-b42d-00cf4fc964ff", "7a9619ff-8b86-4d01-b42d-00cf4fc964aa"];

let browser;
let contexts;
let seen;
let number = 0;
let day;

before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS.split(" ") });
});

after(() => browser.close());

beforeEach(() => {
  contexts = [];
  seen = { urls: [], errors: [] };
  // Each test has a day of its own.
  number += 1;
  day = `2031-03-${String(number).padStart(2, "0")}`;
});

// After each test: no request to another host, no error, no variable in a URL, and only the outbox in the browser's storage.
afterEach(async () => {
  for (const context of contexts) {
    for (const page of context.pages()) {
      const [local, session, cookies] = await page.evaluate(() => [{ ...localStorage }, { ...sessionStorage }, document.cookie]);
      assert.deepEqual([local, session, cookies, page.url()], [{}, {}, "", `${ORIGIN}/board`]);
      await until(async () => (await changesIn(page)).length === 0);
    }
    await context.close();
  }
  assert.deepEqual(seen.urls.filter((url) => !/^\/(board|graphql|assets\/[\w.-]+)$/.test(url.replace(ORIGIN, "")) && !url.startsWith("data:")), []);
  assert.deepEqual(seen.errors, []);
});

async function newContext(options = {}) {
  const context = await browser.newContext({ timezoneId: "UTC", locale: "en-GB", ...options });
  context.setDefaultTimeout(20_000);
  contexts.push(context);
  context.on("request", (request) => seen.urls.push(request.url()));
  context.on("weberror", (error) => seen.errors.push(error.error().message));
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => {
      throw new Error(`violates ${event.violatedDirective}`);
    });
  });
  return context;
}

async function openBoard(context) {
  const page = await context.newPage();
  await page.goto(`${ORIGIN}/board`);
  await signIn(page);
  return page;
}

async function signIn(page) {
  await page.getByRole("button", { name: "dev brand loop", exact: true }).click();
  await page.getByLabel("Day", { exact: true }).last().fill(day);
  await page.getByRole("status").filter({ hasText: "Live" }).waitFor();
}

const HEADERS = { "content-type": "application/json", authorization: "Bearer dev" };

async function register(id, externalIds = {}) {
  const body = JSON.stringify({ documentId: "register", variables: { id, externalIds } });
  const answer = await fetch(`${ORIGIN}/graphql`, { method: "POST", headers: HEADERS, body });
  assert.equal((await answer.json()).data.registerPatient.__typename, "PatientRegistered");
  return id;
}

/** Record an encounter of the test's day as another system does, over REST. Return it. */
async function record(patientId, time, members = {}) {
  const answer = await fetch(`${ORIGIN}/v1/patients/${patientId}/encounters`, {
    method: "POST",
    headers: HEADERS,
    body: JSON.stringify({ brand_id: "loop", encounter_type: "lab", scheduled_at: `${day}T${time}:00Z`, ...members }),
  });
  assert.equal(answer.status, 201);
  return answer.json();
}

async function recordedFor(patientId) {
  const answer = await fetch(`${ORIGIN}/v1/patients/${patientId}/encounters`, { headers: HEADERS });
  return (await answer.json()).encounters;
}

const card = (page, name) => page.getByRole("article", { name, exact: true });

const badge = (page, name, text) => card(page, name).locator(".badge", { hasText: text }).waitFor();

const tile = (page, status, count) =>
  page.getByRole("button", { name: `${count} ${status}`, exact: true }).waitFor();

async function recordOn(page, patientId, time) {
  await page.getByRole("button", { name: "Record", exact: true }).click();
  await page.getByLabel("Patient id").fill(patientId);
  await page.getByLabel("Time").fill(`${day}T${time}`);
  await page.getByLabel("Notes (optional)").fill(NOTES);
  await page.getByRole("dialog").getByRole("button", { name: "Record" }).click();
}

/** Return the records of the outbox as text, with each byte of an encrypted member as a character. */
const changesIn = (page) =>
  page.evaluate(async () => {
    const known = (await indexedDB.databases()).some(({ name }) => name === "board-changes");
    if (!known) return [];
    const database = await new Promise((resolve, reject) => {
      const request = indexedDB.open("board-changes");
      request.onsuccess = () => resolve(request.result);
      request.onerror = reject;
    });
    const records = await new Promise((resolve) => {
      const request = database.transaction("changes").objectStore("changes").getAll();
      request.onsuccess = () => resolve(request.result);
    });
    database.close();
    const bytes = (value) => String.fromCharCode(...new Uint8Array(value));
    return records.map((each) => JSON.stringify({ ...each, iv: bytes(each.iv), ciphertext: bytes(each.ciphertext) }));
  });

async function until(condition) {
  const deadline = Date.now() + 20_000;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, "it did not happen in time");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Fail with the violations of axe. */
async function assertAccessible(page) {
  await page.addScriptTag({ path: AXE });
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`), []);
}

test("the day shows encounters by provider and time, with counts and filters", async () => {
  const patient = await register("day-1");
  await record(patient, "10:00", { provider_id: PROVIDERS[0] });
  await record(patient, "09:00", { provider_id: PROVIDERS[0], chief_complaint: "Cough" });
  await record(patient, "08:00", { provider_id: PROVIDERS[1], encounter_type: "telehealth" });
  await record(patient, "11:00");
  const page = await openBoard(await newContext());

  await tile(page, "Scheduled", 4);
  const columns = await page.locator(".columns section").evaluateAll((sections) =>
    sections.map((each) => [each.ariaLabel, [...each.querySelectorAll("article")].map((article) => article.ariaLabel)]),
  );
  assert.deepEqual(columns, [
    ["Provider 6f9619ff", ["09:00 day-1", "10:00 day-1"]],
    ["Provider 7a9619ff", ["08:00 day-1"]],
    ["No provider", ["11:00 day-1"]],
  ]);

  await page.getByRole("combobox", { name: "Provider" }).selectOption({ label: "Provider 7a9619ff" });
  await tile(page, "Scheduled", 1);
  await card(page, "08:00 day-1").waitFor();
  assert.equal(await page.getByRole("article").count(), 1);
  await page.getByRole("combobox", { name: "Type" }).selectOption({ label: "Lab" });
  await page.getByText("No encounters are scheduled for this day with these filters.").waitFor();
});

test("an encounter recorded elsewhere appears without a reload, and so does its change", async () => {
  const patient = await register("live-1");
  const [one, other] = [await openBoard(await newContext()), await openBoard(await newContext())];

  await record(patient, "10:00");
  await card(one, "10:00 live-1").getByRole("button", { name: "Start" }).click();

  await badge(other, "10:00 live-1", "In progress");
  await tile(other, "In progress", 1);
  await tile(one, "In progress", 1);
});

test("keys alone start, undo, reschedule, cancel, complete and mark an encounter", async () => {
  const patient = await register("keys-1");
  for (const time of ["08:00", "09:00", "10:00"]) await record(patient, time);
  const page = await openBoard(await newContext());
  const press = async (name, button) => {
    await card(page, name).getByRole("button", { name: button }).focus();
    await page.keyboard.press("Enter");
  };
  const choose = async (name, item) => {
    await press(name, /^More actions/);
    await page.getByRole("menuitem", { name: item }).focus();
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor();
  };
  const submit = async (reason) => {
    await page.getByLabel(/^Reason/).focus();
    await page.keyboard.type(reason);
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor({ state: "detached" });
  };

  await press("08:00 keys-1", "Start");
  await badge(page, "08:00 keys-1", "In progress");
  await choose("08:00 keys-1", "Undo start");
  await submit("Wrong patient");
  await badge(page, "08:00 keys-1", "Scheduled");
  await press("08:00 keys-1", "Start");
  await press("08:00 keys-1", "Complete");
  await badge(page, "08:00 keys-1", "Completed");

  await choose("09:00 keys-1", "Reschedule");
  await page.getByLabel("New time").fill(`${day}T12:30`);
  await submit("The provider is late");
  await choose("12:30 keys-1", "Cancel");
  await submit("Called");
  await badge(page, "12:30 keys-1", "Cancelled");
  await choose("10:00 keys-1", "No show");
  await submit("Did not come");
  await badge(page, "10:00 keys-1", "No show");
  await choose("10:00 keys-1", "Entered in error");
  await submit("Another day");
  await badge(page, "10:00 keys-1", "Entered in error");
  await tile(page, "Completed", 1);
});

test("two boards agree after one was offline, recorded, was closed and came back", async () => {
  const [one, other] = [await register("offline-1"), await register("offline-2")];
  await record(one, "08:00");
  const away = await newContext();
  const [leaving, staying] = [await openBoard(away), await openBoard(await newContext())];
  await card(leaving, "08:00 offline-1").waitFor();

  await away.setOffline(true);
  await recordOn(leaving, one, "09:00");
  await card(leaving, "08:00 offline-1").getByRole("button", { name: "Start" }).click();
  await recordOn(staying, other, "10:00");

  await badge(leaving, "08:00 offline-1", "In progress");
  await leaving.getByText("2 changes are not sent yet.").waitFor();
  await until(async () => (await changesIn(leaving)).length === 2);
  assert.doesNotMatch((await changesIn(leaving)).join(), new RegExp(`${NOTES}|offline-1|${day}`));
  await leaving.close();
  await away.setOffline(false);
  const back = await openBoard(away);

  for (const page of [back, staying]) {
    await badge(page, "08:00 offline-1", "In progress");
    await badge(page, "09:00 offline-1", "Scheduled");
    await badge(page, "10:00 offline-2", "Scheduled");
    await tile(page, "Scheduled", 2);
  }
  await until(async () => (await changesIn(back)).length === 0);
  assert.equal((await recordedFor(one)).length, 2);
  assert.equal((await recordedFor(other)).length, 1);
});

test("a recording whose answer is lost is sent again and recorded once", async () => {
  const patient = await register("lost-1");
  const page = await openBoard(await newContext());
  let lost = 0;
  await page.route("**/graphql", async (route) => {
    if (!route.request().postData()?.includes('"Record"') || lost) return route.fallback();
    await route.fetch();
    lost += 1;
    return route.abort();
  });

  await recordOn(page, patient, "09:00");

  await badge(page, "09:00 lost-1", "Scheduled");
  await until(async () => (await changesIn(page)).length === 0);
  assert.equal(lost, 1);
  assert.equal((await recordedFor(patient)).length, 1);
});

test("a refused change says why, and the card shows the current state", async () => {
  const patient = await register("refused-1");
  const { id } = await record(patient, "09:00");
  const context = await newContext();
  const page = await openBoard(context);
  await card(page, "09:00 refused-1").waitFor();

  await context.setOffline(true);
  await card(page, "09:00 refused-1").getByRole("button", { name: "Start" }).click();
  await badge(page, "09:00 refused-1", "In progress");
  const body = JSON.stringify({ documentId: "cancel", variables: { id } });
  await fetch(`${ORIGIN}/graphql`, { method: "POST", headers: HEADERS, body });
  await context.setOffline(false);

  await page.getByText("The change was not made").first().waitFor();
  await badge(page, "09:00 refused-1", "Cancelled");
  await recordOn(page, "unknown-patient", "10:00");
  await page.getByText(/patient was not found/i).first().waitFor();
});

test("the timeline reads further pages while it is scrolled, and shows notes and history", async () => {
  const patient = await register("timeline-1");
  for (let count = 0; count < 45; count += 1) await record(patient, `${String(8 + Math.floor(count / 6)).padStart(2, "0")}:${count % 6}0`, { notes: NOTES });
  const page = await openBoard(await newContext());

  await page.getByRole("button", { name: "timeline-1" }).first().click();
  const timeline = page.getByRole("dialog");
  await until(async () => {
    await timeline.evaluate((each) => each.scrollTo(0, each.scrollHeight));
    return (await timeline.getByRole("article").count()) === 45;
  });
  await timeline.getByText("Notes and history").first().click();
  await timeline.getByText(NOTES).waitFor();
  await timeline.getByText("recorded").waitFor();
  await page.keyboard.press("Escape");
  await timeline.waitFor({ state: "detached" });
});

test("a patient is found by an external id", async () => {
  const patient = await register("found-1", { mrn: "M-4711" });
  await record(patient, "09:00");
  const page = await openBoard(await newContext());

  await page.getByRole("button", { name: "Find" }).click();
  await page.getByLabel("System").fill("mrn");
  await page.getByLabel("External id").fill("M-4711");
  await page.getByRole("button", { name: "Search" }).click();
  await page.getByRole("button", { name: "Patient found-1" }).click();

  await page.getByRole("dialog", { name: "Patient found-1" }).getByRole("article").waitFor();
});

for (const colorScheme of ["light", "dark"])
  test(`axe finds nothing on the board and its dialogs (${colorScheme})`, async () => {
    const patient = await register(`axe-${colorScheme}`);
    await record(patient, "09:00", { chief_complaint: "Cough", provider_id: PROVIDERS[0] });
    for (const width of [1280, 390]) {
      const context = await newContext({ colorScheme, viewport: { width, height: 844 }, bypassCSP: true });
      const page = await context.newPage();
      await page.goto(`${ORIGIN}/board`);
      await assertAccessible(page);
      await signIn(page);
      await card(page, `09:00 axe-${colorScheme}`).waitFor();
      await assertAccessible(page);
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width);
      await page.getByRole("button", { name: /^More actions/ }).click();
      await page.getByRole("menuitem", { name: "Cancel" }).click();
      await assertAccessible(page);
      await page.keyboard.press("Escape");
      await page.getByRole("button", { name: "Record", exact: true }).click();
      await assertAccessible(page);
      await page.keyboard.press("Escape");
      await page.getByRole("button", { name: "Find" }).click();
      await assertAccessible(page);
      await page.keyboard.press("Escape");
      await page.getByRole("button", { name: `axe-${colorScheme}`, exact: true }).click();
      await page.getByText("Notes and history").click();
      await page.getByText("recorded").waitFor();
      await assertAccessible(page);
    }
  });
