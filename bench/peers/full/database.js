// PostgreSQL under row-level security: the application's role, and a brand that each connection remembers.
import pg from "pg";
import { exactly } from "./json.js";
import { unavailable } from "./refusals.js";

const { TIMESTAMPTZ, JSONB } = pg.types.builtins;
// A Date would lose the microseconds, and a double the digits. PostgreSQL drops trailing zeros.
pg.types.setTypeParser(TIMESTAMPTZ, (text) => {
  const time = text.slice(11, -3);
  return `${text.slice(0, 10)}T${time.length > 8 ? time.padEnd(15, "0") : time}Z`;
});
pg.types.setTypeParser(JSONB, exactly);

const poolOf = (max) =>
  new pg.Pool({
    connectionString: process.env.DATABASE_URL, max, idleTimeoutMillis: 0, connectionTimeoutMillis: 5_000,
    options: "-c TimeZone=UTC -c role=gateway_app -c statement_timeout=10000",
  }).on("error", () => {}); // of an idle connection: the pool has removed it

const pool = poolOf(10);
const forAudit = poolOf(1);

const rowsOf = async (from, brandId, statement) => {
  const client = await from.connect().catch(() => { throw unavailable(); });
  let lost = false;
  try {
    if (client.brandId !== brandId) {
      client.brandId = null;
      await client.query("SELECT set_config('app.brand_id', $1, false)", [brandId]);
      client.brandId = brandId;
    }
    return (await client.query(statement)).rows;
  } catch (error) {
    // An error of a statement has a severity; any other one is of the connection.
    lost = !error.severity || error.severity === "FATAL";
    throw lost ? unavailable("unknown") : error;
  } finally {
    client.release(lost);
  }
};

// A named statement stays prepared. Without a name it is planned for its arguments, as the lists of a brand need.
export const run = (brandId, name, text, values) => rowsOf(pool, brandId, { name, text, values });

const COLUMNS = [
  "id", "patient_id", "provider_id", "brand_id", "encounter_type", "status", "scheduled_at", "started_at", "ended_at",
  "chief_complaint", "notes", "metadata", "created_at", "updated_at",
];
const camel = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
const ENUMS = ["encounter_type", "status"];

// The names of REST. Its metadata is text, which is written as it is.
const REST = COLUMNS.map((name) => (name === "metadata" ? "e.metadata::text" : `e.${name}`)).join(", ");
const GRAPHQL = [...COLUMNS, "version"]
  .map((name) => `${ENUMS.includes(name) ? `upper(e.${name})` : `e.${name}`} AS "${camel(name)}"`).join(", ");

// Recording: the encounter, its version, audit entry, event and key, in one statement and so in one transaction.
// `answer` is the published object without its end, the two times, which are PostgreSQL's.
const RECORD = `
  WITH known AS (
    SELECT $1::uuid AS id, p.id AS patient_id, p.brand_id, $4::text AS encounter_type, $5::uuid AS provider_id,
      now() AS at, replace(to_json(now())::text, '+00:00', 'Z') AS at_json
    FROM patient_graph.patients p WHERE p.id = $2 AND p.brand_id = $3
  ), answered AS (
    SELECT *, $10::text || ',"created_at":' || at_json || ',"updated_at":' || at_json || '}' AS answer FROM known
  ), claimed AS (
    INSERT INTO patient_graph.idempotency_keys
      (brand_id, client_id, key, request_hash, patient_id, encounter_id, answer, expires_at)
    SELECT brand_id, $11, $12, $13::bytea, patient_id, id, convert_to(answer, 'UTF8'), at + interval '7 days'
    FROM answered WHERE $12::text IS NOT NULL
    ON CONFLICT DO NOTHING RETURNING encounter_id
  ), recorded AS (
    INSERT INTO patient_graph.encounters
      (id, patient_id, brand_id, encounter_type, provider_id, scheduled_at, chief_complaint, notes, metadata,
       status, created_at, updated_at)
    SELECT id, patient_id, brand_id, encounter_type, provider_id, $6::timestamptz, $7, $8, $9::jsonb,
      'scheduled', at, at
    FROM known WHERE $12::text IS NULL OR id IN (SELECT encounter_id FROM claimed)
    RETURNING id
  ), inserted AS (
    SELECT known.* FROM known JOIN recorded USING (id)
  ), versioned AS (
    INSERT INTO patient_graph.encounter_versions
      (patient_id, encounter_id, version, brand_id, kind, changed_at, actor_type, actor_id, request_id, changes)
    SELECT patient_id, id, 1, brand_id, 'recorded', at, $14, $15, $16, '{}' FROM inserted
  ), audited AS (
    INSERT INTO patient_graph.audit_log
      (patient_id, id, actor_type, actor_id, actor_brand_id, event_type, entity_type, entity_id, brand_id, request_id)
    SELECT patient_id, $18::uuid, $14, $15, $17, 'patient_graph.encounter.recorded', 'encounter', id::text, brand_id,
      $16
    FROM inserted
  ), appended AS (
    INSERT INTO patient_graph.outbox
      (patient_id, id, brand_id, event_type, payload, actor_id, provider_ids, encounter_types)
    SELECT patient_id, $19::uuid, brand_id, 'patient_graph.encounter.recorded.v1',
      jsonb_build_object('encounter_id', id, 'patient_id', patient_id, 'brand_id', brand_id,
        'encounter_type', encounter_type, 'recorded_at', at_json::json),
      $15, array_remove(ARRAY[provider_id], NULL), ARRAY[encounter_type]
    FROM inserted
  )
  SELECT answer, at, EXISTS (SELECT FROM inserted) AS recorded FROM answered`;

