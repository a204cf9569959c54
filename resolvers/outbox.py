"""The transactional outbox: events for subscribers and sinks, inserted in the transaction of the change they report.

An event is appended without a position. The relay (`resolvers/relay.py`) assigns its position and moves the watermark
when that is committed. Events are read up to the watermark, and never change again. An erasure of their patient deletes
them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

import orjson
from sqlalchemy import (
    BigInteger,
    ColumnClause,
    Integer,
    Text,
    Uuid,
    any_,
    bindparam,
    insert,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY

from models import Encounter, EncounterEventKind, OutboxEvent, Watermark, table_of
from resolvers.commands import EVERY_EVENT, EventFilter
from resolvers.ids import new_id
from resolvers.sql import Connection, Database, Statement

TABLE = table_of(OutboxEvent)
WATERMARK = table_of(Watermark)


# Appending

APPEND_EVENT = Statement(
    insert(TABLE).values(
        {
            name: bindparam(name, type_=column.type)
            for name, column in TABLE.c.items()
            if name not in {"created_at", "position", "published_at"}
        }
    )
)

ENCOUNTER_RECORDED = "patient_graph.encounter.recorded.v1"
ENCOUNTER_CHANGED = "patient_graph.encounter.changed.v1"
PATIENT_ERASED = "patient_graph.patient.erased.v1"
"""Tells sinks to erase the patient too. It concerns no encounter, so subscribers do not get it."""

IDENTITY = {name: name for name in ("patient_id", "brand_id", "encounter_type")} | {"encounter_id": "id"}
RECORDED_PAYLOAD = IDENTITY | {"recorded_at": "created_at"}
"""The members of a recording's event, exactly as published, and the members of the encounter with their values."""
CHANGED_PAYLOAD = IDENTITY | {"version": "version", "changed_at": "updated_at"}
"""The same for a change. Its event also has `kind`, the kind of the change."""


async def append_erasure(connection: Connection, brand_id: str, patient_id: str, at: datetime, actor_id: str) -> None:
    """Append the event of a patient's erasure."""
    payload = {"patient_id": patient_id, "brand_id": brand_id, "erased_at": at}
    await connection.fetch(
        APPEND_EVENT,
        patient_id=patient_id,
        id=new_id(),
        brand_id=brand_id,
        event_type=PATIENT_ERASED,
        payload=orjson.dumps(payload, option=orjson.OPT_UTC_Z).decode(),
        actor_id=actor_id,
        provider_ids=[],
        encounter_types=[],
        traceparent=None,
    )


async def append_event(
    connection: Connection,
    encounter: Encounter,
    kind: EncounterEventKind,
    actor_id: str,
    changes: Mapping[str, tuple[Any, Any]] | None = None,
    *,
    traceparent: str | None = None,
) -> None:
    """Append an event of an encounter: its id, patient, brand, type and time. Nothing clinical.

    `changes` maps the changed columns to their values before and after. A filter compares both values. `traceparent`
    names the running span.
    """
    recorded = kind is EncounterEventKind.RECORDED
    # `default=str` serializes asyncpg's UUID type, which orjson does not know.
    payload = {} if recorded else {"kind": kind}
    for name, source in (RECORDED_PAYLOAD if recorded else CHANGED_PAYLOAD).items():
        payload[name] = getattr(encounter, source)
    changes = changes or {}
    providers = changes.get("provider_id", (encounter.provider_id,))
    await connection.fetch(
        APPEND_EVENT,
        patient_id=encounter.patient_id,
        id=new_id(),
        brand_id=encounter.brand_id,
        event_type=ENCOUNTER_RECORDED if recorded else ENCOUNTER_CHANGED,
        # The driver returns ids as a subclass of UUID, which orjson does not serialize.
        payload=orjson.dumps(payload, default=str, option=orjson.OPT_UTC_Z).decode(),
        actor_id=actor_id,
        provider_ids=[provider_id for provider_id in providers if provider_id is not None],
        encounter_types=list(changes.get("encounter_type", (encounter.encounter_type,))),
        traceparent=traceparent,
    )


