// The configuration of docs/clients/graphcache.ts with urql: node graphcache.js URL PATIENT SCHEMA
import { readFileSync } from "node:fs";
import { Client, fetchExchange } from "@urql/core";
import { cacheExchange } from "@urql/exchange-graphcache";
import { buildSchema, introspectionFromSchema } from "graphql";
import { cacheOptions } from "./graphcache-options.js";
import { PatientEncountersDocument, RecordEncounterDocument, StartEncounterDocument, WorklistDocument } from "./gateway.js";

const [, , url = "", patientId = "", file = ""] = process.argv;
const warnings: unknown[] = [];
console.warn = console.error = (...words: unknown[]) => warnings.push(words.join(" "));
const schema = introspectionFromSchema(buildSchema(readFileSync(file, "utf8")));
let lists = 0; // requests for the worklist
const client = new Client({
  url,
  preferGetMethod: false,
  exchanges: [cacheExchange({ ...cacheOptions, schema } as Parameters<typeof cacheExchange>[0]), fetchExchange],
  fetchOptions: { headers: { authorization: "Bearer dev" } },
  fetch: (address, options) => {
    if (String(options?.body).includes("query Worklist")) lists += 1;
    return fetch(address, options);
  },
});

const shown: string[] = [];
let changed = () => {};
client.query(WorklistDocument, { where: { patientId: [patientId] } }).subscribe(({ data, stale }) => {
  const statuses = data?.encounters.edges.map((each) => each.node.status).join() ?? "none";
  if (data && !stale && statuses !== shown.at(-1)) shown.push(statuses);
  changed();
});
const until = async (statuses: string) => {
  while (shown.at(-1) !== statuses) await new Promise<void>((resolve) => (changed = resolve));
};

await until("");
const input = { brandId: "loop", encounterType: "LAB" } as const;
await client.mutation(RecordEncounterDocument, { patientId, input, key: `${patientId}-1` }).toPromise();
await until("SCHEDULED"); // the list was read again
const { data } = await client.query(PatientEncountersDocument, { patientId }).toPromise();
const { id, version } = data!.patient!.encounters.edges[0]!.node;
await client.mutation(StartEncounterDocument, { id, version, key: `${patientId}-2` }).toPromise();
await until("IN_PROGRESS"); // from the cache
console.log(JSON.stringify({ shown, lists, warnings }));
process.exit();
