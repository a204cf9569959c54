"""The one statement that inserts the rows of a recording, for one encounter or for several.

The encounter, its version, its audit entry, its event and its key are inserted in one statement, and so in one
transaction. The key's row holds the first answer, which the statement composes from the encounter's row. Several
recordings of a brand may share the statement: they share the commit, which is most of a recording's cost. This form is
fastest on one server and slowest on a cluster. `resolvers/encounters/record.py` has the cluster's form, one statement
after another.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any

import orjson
from sqlalchemy import text

from models import MEMBERS, Kind
from resolvers.encounters.external_ids import NO_EXTERNAL_IDS
from resolvers.encounters.json_sql import WITH_JSON, joined, members_of, object_of, published_json
from resolvers.outbox import ENCOUNTER_RECORDED, RECORDED_PAYLOAD
from resolvers.services import Insertion, NewEncounter
from resolvers.sql import Database, Statement

COLUMNS = {
    name: "json" if member.kind is Kind.JSON else member.sql_type
    for name, member in MEMBERS.items()
    if name not in {"created_at", "updated_at"}
} | {
    "entry_id": "uuid", "event_id": "uuid", "actor_type": "text", "actor_id": "text", "actor_brand_id": "text",
    "request_id": "text", "client_id": "text", "key": "text", "request_hash": "bytea", "changes": "text",
    "traceparent": "text",
}  # fmt: skip
"""The SQL types of the values that are sent for each recording. A JSON object keeps the text that was sent."""

RESTORED_COLUMNS = COLUMNS | {"created_at": "timestamptz", "updated_at": "timestamptz"}
"""The same for each restored encounter."""

JSON_COLUMNS = tuple(name for name, member in MEMBERS.items() if member.kind is Kind.JSON)

_MEMBERS = ", ".join(MEMBERS)
_EVENT = object_of([(name, members_of("e", upper=False)[source]) for name, source in RECORDED_PAYLOAD.items()])

# An id is looked up by its index, among all patients of the brand. Another import may insert it at the same time.
NOT_RESTORED_YET = """(
        SELECT count(*) FROM (
            SELECT FROM patient_graph.encounters x
            WHERE x.id = known.id AND x.brand_id = CAST(:brand_id AS text) LIMIT 1
        ) x
    ) = 0
    ON CONFLICT DO NOTHING"""


def _rows(*, restored: bool) -> str:
    """Return the SQL that inserts the rows of an encounter; `restored`: with the times of recording that were sent."""
    times = "" if restored else ", now() AS created_at, now() AS updated_at"
    condition = NOT_RESTORED_YET if restored else "key IS NULL OR id IN (SELECT encounter_id FROM claimed)"
    details = '{"restored": true}' if restored else "{}"
    # Each patient is looked up separately. The planner does not know the number of rows sent, and would read the whole
    # table of a few thousand patients. Keys are claimed in one global order, so that two concurrent statements cannot
    # deadlock. Events are appended in the order of the encounters, which the relay preserves.
    return f"""
known AS (
    {WITH_JSON} FROM (
        SELECT sent.*{times}
        FROM sent, LATERAL (
            SELECT FROM patient_graph.patients p
            WHERE p.id = sent.patient_id AND p.brand_id = CAST(:brand_id AS text) LIMIT 1
        ) p
    ) e
),
claimed AS (
    INSERT INTO patient_graph.idempotency_keys AS claim (
        brand_id, client_id, key, request_hash, patient_id, encounter_id, answer, expires_at
    )
    SELECT
        brand_id, client_id, key, request_hash, patient_id, id, convert_to({joined(published_json("e"))}, 'UTF8'),
        created_at + CAST(:kept_for AS interval)
    FROM known e WHERE key IS NOT NULL ORDER BY client_id COLLATE "C", key COLLATE "C", id
    ON CONFLICT DO NOTHING
    RETURNING claim.encounter_id
),
recorded AS (
    INSERT INTO patient_graph.encounters AS e ({_MEMBERS})
    SELECT {_MEMBERS} FROM known WHERE {condition}
    RETURNING e.id
),
inserted AS (
    SELECT known.* FROM known JOIN recorded USING (id)
),
versioned AS (
    INSERT INTO patient_graph.encounter_versions (
        patient_id, encounter_id, version, brand_id, kind, changed_at, actor_type, actor_id, request_id, changes
    )
    SELECT
        patient_id, id, version, brand_id, 'recorded', updated_at, actor_type, actor_id, request_id,
        CAST(changes AS jsonb)
    FROM inserted
),
audited AS (
    INSERT INTO patient_graph.audit_log (
        patient_id, id, actor_type, actor_id, actor_brand_id, event_type, entity_type, entity_id, brand_id, request_id,
        details
    )
    SELECT
        patient_id, entry_id, actor_type, actor_id, actor_brand_id, 'patient_graph.encounter.recorded', 'encounter',
        CAST(id AS text), brand_id, request_id, '{details}'
    FROM inserted
),
appended AS (
    INSERT INTO patient_graph.outbox (
        patient_id, id, brand_id, event_type, payload, actor_id, provider_ids, encounter_types, traceparent
    )
    SELECT
        patient_id, event_id, brand_id, CAST(:event_type AS text), CAST({joined(_EVENT)} AS jsonb),
        actor_id, array_remove(ARRAY[provider_id], NULL), ARRAY[encounter_type], traceparent
    FROM inserted e ORDER BY id
)
"""  # noqa: S608 - of names above


# Left out if no encounter has external ids, so that the usual statement does not pay for it.
IDENTIFY = """,
identified AS (
    INSERT INTO patient_graph.encounter_external_ids (patient_id, encounter_id, system, value, brand_id)
    SELECT e.patient_id, e.id, each.key, each.value, e.brand_id
    FROM inserted e, json_each_text(e.external_ids) each
)
"""

OUTCOMES = """
SELECT
    sent.id, known.id IS NOT NULL AS is_known,
    CASE WHEN inserted.id IS NOT NULL THEN inserted.created_at END AS created_at