# Reading


# The payload of a recording has neither kind nor version. Events of an earlier version of the gateway have no types.
COMPUTED: Mapping[str, ColumnClause[Any]] = {
    "kind": literal_column("coalesce(payload ->> 'kind', 'recorded')", Text),
    "version": literal_column("coalesce(CAST(payload ->> 'version' AS integer), 1)", Integer),
    "encounter_types": literal_column("coalesce(encounter_types, ARRAY[payload ->> 'encounter_type'])", ARRAY(Text)),
}
"""Members of an event that are computed from its columns."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event with its position."""

    position: int
    id: UUID
    patient_id: str
    brand_id: str
    event_type: str
    payload: str
    created_at: datetime
    published_at: datetime
    kind: str
    version: int
    """The encounter's version that the change made."""
    actor_id: str | None
    """None in an event of an earlier version of the gateway, as are the providers."""
    provider_ids: Sequence[UUID] | None
    encounter_types: Sequence[str]
    traceparent: str | None = None
    """The span that made the change; None without traces. Source: W3C Trace Context, 3.2."""

    @property
    def concerns_encounter(self) -> bool:
        """Whether subscribers get it: it is the event of an encounter."""
        return self.event_type != PATIENT_ERASED


class Mark(NamedTuple):
    """The readable events: those after `pruned`, up to `position`."""

    pruned: int
    position: int

    def allows(self, after: int) -> bool:
        """Return whether a reader that has read up to `after` can continue without a gap."""
        return self.pruned <= after <= self.position


FIND_MARK = Statement(select(*(WATERMARK.c[name] for name in Mark._fields)))


async def find_mark(connection: Connection) -> Mark:
    """Return the watermark. Read it before the events: events read earlier may lie beyond the watermark read later."""
    row = await connection.fetch_one(FIND_MARK)
    assert row is not None, "the migration inserted it"
    return Mark(**row)


async def read_events(
    connection: Connection,
    after: int,
    until: int,
    limit: int,
    *,
    brand_id: str | None = None,
    filters: EventFilter = EVERY_EVENT,
) -> list[Event]:
    """Return the first events after one position up to another, in their order.

    Only those of a brand, unless `brand_id` is None, that match the filter. A full result of `limit` events may not be
    the last.
    """
    of = filters.criteria() | ({} if brand_id is None else {"brand_id": brand_id})
    rows = await connection.fetch(_events(frozenset(of)), after=after, until=until, limit=limit, **of)
    return [Event(**row) for row in rows]


@cache
def _events(of: frozenset[str]) -> Statement:
    every = {
        "brand_id": TABLE.c.brand_id == bindparam("brand_id", type_=Text),
        "patient_id": TABLE.c.patient_id == any_(bindparam("patient_id", type_=ARRAY(Text))),
        "encounter_type": COMPUTED["encounter_types"].overlap(bindparam("encounter_type", type_=ARRAY(Text))),
        "provider_id": or_(
            TABLE.c.provider_ids.is_(None), TABLE.c.provider_ids.overlap(bindparam("provider_id", type_=ARRAY(Uuid)))
        ),
        "kinds": COMPUTED["kind"] == any_(bindparam("kinds", type_=ARRAY(Text))),
    }
    return Statement(
        select(*(COMPUTED[name].label(name) if name in COMPUTED else TABLE.c[name] for name in Event.__slots__))
        .where(
            TABLE.c.position > bindparam("after"),
            TABLE.c.position <= bindparam("until"),
            *(every[name] for name in sorted(of)),
        )
        .order_by(TABLE.c.position)
        .limit(bindparam("limit", type_=BigInteger))
    )


# Interfaces for subscribers


class Reads(Database, Protocol):
    """Where to read the records of an event. Concurrent subscribers share one execution of the same statement."""

    position: int
    """Every read here reflects every event up to this position, and perhaps later ones."""


APPENDED: Final = "gateway_outbox"
"""NOTIFY channel: events were appended; the relay listens."""


MOVED: Final = "gateway_feed"
"""NOTIFY channel: the watermark moved; subscribers and sinks listen."""
