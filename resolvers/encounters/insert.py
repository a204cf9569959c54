"""The rows of a recording, and the one statement that inserts them, for one encounter or for several.

The encounter, its version, its audit entry, its event and its key are inserted in one statement, and so in one
transaction. Several recordings of a brand may share it: they share the commit, which is most of a recording's cost.
This form is fastest on one server and slowest on a cluster. `resolvers/encounters/record.py` has the cluster's form,
one statement after another.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple, Self

import orjson
from sqlalchemy import text

from resolvers import json_text
from resolvers.outbox import ENCOUNTER_RECORDED
from resolvers.services import Kept, NewEncounter
from resolvers.sql import Database, Statement

# The first answer

TO_COME = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
"""Placeholder in an answer that is written before the row: the database replaces it by the time of recording."""

WRITTEN_TO_COME = json_text.instant(TO_COME)


class Answer(NamedTuple):
    """An answer in the published form, split at its two occurrences of the time of recording."""

    head: str | None
    middle: str | None
    tail: str | None

    @classmethod
    def of(cls, published: bytes) -> Self:
        """Split an answer whose two times are `TO_COME`."""
        # The times are its last two members, so text that a person wrote cannot be mistaken for them.
        return cls(*published.decode().rsplit(WRITTEN_TO_COME, 2))

    def at(self, time: datetime) -> bytes | None:
        """Return the answer with its times filled in, or None if there is no answer."""
        if self.head is None:
            return None
        instant = json_text.instant(time)
        return f"{self.head}{instant}{self.middle}{instant}{self.tail}".encode()


NO_ANSWER = Answer(None, None, None)
"""For a recording without a key, whose answer is not stored."""


# The statement

COLUMNS = {
    "patient_id": "text", "id": "uuid", "provider_id": "uuid", "encounter_type": "text", "scheduled_at": "timestamptz",
    "chief_complaint": "text", "notes": "text", "metadata": "jsonb", "entry_id": "uuid", "event_id": "uuid",
    "actor_type": "text", "actor_id": "text", "actor_brand_id": "text", "request_id": "text", "client_id": "text",
    "key": "text", "request_hash": "bytea", "answer_head": "text", "answer_middle": "text", "answer_tail": "text",
}  # fmt: skip

OF_THE_ENCOUNTER = tuple(COLUMNS)[:8]
"""The encounter's own columns."""

# Each patient is looked up separately. The planner does not know the number of rows sent, and would read the whole
# table of a few thousand patients. Keys are claimed in one global order, so that two concurrent statements cannot
# deadlock. Events are appended in the order of the encounters, which the relay preserves.
KEEP = """
known AS (
    SELECT sent.*, now() AS at, replace(
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z'
    ) AS instant
    FROM sent, LATERAL (
        SELECT FROM patient_graph.patients p
        WHERE p.id = sent.patient_id AND p.brand_id = CAST(:brand_id AS text) LIMIT 1
    ) p
),
claimed AS (
    INSERT INTO patient_graph.idempotency_keys AS claim (
        brand_id, client_id, key, request_hash, patient_id, encounter_id, answer, expires_at
    )
    SELECT
        CAST(:brand_id AS text), client_id, key, request_hash, patient_id, id,
        convert_to(answer_head || instant || answer_middle || instant || answer_tail, 'UTF8'),
        at + CAST(:kept_for AS interval)
    FROM known WHERE key IS NOT NULL ORDER BY client_id COLLATE "C", key COLLATE "C", id
    ON CONFLICT DO NOTHING
    RETURNING claim.encounter_id
),
recorded AS (
    INSERT INTO patient_graph.encounters AS e (
        patient_id, id, brand_id, provider_id, encounter_type, scheduled_at, chief_complaint, notes, metadata,
        created_at, updated_at
    )
    SELECT
        patient_id, id, CAST(:brand_id AS text), provider_id, encounter_type, scheduled_at, chief_complaint, notes,
        metadata, at, at
    FROM known WHERE key IS NULL OR id IN (SELECT encounter_id FROM claimed)
    RETURNING e.id
),
kept AS (
    SELECT known.* FROM known JOIN recorded USING (id)
),
versioned AS (
    INSERT INTO patient_graph.encounter_versions (
        patient_id, encounter_id, version, brand_id, kind, changed_at, actor_type, actor_id, request_id, changes
    )
    SELECT patient_id, id, 1, CAST(:brand_id AS text), 'recorded', at, actor_type, actor_id, request_id, '{}' FROM kept
),
audited AS (
    INSERT INTO patient_graph.audit_log (
        patient_id, id, actor_type, actor_id, actor_brand_id, event_type, entity_type, entity_id, brand_id, request_id
    )
    SELECT
        patient_id, entry_id, actor_type, actor_id, actor_brand_id, 'patient_graph.encounter.recorded', 'encounter',
        CAST(id AS text), CAST(:brand_id AS text), request_id
    FROM kept
),
appended AS (
    INSERT INTO patient_graph.outbox (patient_id, id, brand_id, event_type, payload)
    SELECT
        patient_id, event_id, CAST(:brand_id AS text), CAST(:event_type AS text),
        jsonb_build_object(
            'encounter_id', id, 'patient_id', patient_id, 'brand_id', CAST(:brand_id AS text),
            'encounter_type', encounter_type, 'recorded_at', instant
        )
    FROM kept ORDER BY id
)
SELECT sent.id, known.id IS NOT NULL AS is_known, CASE WHEN kept.id IS NOT NULL THEN kept.at END AS created_at
FROM sent LEFT JOIN known USING (id) LEFT JOIN kept USING (id)
"""