FROM sent LEFT JOIN known USING (id) LEFT JOIN inserted USING (id)
"""


# Set within the statement, because a separate statement would cost a round trip. It holds until the transaction ends,
# which is this statement, so a pooler never passes it on. It is evaluated before `sent` has a row, and locks are taken
# after that.
LIMIT_LOCK_WAITS = "set_config('lock_timeout', CAST(:lock_timeout AS text), true)"

NO_LOCK_TIMEOUT = "0"


@cache
def _insert(*, many: bool, identified: bool, restored: bool) -> Statement:
    """Return the statement for one encounter or for several.

    `identified`: whether any of them has external ids. `restored`: whether they have their times of recording.
    """
    sent = RESTORED_COLUMNS if restored else COLUMNS
    if many:
        columns = ", ".join(f"{name} {kind}" for name, kind in sent.items())
        rows = f"SELECT sent.* FROM {LIMIT_LOCK_WAITS}, json_to_recordset(CAST(:sent AS json)) AS sent ({columns})"  # noqa: S608 - built from constants of this module
    else:
        values = ", ".join(f"CAST(:{name} AS {kind}) AS {name}" for name, kind in sent.items())
        rows = f"SELECT {values} FROM {LIMIT_LOCK_WAITS}"  # noqa: S608 - built from constants of this module
    return Statement(
        text(f"WITH sent AS ({rows}),{_rows(restored=restored)}{IDENTIFY if identified else ''}{OUTCOMES}")
    )


async def insert_at_once(
    database: Database,
    brand_id: str,
    news: Sequence[NewEncounter],
    *,
    kept_for: timedelta,
    within_seconds: float,
    lock_timeout: str = NO_LOCK_TIMEOUT,
) -> list[Insertion]:
    """Insert recordings of one brand in one statement, and return the outcome of each, in their order.

    Args:
        database: The database to insert into.
        brand_id: The brand of all recordings.
        news: The recordings; all or none of them restored.
        kept_for: How long their idempotency keys are stored.
        within_seconds: Maximum wait for a connection.
        lock_timeout: Maximum wait for a lock of another transaction, in PostgreSQL's form (`50ms`).

    Raises:
        Locked: A lock was held for longer; no recording was inserted.
        PatientErased: A patient was erased during the statement; no recording was inserted.
        TemporarilyUnavailable: No recording was inserted.
        OutcomeUnknown: The connection was lost.
        asyncpg.PostgresError: A row violates a constraint; no recording was inserted.
    """
    many = len(news) > 1
    restored = "created_at" in news[0].columns
    identified = any(new.columns["external_ids"] != NO_EXTERNAL_IDS for new in news)
    values = {"sent": _written(news)} if many else _values(news[0])
    values |= {
        "brand_id": brand_id,
        "kept_for": kept_for,
        "event_type": ENCOUNTER_RECORDED,
        "lock_timeout": lock_timeout,
    }
    async with database.autocommit(brand_id, within_seconds) as connection:
        rows = await connection.fetch(_insert(many=many, identified=identified, restored=restored), **values)
    insertions = {row["id"]: Insertion(row["is_known"], row["created_at"]) for row in rows}
    return [insertions[new.columns["id"]] for new in news]


def _values(new: NewEncounter) -> dict[str, Any]:
    """Return the values of `COLUMNS`."""
    values = new._asdict()
    columns = values.pop("columns")
    # The driver sends JSON as bytes.
    return {**columns, **{name: columns[name].encode() for name in JSON_COLUMNS}, **values}


def _written(news: Sequence[NewEncounter]) -> bytes:
    # One JSON text costs less than half of the driver's time to encode twenty lists value by value.
    rows = [values | {name: orjson.Fragment(values[name]) for name in JSON_COLUMNS} for values in map(_values, news)]
    return orjson.dumps(rows, default=_hexadecimal)


def _hexadecimal(value: object) -> str:
    """Return bytes in PostgreSQL's hexadecimal format."""
    if not isinstance(value, bytes):
        raise TypeError
    return f"\\x{value.hex()}"
