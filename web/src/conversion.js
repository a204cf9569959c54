// One call, two doors: `recordEncounter` over GraphQL is `POST /v1/patients/{id}/encounters` over REST, and back.

import { parse } from "graphql";
import { number, read, string, write } from "./exact_json.js";
import { quote, words } from "./shell.js";

const MEMBERS = {
  brandId: "brand_id",
  encounterType: "encounter_type",
  providerId: "provider_id",
  scheduledAt: "scheduled_at",
  chiefComplaint: "chief_complaint",
  notes: "notes",
  metadata: "metadata",
};

const FIELDS = Object.fromEntries(Object.entries(MEMBERS).map(([field, member]) => [member, field]));

const record = (validateOnly) => `mutation RecordEncounter(
  $patientId: ID!
  $input: RecordEncounterInput!
  $key: String
) {
  recordEncounter(
    patientId: $patientId
    input: $input
    idempotencyKey: $key${validateOnly ? "\n    validateOnly: true" : ""}
  ) {
    __typename
    ... on EncounterRecorded {
      replayed
      encounter {
        id
        status
        createdAt
      }
    }
    ... on Problem {
      code
      message
      recorded
    }
  }
}
`;

/** What was given cannot be converted; the message says why, for a person. */
export class NotConvertible extends Error {}

/**
 * Give the curl of a tab's recordEncounter call. The token is left to the shell, as $TOKEN.
 *
 * Throws NotConvertible.
 */
export function toRest(query, variables, { base, operationName } = {}) {
  const { patientId, input, idempotencyKey, validateOnly } = call(query, variables, operationName);
  const body = renamed(input, MEMBERS, (field) => {
    throw new NotConvertible(`A REST body has no member ${field}.`);
  });
  if (typeof body.encounter_type === "string") body.encounter_type = body.encounter_type.toLowerCase();
  const path = `/v1/patients/${encodeURIComponent(patientId)}/encounters${validateOnly ? "?validate_only=true" : ""}`;
  const lines = [
    `curl ${quote(base + path)}`,
    `-H "Authorization: Bearer $TOKEN"`,
    `-H ${quote("Content-Type: application/json")}`,
    ...(idempotencyKey == null ? [] : [`-H ${quote(`Idempotency-Key: ${sent(idempotencyKey)}`)}`]),
    `-d ${quote(write(body))}`,
  ];
  return lines.join(" \\\n  ");
}

/**
 * Give the tab of a REST call: `{ query, variables, ignored }`, variables as text, ignored the members REST ignores.
 *
 * What is read is a curl, or a path and below it the body, as in an HTTP request. Throws NotConvertible.
 */
