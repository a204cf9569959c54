// Mercurius, with its just-in-time compiler and its own loaders, that does the gateway's work over GraphQL.
import { createCipheriv, randomBytes } from "node:crypto";
import { getComplexity } from "graphql-query-complexity";
import { LRUCache } from "lru-cache";
import mercurius from "mercurius";
import { listening } from "../listening.js";
import { noteRead, noteReads, noteWorklist } from "./audit.js";
import { actingBrand, requireOneBrand, requireScope } from "./callers.js";
import {
  countAtMost, countBy, encounterById, feedPosition, latestOfEach, patientsByIds, worklist,
} from "./database.js";
import { noteRefused, open } from "./door.js";
import { recordEncounter } from "./recording.js";
import { refusalOf } from "./refusals.js";
import { broken, canBePatient, instant, isUuid, keyOf, requireRules } from "./rules.js";
import { typeDefs } from "./schema.js";

const PAGE_SIZE = 20;
const PAGE_SIZE_MAX = Number(process.env.PAGE_SIZE_MAX);
const MOST_COUNTED = 10_000;
const MOST_GROUPS = 500;
const MOST_PATIENTS = 100;
const MAX_COST = 25_000;
const MAX_DEPTH = 20;

const actionsOf = {
  SCHEDULED: ["START", "CANCEL", "MARK_NO_SHOW", "MARK_ENTERED_IN_ERROR", "RESCHEDULE", "AMEND"],
  IN_PROGRESS: ["COMPLETE", "CANCEL", "MARK_ENTERED_IN_ERROR", "AMEND", "UNDO_START"],
  ENTERED_IN_ERROR: [],
};
const AFTER_THE_END = ["MARK_ENTERED_IN_ERROR", "AMEND"];

const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const camel = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());

const extensionsOf = ({ code, recorded, members }, requestId) =>
  ({ code, recorded, request_id: requestId, ...members });
const phrase = ({ id }, _, refusal) => ({
  errors: [{ message: refusal.message, extensions: extensionsOf(refusal, id) }],
});
// Errors of Mercurius itself are about the document, whose request counts as a read.
const refusalFrom = async (error, log, request) =>
  error.errors ? ((await app.count(request, "reads")) ?? invalidDocument(error.errors)) : refusalOf(error, log);
// `application/json` has status 200 whatever its answer.
const refusedDocument = (violations) => Object.assign(broken(violations), { status: 200 });
const invalidDocument = (errors) =>
  refusedDocument(errors.map(({ message }) => ({ pointer: "", rule: "document", message })));
const app = await open("graphql", phrase, refusalFrom);

// Each resolver requires its scope, and acts for the caller's brand.
const brandFor = ({ caller, headers }, operation, named) => {
  requireScope(caller, operation);
  return actingBrand(caller, headers["x-brand-id"], named);
};

const sizeOf = (first = PAGE_SIZE) => {
  if (first >= 0 && first <= PAGE_SIZE_MAX) return first;
  const message = `must be from 0 to ${PAGE_SIZE_MAX}`;
  throw broken([{ pointer: "/first", rule: "page_size", message, minimum: 0, maximum: PAGE_SIZE_MAX }]);
};

const filterOf = (where = {}) => {
  const filter = {};
  for (const [name, value] of Object.entries(where)) {
    const pointer = `/where/${name}`;
    if (value === null) throw broken([{ pointer, rule: "null", message: "must not be null; leave it out instead" }]);
    if (name.startsWith("scheduled")) {
      filter[name] = instant(value);
      if (!filter[name]) throw broken([{ pointer, rule: "date_time", message: "must be an RFC 3339 date-time" }]);
    } else if (value.length > 100) {
      throw broken([{ pointer, rule: "too_many", message: "must have at most 100 items", maximum: 100 }]);
    } else if (name === "providerId") {
      const message = "must be a UUID in its hyphenated form";
      if (!value.every(isUuid)) throw broken([{ pointer, rule: "uuid", message }]);
      filter[name] = value;
    } else {
      filter[name] = value.map((each) => each.toLowerCase());
    }
  }
  return filter;
};

const placeOf = (cursor, orderBy) => {
  try {
    const [order, ...place] = JSON.parse(Buffer.from(cursor, "base64url"));
    if (order === orderBy) return place;
  } catch {} // not a cursor
  throw broken([{ pointer: "/after", rule: "cursor", message: "must be a cursor of this list" }]);
};
const cursorOf = ({ place }, orderBy) => Buffer.from(JSON.stringify([orderBy, ...place])).toString("base64url");

