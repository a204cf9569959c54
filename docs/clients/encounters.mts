// Keep encounters in a folder until each is recorded: once, whatever the network does. Node 20, nothing to install.
//
// node encounters.mjs keep PATIENT_ID < encounter.json    keeps an encounter, under a key that is made here, once
// node encounters.mjs send                                sends the kept encounters; run it as often as you like
//
// ENCOUNTERS_URL, ENCOUNTERS_TOKEN and ENCOUNTERS_OUTBOX say where to, as whom, and which folder.

import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const outbox = process.env.ENCOUNTERS_OUTBOX ?? "outbox";
const tryAgain = new Set([0, 408, 429, 500, 502, 503, 504]); // 0: no answer came
const tries = 10;

interface Answer {
  status: number;
  retryAfter: number; // seconds to wait at least
  body: string;
}

/** Keep an encounter: its file's name is its key, the first line is the patient, the rest is the body. */
function keep(patientId: string, encounter: string): void {
  const key = crypto.randomUUID();
  writeFileSync(join(outbox, key), `${patientId}\n${encounter}`, { flush: true });
  renameSync(join(outbox, key), join(outbox, "waiting", key)); // whole, or not there at all
}

/** Send an encounter until another try would change nothing, and give the last status. */
async function send(key: string): Promise<number> {
  const kept = readFileSync(join(outbox, "waiting", key), "utf8");
  const end = kept.indexOf("\n");
  const [patientId, encounter] = [kept.slice(0, end), kept.slice(end + 1)];
  let answer: Answer = { status: 0, retryAfter: 0, body: "" };
  for (let number = 0; number < tries; number++) {
    answer = await tryOnce(key, patientId, encounter);
    if (!tryAgain.has(answer.status)) break;
    // Exponential backoff with jitter, but never sooner than Retry-After.
    await sleep(1000 * Math.max(answer.retryAfter, Math.random() * Math.min(60, 2 ** number / 2)));
  }
  if (answer.status !== 201) console.error(key, answer.status, answer.body);
  return answer.status;
}

/** Status 0: whether it arrived is not known. */
async function tryOnce(key: string, patientId: string, encounter: string): Promise<Answer> {
  try {
    const response = await fetch(
      `${process.env.ENCOUNTERS_URL}/v1/patients/${encodeURIComponent(patientId)}/encounters`,
      {
        method: "POST",
        headers: {
          Authorization: `Bearer ${process.env.ENCOUNTERS_TOKEN}`,
          "Content-Type": "application/json",
          "Idempotency-Key": key,
        },
        body: encounter,
        signal: AbortSignal.timeout(30_000),
      },
    );
    const retryAfter = Number(response.headers.get("Retry-After") ?? 0) || 0;
    return { status: response.status, retryAfter, body: await response.text() };
  } catch (error) {
    return { status: 0, retryAfter: 0, body: (error as Error).name };
  }
}

/** Send everything that waits. Whether all of it is recorded now. */
async function sendAll(): Promise<boolean> {
  let allRecorded = true;
  for (const key of readdirSync(join(outbox, "waiting")).sort()) {
    const status = await send(key);
    if (status !== 201) allRecorded = false;
    if (status === 401 || status === 403) break; // the token's fault: the others would fare no better
    if (!tryAgain.has(status)) {
      renameSync(join(outbox, "waiting", key), join(outbox, status === 201 ? "recorded" : "refused", key));
    }
  }
  return allRecorded;
}

const [command, patientId, ...more] = process.argv.slice(2);
const understood = command === "send" ? patientId === undefined : command === "keep" && patientId !== undefined;
if (!understood || more.length > 0) {
  console.error("usage: encounters.mjs keep PATIENT_ID < encounter.json | encounters.mjs send");
  process.exit(2);
}
for (const folder of ["waiting", "recorded", "refused"]) mkdirSync(join(outbox, folder), { recursive: true });
if (patientId !== undefined) keep(patientId, readFileSync(0, "utf8"));
else process.exitCode = (await sendAll()) ? 0 : 1;