# Set within the statement, because a separate statement would cost a round trip. It holds until the transaction ends,
# which is this statement, so a pooler never passes it on. It is evaluated before `sent` has a row, and locks are taken
# after that.
LIMIT_LOCK_WAITS = "set_config('lock_timeout', CAST(:lock_timeout AS text), true)"

NO_LOCK_TIMEOUT = "0"


@cache
def _keep(many: bool) -> Statement:
    if many:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        rows = f"SELECT sent.* FROM {LIMIT_LOCK_WAITS}, json_to_recordset(CAST(:sent AS json)) AS sent ({columns})"  # noqa: S608 - built from constants of this module
    else:
        values = ", ".join(f"CAST(:{name} AS {kind}) AS {name}" for name, kind in COLUMNS.items())
        rows = f"SELECT {values} FROM {LIMIT_LOCK_WAITS}"  # noqa: S608 - built from constants of this module
    return Statement(text(f"WITH sent AS ({rows}),{KEEP}"))


async def keep_at_once(
    database: Database,
    brand_id: str,
    news: Sequence[NewEncounter],
    *,
    kept_for: timedelta,
    within_seconds: float,
    lock_timeout: str = NO_LOCK_TIMEOUT,
) -> list[Kept]:
    """Insert recordings of one brand in one statement, and return the outcome of each, in their order.

    Args:
        database: The database to insert into.
        brand_id: The brand of all recordings.
        news: The recordings.
        kept_for: How long their idempotency keys are stored.
        within_seconds: Maximum wait for a connection.
        lock_timeout: Maximum wait for a lock of another transaction, in PostgreSQL's form (`50ms`).

    Raises:
        Locked: A lock was held for longer; no recording was inserted.
        TemporarilyUnavailable: No recording was inserted.
        OutcomeUnknown: The connection was lost.
        asyncpg.PostgresError: A row violates a constraint; no recording was inserted.
    """
    many = len(news) > 1
    sent = {"sent": _written(news)} if many else news[0]._asdict()
    async with database.autocommit(brand_id, within_seconds) as connection:
        rows = await connection.fetch(
            _keep(many),
            **sent,
            brand_id=brand_id,
            kept_for=kept_for,
            event_type=ENCOUNTER_RECORDED,
            lock_timeout=lock_timeout,
        )
    kept = {row["id"]: Kept(row["is_known"], row["created_at"]) for row in rows}
    return [kept[new.id] for new in news]


def _written(news: Sequence[NewEncounter]) -> bytes:
    # One JSON text costs less than half of the driver's time to encode twenty lists value by value.
    rows = [new._asdict() | {"metadata": orjson.Fragment(new.metadata)} for new in news]
    return orjson.dumps(rows, default=_hexadecimal)


def _hexadecimal(value: object) -> str:
    """Return bytes in PostgreSQL's hexadecimal format."""
    if not isinstance(value, bytes):
        raise TypeError
    return f"\\x{value.hex()}"
