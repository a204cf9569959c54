"""What is kept of a recording, and the one statement that keeps it: for one encounter, or for many at once.

The encounter, its version, its audit entry, its event and its key are one statement, and so one transaction. Several
recordings of a brand may share it: then they share the commit too, which is most of what a recording costs. One server
likes this form best and a cluster likes it least; the cluster's is in `resolvers/encounters/record.py`, step by step.
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
"""In an answer that is written before the row is: the time that the database will say."""

WRITTEN_TO_COME = json_text.instant(TO_COME)


class Answer(NamedTuple):
    """An answer in the published form, in which nothing is missing but the time of recording, twice."""

    head: str | None
    middle: str | None
    tail: str | None

    @classmethod
    def of(cls, published: bytes) -> Self:
        """Take apart an answer whose two times are `TO_COME`."""
        # They are its last two members: nothing that a person wrote can be taken for them.
        return cls(*published.decode().rsplit(WRITTEN_TO_COME, 2))

    def at(self, time: datetime) -> bytes | None:
        """Give the answer with its times, or None where there is none."""
        if self.head is None:
            return None
        instant = json_text.instant(time)
        return f"{self.head}{instant}{self.middle}{instant}{self.tail}".encode()


NO_ANSWER = Answer(None, None, None)
"""Where there is no key to keep it for."""


# The statement

COLUMNS = {
    "patient_id": "text", "id": "uuid", "provider_id": "uuid", "encounter_type": "text", "scheduled_at": "timestamptz",
    "chief_complaint": "text", "notes": "text", "metadata": "jsonb", "entry_id": "uuid", "event_id": "uuid",
    "actor_type": "text", "actor_id": "text", "actor_brand_id": "text", "request_id": "text", "client_id": "text",
    "key": "text", "request_hash": "bytea", "answer_head": "text", "answer_middle": "text", "answer_tail": "text",
}  # fmt: skip

OF_THE_ENCOUNTER = tuple(COLUMNS)[:8]
"""Those that are the encounter's own."""

# Each patient is looked up by itself: the planner, which cannot know how many were sent, would read them all where they
# are few thousands. Keys are claimed in one order, whoever's they are, so that two statements at once cannot wait for
# each other. Events are appended in the order of the encounters: the relay goes by that.
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
told AS (
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


# In the statement itself, because a statement of its own would cost a round trip. It holds until the transaction ends,
# which is this statement, so a pooler passes nothing of it on. It is evaluated before `sent` has a row, and locks are
# taken after that.
LIMIT_LOCK_WAITS = "set_config('lock_timeout', CAST(:lock_timeout AS text), true)"

NO_LOCK_TIMEOUT = "0"


@cache
def _keep(many: bool) -> Statement:
    if many:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        rows = f"SELECT sent.* FROM {LIMIT_LOCK_WAITS}, json_to_recordset(CAST(:sent AS json)) AS sent ({columns})"  # noqa: S608 - of names above
    else:
        values = ", ".join(f"CAST(:{name} AS {kind}) AS {name}" for name, kind in COLUMNS.items())
        rows = f"SELECT {values} FROM {LIMIT_LOCK_WAITS}"  # noqa: S608 - of names above
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
    """Keep recordings of one brand in one statement, and say what came of each, in their order.

    Args:
        database: Where to keep them.
        brand_id: Whose they are.
        news: What to keep.
        kept_for: How long their keys are kept.
        within_seconds: How long to wait for a connection.
        lock_timeout: How long to wait for a lock that another transaction holds, in PostgreSQL's form (`50ms`).

    Raises:
        Locked: A lock was held for longer; none was kept.
        TemporarilyUnavailable: None was kept.
        OutcomeUnknown: The connection was lost.
        asyncpg.PostgresError: A row breaks a rule of the database's; none was kept.
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
    # One text costs less than half of what the driver takes to look at twenty lists, value by value.
    rows = [new._asdict() | {"metadata": orjson.Fragment(new.metadata)} for new in news]
    return orjson.dumps(rows, default=_hexadecimal)


def _hexadecimal(value: object) -> str:
    """Write bytes as PostgreSQL reads them."""
    if not isinstance(value, bytes):
        raise TypeError
    return f"\\x{value.hex()}"