export function toGraphql(text) {
  const { url, method, key, body } = /^\s*(\$\s+)?curl\b/.test(text) ? curl(text) : request(text);
  const path = /\/v1\/patients\/([^/?#\s]+)\/encounters\/?(?:[?#]|$)/.exec(url ?? "");
  if (!path) throw new NotConvertible("The path /v1/patients/{patient_id}/encounters is missing.");
  if (method !== "POST") throw new NotConvertible("Only the call that records (POST) has a twin over GraphQL.");
  const [, validateOnly = "false"] = /[?&]validate_only=([^&#\s]*)/.exec(url) ?? [];
  if (!["true", "false"].includes(validateOnly)) throw new NotConvertible("validate_only is true or false.");
  const members = objectOf(body, "The body");
  const ignored = [];
  const input = renamed(members, FIELDS, (member) => ignored.push(member));
  if (typeof input.encounterType === "string") input.encounterType = input.encounterType.toUpperCase();
  const variables = { patientId: string(decoded(path[1])), input, ...(key === undefined ? {} : { key: received(key) }) };
  return { query: record(validateOnly === "true"), variables: write(variables, 2), ignored };
}

// GraphQL

function call(query, variables, operationName) {
  let operations;
  try {
    operations = parse(query).definitions.filter((each) => each.kind === "OperationDefinition");
  } catch (error) {
    throw new NotConvertible(`The document cannot be read: ${error.message}`);
  }
  const calls = operations
    .filter((each) => !operationName || operations.length === 1 || each.name?.value === operationName)
    .flatMap((operation) => operation.selectionSet.selections.map((field) => ({ operation, field })))
    .filter(({ field }) => field.kind === "Field" && field.name.value === "recordEncounter");
  if (calls.length !== 1) {
    throw new NotConvertible(
      calls.length ? "There is more than one recordEncounter here." : "There is no recordEncounter in this tab.",
    );
  }
  const [{ operation, field }] = calls;
  const given = variables?.trim() ? objectOf(variables, "The variables") : {};
  const defaults = operation.variableDefinitions
    .filter((each) => each.defaultValue)
    .map((each) => [each.variable.name.value, valueOf(each.defaultValue, {})]);
  const values = { ...Object.fromEntries(defaults), ...given };
  const { patientId, input, idempotencyKey, validateOnly, ...others } = members(field.arguments, values);
  // What would be left out might be what keeps a rehearsal from being recorded.
  const [other] = Object.keys(others);
  if (other) throw new NotConvertible(`The argument ${other} has no twin over REST.`);
  if (typeof patientId !== "string" || !patientId) throw new NotConvertible("patientId is missing.");
  if (!isObject(input)) throw new NotConvertible("input is missing.");
  if (idempotencyKey != null && !/^[^\0]/.test(idempotencyKey)) throw new NotConvertible("A key is a text.");
  // An ID may be written as a number.
  return { patientId: patientId.replace(/^\0/, ""), input, idempotencyKey, validateOnly };
}

function valueOf(node, values) {
  switch (node.kind) {
    case "Variable":
      return values[node.name.value];
    case "IntValue":
    case "FloatValue":
      return number(node.value);
    case "NullValue":
      return null;
    case "ListValue":
      return node.values.map((each) => valueOf(each, values) ?? null);
    case "ObjectValue":
      return members(node.fields, values);
    case "StringValue":
      return string(node.value);
    default:
      return node.value;
  }
}

function members(nodes, values) {
  const given = nodes.map((each) => [each.name.value, valueOf(each.value, values)]);
  return Object.fromEntries(given.filter(([, value]) => value !== undefined));
}

// REST

const WITH_VALUE = new Set("AbcCDeEFHhKmoPQrTtUuwxXyYzd");
const LONG_WITH_VALUE =
  /^--(request|header|data(-raw|-binary|-ascii|-urlencode)?|json|url|user|user-agent|output|max-time|connect-timeout|cacert|cert|key|proxy|write-out|retry|resolve|cookie|referer)$/;
const LONG = { X: "--request", H: "--header", d: "--data" };

function curl(text) {
  let args;
  try {
    args = words(text.replace(/^\s*\$\s+/, "")).slice(1);
  } catch (error) {
    throw new NotConvertible(error.message);
  }
  const options = { "--url": [] };
  const note = (name, value) => (options[name] ??= []).push(value);
  for (let word; (word = args.shift()) !== undefined; ) {
    if (word.startsWith("--")) note(word, LONG_WITH_VALUE.test(word) ? args.shift() : undefined);
    else if (/^-./.test(word)) shortOptions(word.slice(1), args, note);
    else note("--url", word);
  }
  const named = (pattern) => Object.keys(options).flatMap((name) => (pattern.test(name) ? options[name] : []));
  const bodies = named(/^--(data|json)/);
  if (bodies.length > 1) throw new NotConvertible("The body must be given once.");
  if (/^@/.test(bodies[0] ?? "") && !options["--data-raw"]) {
    throw new NotConvertible("The body is in a file: put it in place of the @.");
  }
  const method = options["--request"]?.at(-1) ?? (bodies.length && !options["--get"] && !options["-G"] ? "POST" : "GET");
  return { url: options["--url"][0], method: method.toUpperCase(), key: keyAmong(named(/^--header$/)), body: bodies[0] };
}

function shortOptions(letters, args, note) {
  for (let at = 0; at < letters.length; at++) {
    const letter = letters[at];
    if (WITH_VALUE.has(letter)) {
      note(LONG[letter] ?? `-${letter}`, letters.slice(at + 1) || args.shift());
      return;
    }
    note(`-${letter}`);
  }
}

function request(text) {
  const start = text.indexOf("{");
  // A path may hold braces only where it is a template, and then it names no patient.
  const [head, body] = start < 0 ? [text, ""] : [text.slice(0, start), text.slice(start)];
  const [, method, url] = /^\s*(?:([A-Za-z]+)\s+)?(\S*\/v1\/\S+)/.exec(head) ?? [];
  return { url, method: (method ?? "POST").toUpperCase(), key: keyAmong(head.split("\n")), body };
}

function keyAmong(headers) {
  const [, key] = headers.map((each) => /^\s*idempotency-key\s*:\s*(.*?)\s*$/i.exec(each ?? "")).find(Boolean) ?? [];
  return key;
}

// The gateway takes a pair of quotes off a key (RFC 9651), so a key that has one of its own needs a second.
const QUOTED = /^"((?:[^"\\]|\\["\\])*)"$/;
const sent = (key) => (QUOTED.test(key) ? `"${key.replace(/["\\]/g, String.raw`\$&`)}"` : key);
const received = (key) => QUOTED.exec(key)?.[1].replace(/\\(.)/g, "$1") ?? key;

function renamed(object, names, unknown) {
  const known = Object.entries(object).filter(([name]) => Object.hasOwn(names, name) || void unknown(name));
  return Object.fromEntries(known.map(([name, value]) => [names[name], value]));
}

function objectOf(text, what) {
  let value;
  try {
    value = read(text ?? "");
  } catch {
    throw new NotConvertible(`${what} is not JSON.`);
  }
  if (!isObject(value)) throw new NotConvertible(`${what} must be an object.`);
  return value;
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function decoded(segment) {
  try {
    return decodeURIComponent(segment);
  } catch {
    throw new NotConvertible("The path's patient id is not properly encoded.");
  }
}
