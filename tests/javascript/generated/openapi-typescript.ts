// The minimal body with types of openapi-typescript: node openapi-typescript.js ORIGIN PATIENT_ID
import createClient from "openapi-fetch";
import type { components, paths } from "./gateway.js";

declare const process: { argv: string[] };

const [, , baseUrl = "", patient_id = ""] = process.argv;
const body: components["schemas"]["RecordEncounter"] = { brand_id: "loop", encounter_type: "lab" };
const { data, response } = await createClient<paths>({ baseUrl, headers: { Authorization: "Bearer dev" } }).POST(
  "/v1/patients/{patient_id}/encounters",
  { params: { path: { patient_id } }, body },
);
if (!data || !("id" in data)) throw new Error("nothing was recorded");
console.log(JSON.stringify({ status: response.status, id: data.id, metadata: data.metadata }));