// A position counts the events of all brands, so a client must not read it.
const FEED_KEY = randomBytes(16);
const feedCursorOf = (position) => {
  const cipher = createCipheriv("aes-128-ecb", FEED_KEY, null);
  return cipher.update(position.padStart(15)).toString("base64url") + cipher.final().toString("base64url");
};

const once = (make) => {
  let made;
  return () => (made ??= make());
};

const encounters = async (_, { first, after, where, orderBy }, { request }) => {
  const brandId = brandFor(request, "read");
  const size = sizeOf(first);
  const filter = filterOf(where);
  const rows = await worklist(brandId, filter, orderBy, after && placeOf(after, orderBy), size + 1);
  const nodes = rows.slice(0, size);
  const endCursor = nodes.length ? cursorOf(nodes.at(-1), orderBy) : null;
  noteWorklist(request, brandId, nodes);
  return {
    nodes,
    pageInfo: { hasNextPage: rows.length > size, endCursor },
    position: async () => rows[0]?.feedPosition ?? feedPosition(brandId),
    counted: once(() => countAtMost(brandId, filter, MOST_COUNTED + 1)),
  };
};

const problems = { not_found: "PatientNotFound", validation_error: "InvalidInput" };
const KEY_REUSED = "IdempotencyKeyReused";

// What a client can act on is a member of the union.
const problemOf = (request, error) => {
  const refusal = refusalOf(error, request.log);
  const __typename = refusal.status === 409 ? KEY_REUSED : problems[refusal.code];
  if (!__typename) throw refusal;
  noteRefused(request, refusal);
  const { code, message, members: { violations } } = refusal;
  const recorded = refusal.recorded.toUpperCase();
  if (!violations) return { __typename, code, message, recorded };
  const shown = violations.map(({ pointer, received, ...violation }) => {
    const name = camel(pointer.slice(1));
    const path = name === "idempotencyKey" ? [name] : ["input", name];
    return { ...violation, path, received: received && { ...received, type: received.type.toUpperCase() } };
  });
  const said = shown.map((each) => `${each.path.join(".")} ${each.message}`).join("; ");
  return { __typename, code, recorded, violations: shown, message: said };
};

const recordOne = async (_, { patientId, input, idempotencyKey }, { request }) => {
  const brandId = brandFor(request, "record", input.brandId);
  try {
    const members = Object.fromEntries(Object.entries(input).map(([name, value]) => [snake(name), value]));
    members.encounter_type = members.encounter_type.toLowerCase();
    requireRules(members);
    const key = idempotencyKey === undefined ? null : keyOf(idempotencyKey);
    const { id, answer, createdAt, isReplay } = await recordEncounter(request, brandId, patientId, members, key);
    // A replay shows the encounter as it stands now.
    const encounter = isReplay ? await encounterById(brandId, id) : publishedOf(JSON.parse(answer), createdAt);
    return { __typename: "EncounterRecorded", replayed: isReplay, encounter };
  } catch (error) {
    return problemOf(request, error);
  }
};

const publishedOf = (answer) => {
  const encounter = { version: 1 };
  for (const name of Object.keys(answer)) encounter[camel(name)] = answer[name];
  encounter.encounterType = encounter.encounterType.toUpperCase();
  encounter.status = encounter.status.toUpperCase();
  return encounter;
};

const patients = async (request, ids) => {
  const brandId = brandFor(request, "patients");
  const possible = ids.filter(canBePatient);
  const found = new Map((await patientsByIds(brandId, possible)).map((patient) => [patient?.id, patient]));
  return ids.map((id) => found.get(id) ?? null);
};

const same = (value) => value;
const resolveType = ({ __typename }) => __typename;

