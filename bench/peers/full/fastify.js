// Fastify that does the gateway's work over REST.
import { hash } from "node:crypto";
import etag from "@fastify/etag";
import { listening } from "../listening.js";
import { noteRead } from "./audit.js";
import { actingBrand, requireOneBrand, requireScope } from "./callers.js";
import { pageOf } from "./database.js";
import { open } from "./door.js";
import { recordEncounter } from "./recording.js";
import { patientNotFound } from "./refusals.js";
import { broken, brokenBy, canBePatient, compile, keyOf, recording, shapeOf } from "./rules.js";

const PROBLEM = "application/problem+json";
const LINK = '</openapi.json>; rel="service-desc", </docs>; rel="help"';

const app = await open("rest", (request, reply, { status, code, message, recorded, members }) => {
  const { violations, retry_after_ms } = members;
  const pages = [`/problems/${code}`, ...new Set((violations ?? []).map(({ rule }) => `/rules/${rule}`))];
  reply.header("link", [LINK, ...pages.map((page) => `<${page}>; rel="describedby"`)].join(", "));
  const body = { error: code, message, recorded, request_id: request.id, violations, retry_after_ms };
  if ([401, 403, 429].includes(status)) body.error_description = message;
  if (!request.headers.accept?.includes(PROBLEM)) return body;
  reply.type(PROBLEM);
  const instance = `urn:encounter-gateway:request:${request.id}`;
  return { type: `/problems/${code}`, title: message, status, detail: message, instance, ...body };
});
await app.register(etag, { hashFn: (body) => hash("sha1", body, "base64") });
app.setValidatorCompiler(({ schema }) => compile(schema));
app.addHook("onSend", async (_, reply) => {
  reply.header("vary", "Accept");
  if (!reply.hasHeader("link")) reply.header("link", LINK);
});

// Scope, rates and brand, in the contract's order: before the body is read.
const admit = (operation, kind) => async (request) => {
  const limited = await app.count(request, kind);
  requireScope(request.caller, operation);
  if (limited) throw limited;
  requireOneBrand(request.caller, request.headers["x-brand-id"]);
};

app.post(
  "/v1/patients/:patient_id/encounters",
  {
    schema: { body: recording },
    schemaErrorFormatter: brokenBy,
    onRequest: admit("record", "writes"),
    // A contradicting brand is refused before the other members are looked at.
    preValidation: async (request) => {
      const { body, caller, headers } = request;
      if (typeof body !== "object" || body === null || Array.isArray(body)) {
        const message = "The body must be a JSON object.";
        throw broken([{ pointer: "", rule: "object", message, received: shapeOf(body) }]);
      }
      request.brandId = actingBrand(caller, headers["x-brand-id"], body.brand_id);
    },
  },
  async (request, reply) => {
    const { params: { patient_id }, body, headers } = request;
    const key = keyOf(headers["idempotency-key"]);
    const { answer, id, isReplay } = await recordEncounter(request, request.brandId, patient_id, body, key);
    if (isReplay) reply.header("idempotent-replayed", "true");
    return reply
      .code(201)
      .headers({ location: `/v1/patients/${encodeURIComponent(patient_id)}/encounters/${id}`, etag: '"1"' })
      .type("application/json").send(answer);
  },
);

const wholeNumber = (query, name, fallback, least, most, violations) => {
  const sent = query[name];
  if (sent === undefined) return fallback;
  if (typeof sent === "string" && /^\d{1,16}$/.test(sent) && sent >= least && sent <= most) return Number(sent);
  const message = `must be a whole number from ${least} to ${most}`;
  violations.push({ pointer: `/${name}`, rule: "whole_number", message, minimum: least, maximum: most });
};

// The metadata is JSON already, and stays as it is.
const item = ({ metadata, total, ...encounter }) => `${JSON.stringify(encounter).slice(0, -1)},"metadata":${metadata}}`;

app.get("/v1/patients/:patient_id/encounters", { onRequest: admit("read", "reads") }, async (request, reply) => {
  const { params: { patient_id }, query, caller, headers } = request;
  const violations = [];
  const limit = wholeNumber(query, "limit", 20, 1, Number(process.env.PAGE_SIZE_MAX), violations);
  const offset = wholeNumber(query, "offset", 0, 0, Number.MAX_SAFE_INTEGER, violations);
  if (violations.length) throw broken(violations);
  const brandId = actingBrand(caller, headers["x-brand-id"]);
  const rows = canBePatient(patient_id) ? await pageOf(brandId, patient_id, limit, offset) : [];
  if (!rows.length) throw patientNotFound();
  const [{ id, total }] = rows;
  const encounters = id === null ? [] : rows;
  noteRead(request, brandId, patient_id, encounters.length);
  return reply
    .type("application/json")
    .send(`{"patient_id":${JSON.stringify(patient_id)},"encounters":[${encounters.map(item)}],"total":${total}}`);
});

listening(await app.listen({ host: "127.0.0.1", port: 0 }));
