// The list of docs/clients/live-list.ts: node live.js ORIGIN PATIENT
import { createClient } from "graphql-sse";
import { followList } from "./live-list.js";
import type { Encounter } from "./live-list.js";

declare const process: { argv: string[]; exit(): never };

const [, , origin = "", patientId = ""] = process.argv;
const headers = { authorization: "Bearer dev", "content-type": "application/json" };
const query = async (text: string) =>
  (await (await fetch(`${origin}/graphql`, { method: "POST", headers, body: JSON.stringify({ query: text }) })).json()).data;
const record = (scheduledAt: string) =>
  query(`mutation { recordEncounter(patientId: "${patientId}", input: {brandId: "loop", encounterType: LAB, scheduledAt: "${scheduledAt}"}) { __typename } }`);

const seen: Encounter[][] = [];
// What happens after each state of the list that is shown.
const steps = [
  () => record("2026-12-01T09:00:00Z"),
  () => record("2026-12-01T08:00:00Z"),
  () => query(`mutation { startEncounter(id: "${seen.at(-1)?.[0]?.id}") { __typename } }`),
  () => query(`mutation { cancelEncounter(id: "${seen.at(-1)?.[0]?.id}") { __typename } }`),
];
const show = (list: Encounter[]) => {
  seen.push(list);
  const step = steps.shift();
  if (step) return void step();
  console.log(JSON.stringify(seen.map((each) => each.map(({ status, scheduledAt }) => [status, scheduledAt?.slice(11, 13)]))));
  process.exit();
};
const client = createClient({ url: `${origin}/graphql`, headers, retryAttempts: 0 });
await followList(client, { patientId: [patientId] }, (each) => each.status !== "CANCELLED", show);
