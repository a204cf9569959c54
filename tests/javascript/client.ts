// A program of an integrator: types from rest/openapi.json by openapi-typescript, calls by openapi-fetch. It records an
// encounter, reads it alone and in a list, sends a conditional request, and is refused, without any type cast.
import createClient from "openapi-fetch";
import type { components, paths } from "./gateway.js";

declare const process: { argv: string[] };

const [, , baseUrl = "", patient_id = ""] = process.argv;
const client = createClient<paths>({ baseUrl, headers: { Authorization: "Bearer dev" } });
const path = { patient_id };

const body: components["schemas"]["RecordEncounter"] = {
  brand_id: "loop",
  encounter_type: "telehealth",
  scheduled_at: "2026-12-01T09:30:00+01:00",
  metadata: { room: 7, tags: ["a", null] },
};
// The types must refuse invalid values.
// @ts-expect-error a required member is missing
const incomplete: components["schemas"]["RecordEncounter"] = { brand_id: "loop" };
// @ts-expect-error there is no such type of encounter
const misspelt: components["schemas"]["RecordEncounter"] = { ...body, encounter_type: "house_call" };

const recorded = await client.POST("/v1/patients/{patient_id}/encounters", {
  params: { path, header: { "Idempotency-Key": `ts-${patient_id}` } },
  body,
});
if (!recorded.data) throw new Error(recorded.error.error);
// A 200 answers `validate_only`, which this request does not use, and contains no encounter.
if (!("id" in recorded.data)) throw new Error("nothing was recorded");
const encounter = recorded.data;
const status: "scheduled" | "in_progress" | "completed" | "cancelled" | "no_show" | "entered_in_error" = encounter.status;
const notes: string | null = encounter.notes;

const one = "/v1/patients/{patient_id}/encounters/{encounter_id}";
const shown = await client.GET(one, { params: { path: { ...path, encounter_id: encounter.id } } });
const tag = shown.response.headers.get("etag") ?? "";
const again = await client.GET(one, {
  params: { path: { ...path, encounter_id: encounter.id }, header: { "If-None-Match": tag } },
});
const listed = await client.GET("/v1/patients/{patient_id}/encounters", { params: { path, query: { limit: 1 } } });

const refused = await client.POST("/v1/patients/{patient_id}/encounters", {
  params: { path },
  body: { ...body, brand_id: "" },
});
const violation = refused.error && "violations" in refused.error ? refused.error.violations?.[0] : undefined;

console.log(
  JSON.stringify({
    status,
    notes,
    id: encounter.id,
    metadata: encounter.metadata,
    location: recorded.response.headers.get("location"),
    shown: shown.data?.id,
    again: again.response.status,
    total: listed.data?.total,
    refused: violation && { rule: violation.rule, minimum: violation.minimum, length: violation.received?.length },
  }),
);
