// The minimal body with a client of orval: node orval.js ORIGIN PATIENT_ID
import { recordEncounter, type RecordEncounter } from "./orval/gateway.js";

declare const process: { argv: string[] };

const [, , origin = "", patientId = ""] = process.argv;
// The functions of orval call relative addresses, as in a page of the gateway's own origin.
const { fetch } = globalThis;
globalThis.fetch = (path, options) => fetch(origin + path, options);
const body: RecordEncounter = { brand_id: "loop", encounter_type: "lab" };
const { data, status } = await recordEncounter(patientId, body, undefined, { headers: { Authorization: "Bearer dev" } });
if (status !== 201) throw new Error("nothing was recorded");
console.log(JSON.stringify({ status, id: data.id, metadata: data.metadata }));
