// The minimal body with a client of @hey-api/openapi-ts: node hey-api.js ORIGIN PATIENT_ID
import { client } from "./hey-api/client.gen.js";
import { recordEncounter, type RecordEncounter } from "./hey-api/index.js";

declare const process: { argv: string[] };

const [, , baseUrl = "", patient_id = ""] = process.argv;
client.setConfig({ baseUrl, auth: "dev" });
const body: RecordEncounter = { brand_id: "loop", encounter_type: "lab" };
const { data, response } = await recordEncounter({ path: { patient_id }, body });
if (!data || !("id" in data)) throw new Error("nothing was recorded");
console.log(JSON.stringify({ status: response?.status, id: data.id, metadata: data.metadata }));
