// The contract's rules of a recording as a JSON schema, and their violations as both doors show them.
import { Ajv } from "ajv";
import { Refusal } from "./refusals.js";

export const TYPES = ["office_visit", "telehealth", "lab", "pharmacy", "other"];
const METADATA_BYTES = 64 * 1024;
const METADATA_LEVELS = 32;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const DATE_TIME =
  /^(\d{4})-(\d{2})-(\d{2})[Tt]((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.(\d+))?([Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)$/;

export const isUuid = (text) => UUID.test(text);

// In UTC to the microsecond; null for any other text. A `Date` alone would lose digits and accept 30 February.
export const instant = (text) => {
  const [, year, month, day, time, fraction = "", offset] = DATE_TIME.exec(text) ?? [];
  if (!year || new Date(Date.UTC(year, month - 1, day)).getUTCDate() !== Number(day)) return null;
  const at = new Date(`${year}-${month}-${day}T${time}${offset.toUpperCase()}`);
  const micros = fraction.slice(0, 6).padEnd(6, "0");
  return `${at.toISOString().slice(0, 19)}${micros === "000000" ? "" : `.${micros}`}Z`;
};

const problemWith = (text) => {
  if (text.includes("\0")) return { rule: "nul", message: "must not contain the NUL character" };
  if (!text.isWellFormed()) return { rule: "surrogate", message: "must not contain an unpaired surrogate" };
};

export const canBePatient = (id) => id.length > 0 && id.length <= 200 && !problemWith(id);

const problemInTree = (tree, levels) => {
  if (levels === 0) {
    const message = `must not be nested deeper than ${METADATA_LEVELS} levels`;
    return { rule: "too_deep", message, maximum: METADATA_LEVELS };
  }
  for (const each of Array.isArray(tree) ? tree : [...Object.keys(tree), ...Object.values(tree)]) {
    const isTree = typeof each === "object" && each !== null && !JSON.isRawJSON(each);
    const problem = isTree ? problemInTree(each, levels - 1) : typeof each === "string" && problemWith(each);
    if (problem) return problem;
  }
};

const problemWithMetadata = (metadata) => {
  const problem = problemInTree(metadata, METADATA_LEVELS);
  if (problem) return problem;
  if (Buffer.byteLength(JSON.stringify(metadata)) > METADATA_BYTES) {
    const message = `must be at most ${METADATA_BYTES} bytes of JSON`;
    return { rule: "too_large", message, maximum: METADATA_BYTES };
  }
};

const formats = { uuid: UUID, "date-time": (text) => !!instant(text) };
const ajv = new Ajv({ allErrors: true, verbose: true, formats });
const KEYWORDS = [["storable", "string", problemWith], ["bounded", "object", problemWithMetadata]];
for (const [keyword, type, check] of KEYWORDS) {
  const validate = (_, value) => {
    const params = check(value);
    validate.errors = [{ keyword, params }];
    return !params;
  };
  ajv.addKeyword({ keyword, type, errors: "full", validate });
}

const text = { type: "string", storable: true };
export const recording = {
  type: "object",
  required: ["brand_id", "encounter_type"],
  properties: {
    brand_id: { ...text, minLength: 1 },
    encounter_type: { enum: TYPES },
    provider_id: { type: "string", format: "uuid" },
    scheduled_at: { type: "string", format: "date-time" },
    chief_complaint: { ...text, maxLength: 2_000 },
    notes: { ...text, maxLength: 50_000 },
    metadata: { type: "object", bounded: true },
  },
};
export const compile = (schema) => ajv.compile(schema);

const formatRule = (format, data) => {
  if (format === "uuid") return { rule: "uuid", message: "must be a UUID in its hyphenated form" };
  if (instant(`${data}Z`)) return { rule: "offset", message: "must end in an offset such as Z or +01:00" };
  return { rule: "date_time", message: "must be an RFC 3339 date-time such as 2026-01-31T09:30:00+01:00" };
};

const ruleOf = ({ keyword, params, data, parentSchema }) => {
  if (data === null && parentSchema.type) return { rule: "null", message: "must not be null; leave it out instead" };
  switch (keyword) {
    case "required": return { rule: "required", message: "is required" };
    case "enum": {
      const allowed = params.allowedValues;
      return { rule: "enum", message: `must be one of: ${allowed.join(", ")}`, allowed };
    }
    case "type": {
      if (parentSchema.format) return formatRule(parentSchema.format, data);
      return { rule: params.type, message: `must be ${params.type === "object" ? "an object" : "a string"}` };
    }
    case "format": return formatRule(params.format, data);
    case "minLength": return { rule: "too_short", message: "must have at least 1 character", minimum: params.limit };
    case "maxLength":
      return { rule: "too_long", message: `must have at most ${params.limit} characters`, maximum: params.limit };
    default: return params;
  }
};

export const shapeOf = (value) => {
  if (value === null) return { type: "null" };
  if (typeof value === "string") return { type: "string", length: [...value].length };
  if (Array.isArray(value)) return { type: "array", length: value.length };
  if (typeof value === "object" && !JSON.isRawJSON(value)) return { type: "object", length: Object.keys(value).length };
  return { type: typeof value === "boolean" ? "boolean" : "number" };
};

export const broken = (violations) =>
  new Refusal(
    400, "validation_error",
    violations.map(({ pointer, message }) => `${pointer.slice(1)} ${message}`.trim()).join("; "), { violations },
  );

// One violation for each member, the first. `errors` are ajv's.
export const brokenBy = (errors) => {
  const byPointer = new Map();
  for (const error of errors) {
    const missing = error.keyword === "required";
    const pointer = missing ? `/${error.params.missingProperty}` : error.instancePath;
    if (byPointer.has(pointer)) continue;
    byPointer.set(pointer, { pointer, ...ruleOf(error), ...(missing ? {} : { received: shapeOf(error.data) }) });
  }
  return broken([...byPointer.values()]);
};

// For GraphQL; Fastify validates the body of REST by the same schema.
const check = ajv.compile(recording);
export const requireRules = (members) => {
  if (!check(members)) throw brokenBy(check.errors);
};

// Most clients send the bare key, the IETF draft a quoted string.
export const keyOf = (sent) => {
  if (sent === undefined || sent === null) return null;
  const key = /^"((?:[^"\\]|\\["\\])*)"$/.exec(sent)?.[1].replace(/\\(.)/g, "$1") ?? sent;
  if (/^[\x21-\x7e]{1,128}$/.test(key)) return key;
  const message = "must be 1 to 128 visible characters";
  const violation = { pointer: "/idempotency_key", rule: "idempotency_key", message, minimum: 1, maximum: 128 };
  throw broken([{ ...violation, received: shapeOf(key) }]);
};