await app.register(mercurius, {
  schema: typeDefs,
  jit: 1,
  graphiql: false,
  queryDepth: MAX_DEPTH,
  context: (request) => ({ request }),
  errorHandler: false,
  // The errors of fields. Each refusal of a request is audited once.
  errorFormatter: ({ data, errors }, { request, reply }) => {
    const refusals = new Map();
    const shown = errors.map(({ message: said, path, locations, originalError }) => {
      const refusal = originalError ? refusalOf(originalError, request.log) : invalidDocument([{ message: said }]);
      refusals.set(JSON.stringify([refusal.code, refusal.members]), refusal);
      return { message: refusal.message, path, locations, extensions: extensionsOf(refusal, request.id) };
    });
    for (const refusal of refusals.values()) {
      noteRefused(request, refusal);
      reply.headers(refusal.headers);
    }
    return { statusCode: 200, response: { data: data ?? null, errors: shown } };
  },
  resolvers: {
    JSON: { serialize: same, parseValue: same },
    DateTime: { serialize: same, parseValue: same },
    UUID: { serialize: same, parseValue: same },
    RecordEncounterResult: { resolveType },
    Problem: { resolveType },
    Query: {
      encounter: async (_, { id }, { request }) => {
        const brandId = brandFor(request, "read");
        const encounter = isUuid(id) ? await encounterById(brandId, id) : null;
        if (encounter) noteRead(request, brandId, encounter.patientId, 1);
        return encounter;
      },
      patient: async (_, { id }, { request }) => (await patients(request, [id]))[0],
      patients: (_, { ids }, { request }) => {
        if (ids.length <= MOST_PATIENTS) return patients(request, ids);
        const message = `must have at most ${MOST_PATIENTS} items`;
        throw broken([{ pointer: "/ids", rule: "too_many", message, maximum: MOST_PATIENTS }]);
      },
      encounters,
      encounterCounts: async (_, { where, by }, { request }) => {
        const brandId = brandFor(request, "read");
        return (await countBy(brandId, filterOf(where), by, MOST_GROUPS + 1)).slice(0, MOST_GROUPS);
      },
    },
    Worklist: {
      totalCount: async ({ counted }) => Math.min(await counted(), MOST_COUNTED),
      totalCountIsExact: async ({ counted }) => (await counted()) <= MOST_COUNTED,
      feedCursor: async ({ position }) => feedCursorOf(await position()),
    },
    // A foreign key guarantees the patient.
    Encounter: {
      patient: ({ patientId, brandId }) => ({ id: patientId, brandId }),
      allowedActions: ({ status }) => actionsOf[status] ?? AFTER_THE_END,
    },
    Mutation: { recordEncounter: recordOne },
  },
  loaders: {
    Patient: {
      encounters: {
        loader: async (queries, { reply: { request } }) => {
          const brandId = brandFor(request, "read");
          const sizes = Map.groupBy(queries, ({ params }) => params.first);
          const found = await Promise.all(Array.from(sizes, async ([first, ofSize]) => {
            const ids = [...new Set(ofSize.map(({ obj }) => obj.id))];
            const lists = await latestOfEach(brandId, ids, sizeOf(first));
            noteReads(request, brandId, ids.map((id, at) => [id, lists[at].length]));
            return [first, new Map(ids.map((id, at) => [id, { nodes: lists[at] }]))];
          }));
          const bySize = new Map(found);
          return queries.map(({ obj, params }) => bySize.get(params.first).get(obj.id));
        },
        opts: { cache: false },
      },
    },
  },
});

// The cost is the number of objects that nested pages can hold. It depends on the sizes in the variables only.
const MOST_OBJECTS = { encounterCounts: MOST_GROUPS };
const sized = ({ args, childComplexity, field: { name } }) => {
  const size = args.ids?.length ?? MOST_OBJECTS[name] ?? (name === "encounters" ? (args.first ?? PAGE_SIZE) : null);
  return size === null ? childComplexity : size * (1 + childComplexity);
};
const costs = new LRUCache({ max: 10_000 });

app.graphql.addHook("preExecution", async (schema, document, { request, __currentQuery }, variables = {}) => {
  const operation = document.definitions.find(({ kind }) => kind === "OperationDefinition");
  // One unit for each root field. Refused requests count too.
  const kind = operation.operation === "mutation" ? "writes" : "reads";
  for (const _ of operation.selectionSet.selections) {
    const limited = await app.count(request, kind);
    if (limited) throw limited;
  }
  requireOneBrand(request.caller, request.headers["x-brand-id"]);
  const sizes = Object.values(variables)
    .map((value) => (Array.isArray(value) ? `[${value.length}]` : Number(value) || ""));
  const known = `${sizes} ${__currentQuery}`;
  let cost = costs.get(known);
  if (cost === undefined) {
    cost = getComplexity({ schema, query: document, variables, estimators: [sized] });
    costs.set(known, cost);
  }
  if (cost > MAX_COST) {
    const message = `may return at most ${MAX_COST} objects`;
    throw refusedDocument([{ pointer: "", rule: "cost", message, maximum: MAX_COST }]);
  }
});

listening(await app.listen({ host: "127.0.0.1", port: 0 }));
