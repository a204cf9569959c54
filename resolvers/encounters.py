"""Recording an encounter, and reading encounters back. Start reading here.

Both doors call these functions; each owns its transaction, checks who may first, and answers after the commit.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, FromClause, Table, any_, bindparam, func, insert, select, true, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Text

from models import Encounter, EncounterEventKind, Encounters, EncounterStatus, IdempotencyKey, Patient
from resolvers.access import Operation
from resolvers.audit import append_entry, encounter_event
from resolvers.bounded import LONG, BoundedStatement
from resolvers.commands import EVERYTHING, EncounterFilter, RecordEncounter, uuid_of
from resolvers.context import Context
from resolvers.errors import EncounterNotFound, OutcomeUnknown, PatientNotFound, TemporarilyUnavailable
from resolvers.idempotency import Claim, claim_key, claim_of, find_claimed
from resolvers.ids import new_id
from resolvers.outbox import append_event, find_mark
from resolvers.paging import Page, Window, page_of
from resolvers.patients import can_exist, time_at
from resolvers.recording import NO_ANSWER, OF_THE_ENCOUNTER, TO_COME, Answer, Kept, NewEncounter
from resolvers.sql import Connection, Row, Statement
from resolvers.versions import append_version

TABLE: Table = Encounters.__table__  # type: ignore[attr-defined]
RECORDED = EncounterEventKind.RECORDED


# Recording

INSERT_ENCOUNTER = Statement(
    insert(TABLE).values({column.name: bindparam(column.name, type_=column.type) for column in TABLE.c})
)


class Recording(NamedTuple):
    """A recorded encounter."""

    encounter: Encounter
    """As it stands now."""
    first_answer: bytes | None = None
    """In the published form, as it was when it was recorded: what its key repeats. None where nobody has written it."""
    replayed: bool = False
    """Whether it was recorded earlier, under the same key."""


async def record_encounter(
    context: Context, patient_id: str, members: Mapping[str, Any], key: str | None = None
) -> Recording:
    """Record that an encounter happened; once, if the caller names an idempotency key.

    `members` are those of the `RecordEncounter` command, unchecked: checking them is part of recording, because who
    may comes before what was sent. Raises `InsufficientScope`, `Forbidden`, `InvalidInput`, `IdempotencyKeyReused`,
    `PatientNotFound`, `TemporarilyUnavailable` or `OutcomeUnknown`, in this order.
    """
    context.require(Operation.RECORD_ENCOUNTER)
    brand_id = context.acting_brand(members.get("brand_id"))
    command = RecordEncounter.read(members, context.services.input_limits, strict=context.strict)
    claim = None if key is None else claim_of(key, context, brand_id, patient_id, command)

    columns = columns_of(command, patient_id)
    kept, answer = await _keep(context, brand_id, columns, claim)
    if kept.created_at is None:
        return await _replay(context, claim, kept)
    context.services.feed.ring()
    context.services.tally.recorded(replayed=False)
    return Recording(recorded(columns, kept.created_at), answer.at(kept.created_at))


def columns_of(command: RecordEncounter, patient_id: str) -> dict[str, Any]:
    """Give the row of a new encounter: scheduled, at version 1. Only the times of recording are still to come."""
    return {
        "patient_id": patient_id,
        "id": new_id(),
        "status": EncounterStatus.SCHEDULED,
        "started_at": None,
        "ended_at": None,
        "version": 1,
        **command.given(),
    }


def recorded(columns: Mapping[str, Any], at: datetime) -> Encounter:
    """Give the encounter of a row, as it is when it is recorded."""
    return Encounter(**columns, created_at=at, updated_at=at)


async def _keep(
    context: Context, brand_id: str, columns: Mapping[str, Any], claim: Claim | None
) -> tuple[Kept, Answer]:
    """Keep an encounter. Gives what came of it, and the answer that is kept for its key where that is known here."""
    if not can_exist(columns["patient_id"]):
        return Kept(patient_is_known=False, created_at=None), NO_ANSWER
    if context.services.recorder is None:
        return await _keep_step_by_step(context, brand_id, columns, claim), NO_ANSWER
    caller = context.caller
    answer = Answer.of(context.services.published(recorded(columns, TO_COME))) if claim else NO_ANSWER
    new = NewEncounter(
        **{name: columns[name] for name in OF_THE_ENCOUNTER},
        entry_id=new_id(),
        event_id=new_id(),
        actor_type=caller.actor_type,
        actor_id=caller.actor_id,
        actor_brand_id=caller.brand_id,
        request_id=context.request_id,
        client_id=caller.client_id,
        key=claim.key if claim else None,
        request_hash=claim.request_hash if claim else None,
        answer_head=answer.head,
        answer_middle=answer.middle,
        answer_tail=answer.tail,
    )
    return await context.services.recorder.keep(brand_id, new), answer


async def _keep_step_by_step(context: Context, brand_id: str, columns: Mapping[str, Any], claim: Claim | None) -> Kept:
    """Keep an encounter by one statement after the other: the form that a cluster likes, each of one patient."""
    async with context.database.transaction(brand_id) as connection:
        kept = await claim_place(context, connection, columns, claim)
        if kept.created_at is not None:
            await insert_encounter(context, connection, columns, kept.created_at)
    return kept


async def claim_place(
    context: Context, connection: Connection, columns: Mapping[str, Any], claim: Claim | None
) -> Kept:
    """Claim the key, if there is one, for an encounter whose patient is known, and say when it is recorded."""
    now = await time_at(connection, columns["brand_id"], columns["patient_id"])
    if now is None:
        return Kept(patient_is_known=False, created_at=None)
    if claim:
        encounter = recorded(columns, now)
        kept_until = now + context.services.keys_kept_for
        if not await claim_key(connection, claim, encounter, context.services.published(encounter), kept_until):
            return Kept(patient_is_known=True, created_at=None)
    return Kept(patient_is_known=True, created_at=now)


async def insert_encounter(
    context: Context, connection: Connection, columns: Mapping[str, Any], now: datetime
) -> Encounter:
    """Insert an encounter with its version, its audit entry and its event; its key is claimed already."""
    encounter = recorded(columns, now)
    await connection.fetch(INSERT_ENCOUNTER, **columns, created_at=now, updated_at=now)
    await append_version(connection, context, encounter, RECORDED)
    await append_entry(connection, context, encounter_event(RECORDED), encounter)
    await append_event(connection, encounter, RECORDED)
    return encounter


KEY_UNREAD = "The database was lost while it was asked what the key stands for; ask again before you send again."


async def _replay(context: Context, claim: Claim | None, kept: Kept) -> Recording:
    """Give what was recorded under the key earlier. Raises what else an encounter that was not kept means."""
    if claim is not None:
        try:
            async with context.database.reading(claim.brand_id) as connection:
                if earlier := await find_claimed(connection, claim):
                    encounter = await encounter_of_key(context, connection, earlier)
                    context.services.tally.recorded(replayed=True)
                    return Recording(encounter, earlier.answer, replayed=True)
        except TemporarilyUnavailable as error:
            # The key is taken, and perhaps by this very encounter: "no" would be a guess.
            raise OutcomeUnknown(KEY_UNREAD) from error
    if kept.patient_is_known:
        # The key was there a moment ago and has just expired: the caller's next try will claim it.
        raise TemporarilyUnavailable
    raise PatientNotFound


async def encounter_of_key(context: Context, connection: Connection, key: IdempotencyKey) -> Encounter:
    """Give the encounter that a key stands for, as it is now."""
    of = {"brand_id": key.brand_id, "patient_id": key.patient_id, "id": key.encounter_id}
    encounter = _encounter(await connection.fetch_one(ENCOUNTER_OF_PATIENT, **of))
    context.note_read([encounter])
    return encounter


# Reading


OF_BRAND = TABLE.c.brand_id == bindparam("brand_id")
OF_PATIENT = TABLE.c.patient_id == bindparam("patient_id")

ENCOUNTERS_BY_IDS = BoundedStatement(
    select(TABLE).where(TABLE.c.id == any_(bindparam("ids", type_=ARRAY(TABLE.c.id.type))), OF_BRAND), LONG
)
ENCOUNTER_OF_PATIENT = Statement(
    select(TABLE).where(OF_PATIENT, TABLE.c.id == bindparam("id", type_=TABLE.c.id.type), OF_BRAND)
)


async def encounters_by_ids(context: Context, ids: Sequence[UUID]) -> list[Encounter | None]:
    """Give the encounters the caller may see, in the order of `ids`, None where there is none."""
    context.require(Operation.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    async with context.database.reading(brand_id) as connection:
        rows = await ENCOUNTERS_BY_IDS.fetch(context.answer, connection, len(ids), brand_id=brand_id, ids=ids)
    found = {row["id"]: _encounter(row) for row in rows}
    context.note_read(found.values())
    return [found.get(encounter_id) for encounter_id in ids]


async def visible_encounter(context: Context, patient_id: str, encounter_id: str) -> Encounter:
    """Give an encounter of a patient.

    Raises `EncounterNotFound`, in the same words whether it is another patient's, another brand's or nobody's, or the
    text is no id at all.
    """
    context.require(Operation.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    uuid = uuid_of(encounter_id)
    if uuid is None or not can_exist(patient_id):
        raise EncounterNotFound
    async with context.database.reading(brand_id) as connection:
        row = await connection.fetch_one(ENCOUNTER_OF_PATIENT, brand_id=brand_id, patient_id=patient_id, id=uuid)
    if row is None:
        raise EncounterNotFound
    encounter = _encounter(row)
    context.note_read([encounter])
    return encounter


async def list_encounters(
    context: Context,
    patient_ids: Sequence[str],
    window: Window,
    narrow: EncounterFilter = EVERYTHING,
    *,
    for_feed: bool = False,
) -> list[Page]:
    """Give one page of encounters for each patient, in the order of `patient_ids`; all in one statement.

    With `for_feed` each page has its position in the feed.
    """
    context.require(Operation.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    parts = narrow.parts()
    places = {
        f"{side}_{name}": value
        for side in ("after", "before")
        if (position := getattr(window, side))
        for name, value in zip(("created_at", "id"), position, strict=True)
    }
    statement = _pages(frozenset(parts), window.forward, window.after is not None, window.before is not None)
    async with context.database.reading(brand_id) as connection:
        position = await _feed_position(context, connection) if for_feed else None
        # One row more than asked for tells whether the list goes on.
        values = {"patient_ids": patient_ids, "limit": window.size + 1, **parts, **places}
        most = len(patient_ids) * (window.size + 1)
        rows = await statement.fetch(context.answer, connection, most, brand_id=brand_id, **values)
    by_patient: dict[str, list[Encounter]] = {}
    for row in rows:
        by_patient.setdefault(row["patient_id"], []).append(_encounter(row))
    pages = [page_of(by_patient.get(patient_id, []), window, position) for patient_id in patient_ids]
    context.note_read(encounter for page in pages for encounter in page.items)
    return pages


async def _feed_position(context: Context, connection: Connection) -> int:
    """Return a position up to which everything is committed, to be asked before the rows that shall show it."""
    if context.reads is not None:
        # Rows of an event may be another subscriber's, who read them earlier than the watermark is read here.
        return context.reads.position
    return (await find_mark(connection)).position


async def count_encounters(
    context: Context, patient_ids: Sequence[str], narrow: EncounterFilter = EVERYTHING
) -> list[int]:
    """Count the encounters of each patient, in the order of `patient_ids`; all in one statement."""
    context.require(Operation.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    parts = narrow.parts()
    async with context.database.reading(brand_id) as connection:
        rows = await connection.fetch(_counts(frozenset(parts)), brand_id=brand_id, patient_ids=patient_ids, **parts)
    counts = {row["patient_id"]: row["count"] for row in rows}
    return [counts.get(patient_id, 0) for patient_id in patient_ids]


@cache
def _pages(parts: frozenset[str], forward: bool, after: bool, before: bool) -> BoundedStatement:
    # Driven from the table with `= ANY`, never from the parameter: that form a cluster can push down to its shards.
    patients: Table = Patient.__table__  # type: ignore[attr-defined]
    place = tuple_(TABLE.c.created_at, TABLE.c.id)
    conditions = _conditions(parts)
    if after:
        conditions.append(place < _position("after"))
    if before:
        conditions.append(place > _position("before"))
    page = (
        select(TABLE)
        .where(TABLE.c.patient_id == patients.c.id, TABLE.c.brand_id == patients.c.brand_id, *conditions)
        .order_by(*_order(TABLE, forward))
        .limit(bindparam("limit", type_=BigInteger))
        .lateral("page")
    )
    rows = (
        select(page)
        .select_from(patients.join(page, true()))
        .where(
            patients.c.id == any_(bindparam("patient_ids", type_=ARRAY(Text))),
            patients.c.brand_id == bindparam("brand_id"),
        )
        .order_by(*_order(page, forward))
    )
    return BoundedStatement(rows, LONG)


@cache
def _counts(parts: frozenset[str]) -> Statement:
    return Statement(
        select(TABLE.c.patient_id, func.count().label("count"))
        .where(TABLE.c.patient_id == any_(bindparam("patient_ids", type_=ARRAY(Text))), OF_BRAND, *_conditions(parts))
        .group_by(TABLE.c.patient_id)
    )


def _conditions(parts: frozenset[str]) -> list[ColumnElement[bool]]:
    every = {
        "encounter_type": TABLE.c.encounter_type == any_(bindparam("encounter_type", type_=ARRAY(Text))),
        "status": TABLE.c.status == any_(bindparam("status", type_=ARRAY(Text))),
        "provider_id": TABLE.c.provider_id == bindparam("provider_id"),
        "scheduled_from": TABLE.c.scheduled_at >= bindparam("scheduled_from"),
        "scheduled_until": TABLE.c.scheduled_at < bindparam("scheduled_until"),
    }
    return [every[part] for part in sorted(parts)]


def _position(side: str) -> ColumnElement[Any]:
    columns = (TABLE.c.created_at, TABLE.c.id)
    return tuple_(*(bindparam(f"{side}_{column.name}", type_=column.type) for column in columns))


def _order(table: FromClause, newest_first: bool) -> list[ColumnElement[Any]]:
    columns = (table.c.created_at, table.c.id)
    return [column.desc() if newest_first else column.asc() for column in columns]


COLUMNS = len(TABLE.c)


def _encounter(row: Row) -> Encounter:
    # Its members are the table's columns, in their order; what a statement counts stands behind them.
    return Encounter(*row[:COLUMNS])
