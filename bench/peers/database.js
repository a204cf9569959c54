// What every peer asks PostgreSQL: named statements, which stay prepared, over a pool as large as the gateway's.
import pg from "pg";

// A Date would lose the microseconds that the tables hold, and takes longer to make than this.
pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) => `${text.slice(0, 10)}T${text.slice(11, -3)}Z`);

export const pool = new pg.Pool({
  connectionString: process.env.DATABASE_URL,
  max: 10,
  idleTimeoutMillis: 0,
  options: "-c TimeZone=UTC",
});

const COLUMNS = [
  "id", "patient_id", "provider_id", "brand_id", "encounter_type", "status", "scheduled_at", "started_at", "ended_at",
  "chief_complaint", "notes", "metadata", "created_at", "updated_at",
];
const camel = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
const published = (names) => COLUMNS.map((column) => `e.${column} AS "${names(column)}"`).join(", ");

// The names of REST, and those of GraphQL, so that no row is copied into another shape.
export const REST = published((name) => name);
export const GRAPHQL = published(camel);

export const run = async (name, text, values) => (await pool.query({ name, text, values })).rows;

export const record = async (columns, patientId, encounter) => {
  const rows = await run(
    "record",
    `INSERT INTO patient_graph.encounters AS e
       (id, patient_id, brand_id, encounter_type, provider_id, scheduled_at, chief_complaint, notes, metadata)
     VALUES (uuidv7(), $1, $2, $3, $4, $5, $6, $7, $8) RETURNING ${columns}`,
    [
      patientId, encounter.brandId, encounter.encounterType, encounter.providerId ?? null,
      encounter.scheduledAt ?? null, encounter.chiefComplaint ?? null, encounter.notes ?? null, encounter.metadata ?? {},
    ],
  );
  return rows[0];
};

export const encounterById = async (id) =>
  (await run("by_id", `SELECT ${GRAPHQL} FROM patient_graph.encounters e WHERE e.id = $1`, [id]))[0] ?? null;

export const patientById = async (id) =>
  (await run("patient", `SELECT id, brand_id AS "brandId" FROM patient_graph.patients WHERE id = $1`, [id]))[0] ?? null;

export const patientsByIds = async (ids) => {
  const rows = await run(
    "patients", `SELECT id, brand_id AS "brandId" FROM patient_graph.patients WHERE id = ANY ($1)`, [ids],
  );
  const found = new Map(rows.map((row) => [row.id, row]));
  return ids.map((id) => found.get(id) ?? null);
};

export const latest = (columns, patientId, limit, offset = 0) =>
  run(
    "latest",
    `SELECT ${columns} FROM patient_graph.encounters e WHERE e.patient_id = $1
     ORDER BY e.created_at DESC, e.id DESC LIMIT $2 OFFSET $3`,
    [patientId, limit, offset],
  );

// One statement for many patients: what a loader is for.
export const latestOfEach = async (patientIds, limit) => {
  const rows = await run(
    "latest_of_each",
    `SELECT ${GRAPHQL} FROM unnest($1::text[]) AS wanted (id) CROSS JOIN LATERAL (
       SELECT * FROM patient_graph.encounters WHERE patient_id = wanted.id
       ORDER BY created_at DESC, id DESC LIMIT $2) AS e
     ORDER BY e.created_at DESC, e.id DESC`,
    [patientIds, limit],
  );
  const lists = new Map(patientIds.map((id) => [id, []]));
  for (const row of rows) lists.get(row.patientId).push(row);
  return patientIds.map((id) => lists.get(id));
};