export const record = async (brandId, values) => (await run(brandId, "record", RECORD, values))[0];

export const keyed = async (brandId, clientId, key) =>
  (await run(
    brandId, "keyed",
    `SELECT request_hash, answer, patient_id, encounter_id FROM patient_graph.idempotency_keys
     WHERE brand_id = $1 AND client_id = $2 AND key = $3`,
    [brandId, clientId, key],
  ))[0];

// A patient's page with the total: no row for an unknown patient, one without an id for one without encounters.
export const pageOf = (brandId, patientId, limit, offset) =>
  run(
    brandId, "page",
    `SELECT counted.total, ${REST} FROM patient_graph.patients p
     CROSS JOIN LATERAL (
       SELECT count(*)::int AS total FROM patient_graph.encounters WHERE patient_id = p.id AND brand_id = p.brand_id
     ) AS counted
     LEFT JOIN LATERAL (
       SELECT * FROM patient_graph.encounters WHERE patient_id = p.id AND brand_id = p.brand_id
       ORDER BY created_at DESC, id DESC LIMIT $3 OFFSET $4
     ) AS e ON true
     WHERE p.id = $1 AND p.brand_id = $2 ORDER BY e.created_at DESC, e.id DESC`,
    [patientId, brandId, limit, offset],
  );

export const encounterById = async (brandId, id) =>
  (await run(
    brandId, "by_id", `SELECT ${GRAPHQL} FROM patient_graph.encounters e WHERE e.id = $1 AND e.brand_id = $2`,
    [id, brandId],
  ))[0] ?? null;

export const patientsByIds = async (brandId, ids) => {
  const rows = await run(
    brandId, "patients",
    `SELECT id, brand_id AS "brandId" FROM patient_graph.patients WHERE id = ANY ($1) AND brand_id = $2`,
    [ids, brandId],
  );
  const found = new Map(rows.map((row) => [row.id, row]));
  return ids.map((id) => found.get(id) ?? null);
};

export const latestOfEach = async (brandId, patientIds, limit) => {
  if (patientIds.length === 1) return [await latest(brandId, patientIds[0], limit)];
  const rows = await run(
    brandId, "latest_of_each",
    `SELECT ${GRAPHQL} FROM unnest($1::text[]) AS wanted (id) CROSS JOIN LATERAL (
       SELECT * FROM patient_graph.encounters WHERE patient_id = wanted.id AND brand_id = $3
       ORDER BY created_at DESC, id DESC LIMIT $2) AS e
     ORDER BY e.created_at DESC, e.id DESC`,
    [patientIds, limit, brandId],
  );
  const lists = new Map(patientIds.map((id) => [id, []]));
  for (const row of rows) lists.get(row.patientId).push(row);
  return patientIds.map((id) => lists.get(id));
};

// One patient's list needs no lateral join.
const latest = (brandId, patientId, limit) =>
  run(
    brandId, "latest",
    `SELECT ${GRAPHQL} FROM patient_graph.encounters e WHERE e.patient_id = $1 AND e.brand_id = $3
     ORDER BY e.created_at DESC, e.id DESC LIMIT $2`,
    [patientId, limit, brandId],
  );

