// Fastify with a schema for what comes in, and one for what goes out, from which it compiles the writer.
import Fastify from "fastify";
import { REST, latest, record, run } from "./database.js";
import { listening } from "./listening.js";

const text = { type: "string" };
const nullable = { type: "string", nullable: true };
const object = { type: "object", additionalProperties: true };
const encounter = {
  type: "object",
  properties: {
    id: text, patient_id: text, provider_id: nullable, brand_id: text, encounter_type: text, status: text,
    scheduled_at: nullable, started_at: nullable, ended_at: nullable, chief_complaint: nullable, notes: nullable,
    metadata: object, created_at: text, updated_at: text,
  },
};
const body = {
  type: "object",
  required: ["brand_id", "encounter_type"],
  properties: {
    brand_id: { ...text, minLength: 1 },
    encounter_type: { enum: ["office_visit", "telehealth", "lab", "pharmacy", "other"] },
    provider_id: { ...text, format: "uuid" },
    scheduled_at: { ...text, format: "date-time" },
    chief_complaint: text, notes: text, metadata: object,
  },
};
const error = { type: "object", properties: { error: text, message: text } };
const unknown = (reply) => reply.code(404).send({ error: "not_found", message: "Patient not found" });

const app = Fastify();

app.post(
  "/v1/patients/:patient_id/encounters",
  { schema: { body, response: { 201: encounter, 404: error } } },
  async ({ params, body: sent }, reply) => {
    const named = {
      brandId: sent.brand_id, encounterType: sent.encounter_type, providerId: sent.provider_id,
      scheduledAt: sent.scheduled_at, chiefComplaint: sent.chief_complaint, notes: sent.notes, metadata: sent.metadata,
    };
    try {
      const recorded = await record(REST, params.patient_id, named);
      reply.code(201);
      return recorded;
    } catch (failure) {
      // The foreign key says whether the patient exists, for no further statement.
      if (failure.code === "23503") return unknown(reply);
      throw failure;
    }
  },
);

const page = {
  type: "object",
  properties: { patient_id: text, encounters: { type: "array", items: encounter }, total: { type: "integer" } },
};
const querystring = {
  type: "object",
  properties: {
    limit: { type: "integer", minimum: 1, maximum: 500, default: 20 },
    offset: { type: "integer", minimum: 0, default: 0 },
  },
};

app.get(
  "/v1/patients/:patient_id/encounters",
  { schema: { querystring, response: { 200: page, 404: error } } },
  async ({ params: { patient_id }, query: { limit, offset } }, reply) => {
    const [encounters, [{ total, known }]] = await Promise.all([
      latest(REST, patient_id, limit, offset),
      run(
        "total",
        `SELECT (SELECT count(*)::int FROM patient_graph.encounters WHERE patient_id = $1) AS total,
                EXISTS (SELECT FROM patient_graph.patients WHERE id = $1) AS known`,
        [patient_id],
      ),
    ]);
    return known ? { patient_id, encounters, total } : unknown(reply);
  },
);

listening(await app.listen({ host: "127.0.0.1", port: 0 }));