// Worklists: the expressions are those of the indexes.
const SCHEDULED = "LEAST(e.scheduled_at, 'infinity'::timestamptz)";
const PROVIDER = "LEAST(e.provider_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)";
const ORDERS = {
  CREATED_AT_DESC: { keys: ["e.created_at"], descending: true },
  SCHEDULED_AT_ASC: { keys: [SCHEDULED] },
  PROVIDER_THEN_SCHEDULED_AT_ASC: { keys: [PROVIDER, SCHEDULED] },
};
export const CRITERIA = {
  encounterType: (value) => `e.encounter_type = ANY(${value})`,
  status: (value) => `e.status = ANY(${value})`,
  providerId: (value) => `${PROVIDER} = ANY(${value}::uuid[]) AND e.provider_id IS NOT NULL`,
  scheduledFrom: (value) => `${SCHEDULED} >= ${value} AND e.scheduled_at IS NOT NULL`,
  scheduledUntil: (value) => `${SCHEDULED} < ${value} AND e.scheduled_at IS NOT NULL`,
};
const POSITION = '(SELECT position FROM gateway.watermark) AS "feedPosition"';

// The conditions of a filter, whose values are appended to `values`.
const conditions = (brandId, filter, values) => {
  const place = (value) => `$${values.push(value)}`;
  const matching = Object.entries(filter).map(([name, value]) => CRITERIA[name](place(value)));
  return [`e.brand_id COLLATE "C" = ${place(brandId)}`, ...matching].join(" AND ");
};

export const worklist = (brandId, filter, orderBy, after, limit) => {
  const values = [];
  const { keys, descending } = ORDERS[orderBy];
  const place = [...keys, "e.id"];
  let where = conditions(brandId, filter, values);
  if (after) {
    where += ` AND (${place}) ${descending ? "<" : ">"} (${after.map((value) => `$${values.push(value)}`)})`;
  }
  const order = place.map((key) => `${key} ${descending ? "DESC" : "ASC"}`);
  return run(
    brandId, undefined,
    `SELECT ${GRAPHQL}, ${POSITION}, ARRAY[${place.map((key) => `${key}::text`)}] AS place
     FROM patient_graph.encounters e WHERE ${where} ORDER BY ${order} LIMIT $${values.push(limit)}`,
    values,
  );
};

export const feedPosition = async (brandId) =>
  (await run(brandId, "position", `SELECT ${POSITION}`, []))[0].feedPosition;

export const countAtMost = async (brandId, filter, most) => {
  const values = [];
  const where = conditions(brandId, filter, values);
  const found = `SELECT FROM patient_graph.encounters e WHERE ${where} LIMIT $${values.push(most)}`;
  return (await run(brandId, undefined, `SELECT count(*)::int FROM (${found}) AS found`, values))[0].count;
};

const DIMENSIONS = {
  STATUS: "upper(e.status)", ENCOUNTER_TYPE: "upper(e.encounter_type)", PROVIDER_ID: "e.provider_id::text",
};
export const countBy = (brandId, filter, dimension, most) => {
  const values = [];
  return run(
    brandId, undefined,
    `SELECT ${DIMENSIONS[dimension]} AS key, count(*)::int FROM patient_graph.encounters e
     WHERE ${conditions(brandId, filter, values)} GROUP BY 1 ORDER BY count DESC, key LIMIT $${values.push(most)}`,
    values,
  );
};

// The audit log of reads and refusals, on a connection of its own.
export const insertAudit = (brandId, entries) =>
  rowsOf(forAudit, brandId, {
    name: "audit",
    text: `INSERT INTO patient_graph.audit_log (
        patient_id, id, occurred_at, actor_type, actor_id, actor_brand_id, event_type, entity_type, entity_id,
        brand_id, request_id, details
      )
      SELECT patient_id, id, now() - make_interval(secs => age_seconds), actor_type, actor_id, actor_brand_id,
        event_type, entity_type, entity_id, $1, request_id, details
      FROM json_to_recordset($2::json) AS entry (
        patient_id text, id uuid, age_seconds float8, actor_type text, actor_id text, actor_brand_id text,
        event_type text, entity_type text, entity_id text, request_id text, details jsonb
      ) ON CONFLICT DO NOTHING`,
    values: [brandId, JSON.stringify(entries)],
  });
