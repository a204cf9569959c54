"""Read encounters: by id, by key, and as pages of a patient's list."""

from collections.abc import Sequence
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, FromClause, any_, bindparam, func, select, true, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Text

from models import Encounter, Encounters, IdempotencyKey, Patient, table_of
from resolvers.access import Permission
from resolvers.bounded_rows import LONG, BoundedStatement
from resolvers.commands import EVERYTHING, EncounterFilter, uuid_of
from resolvers.context import Context
from resolvers.errors import EncounterNotFound
from resolvers.outbox import find_mark
from resolvers.paging import Page, Window, page_of
from resolvers.patients import can_exist
from resolvers.sql import Connection, Row, Statement

TABLE = table_of(Encounters)


async def encounter_of_key(context: Context, connection: Connection, key: IdempotencyKey) -> Encounter:
    """Return the current state of the encounter that a key stands for."""
    of = {"brand_id": key.brand_id, "patient_id": key.patient_id, "id": key.encounter_id}
    encounter = _encounter(await connection.fetch_one(ENCOUNTER_OF_PATIENT, **of))
    context.note_read([encounter])
    return encounter


OF_BRAND = TABLE.c.brand_id == bindparam("brand_id")


OF_PATIENT = TABLE.c.patient_id == bindparam("patient_id")


ENCOUNTERS_BY_IDS = BoundedStatement(
    select(TABLE).where(TABLE.c.id == any_(bindparam("ids", type_=ARRAY(TABLE.c.id.type))), OF_BRAND), LONG
)


ENCOUNTER_OF_PATIENT = Statement(
    select(TABLE).where(OF_PATIENT, TABLE.c.id == bindparam("id", type_=TABLE.c.id.type), OF_BRAND)
)


async def encounters_by_ids(context: Context, ids: Sequence[UUID]) -> list[Encounter | None]:
    """Return the encounters that the caller may see, in the order of `ids`; None for an id that is not found."""
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    async with context.database.connection(brand_id) as connection:
        rows = await ENCOUNTERS_BY_IDS.fetch(context.answer, connection, len(ids), brand_id=brand_id, ids=ids)
    found = {row["id"]: _encounter(row) for row in rows}
    context.note_read(found.values())
    return [found.get(encounter_id) for encounter_id in ids]


async def visible_encounter(context: Context, patient_id: str, encounter_id: str) -> Encounter:
    """Return an encounter of a patient.

    Raises `EncounterNotFound` with the same message whether the encounter belongs to another patient or brand, does not
    exist, or the text is not an id.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    uuid = uuid_of(encounter_id)
    if uuid is None or not can_exist(patient_id):
        raise EncounterNotFound
    async with context.database.connection(brand_id) as connection:
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
    filters: EncounterFilter = EVERYTHING,
    *,
    for_feed: bool = False,
) -> list[Page]:
    """Return one page of encounters for each patient, in the order of `patient_ids`, from one statement.

    With `for_feed`, each page has its position in the feed.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    parts = filters.criteria()
    places = {
        f"{side}_{name}": value
        for side in ("after", "before")
        if (position := getattr(window, side))
        for name, value in zip(("created_at", "id"), position, strict=True)
    }
    statement = _pages(frozenset(parts), window.forward, window.after is not None, window.before is not None)
    async with context.database.connection(brand_id) as connection:
        position = await _feed_position(context, connection) if for_feed else None
        # One row more than requested shows whether the list continues.
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
    """Return a position up to which every event is committed. Read it before the rows, which then include them."""
    if context.reads is not None:
        # Another subscriber may have read the event's rows before the watermark would be read here.
        return context.reads.position
    return (await find_mark(connection)).position


async def count_encounters(
    context: Context, patient_ids: Sequence[str], filters: EncounterFilter = EVERYTHING
) -> list[int]:
    """Return the number of encounters of each patient, in the order of `patient_ids`, from one statement."""
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    parts = filters.criteria()
    async with context.database.connection(brand_id) as connection:
        rows = await connection.fetch(_counts(frozenset(parts)), brand_id=brand_id, patient_ids=patient_ids, **parts)
    counts = {row["patient_id"]: row["count"] for row in rows}
    return [counts.get(patient_id, 0) for patient_id in patient_ids]


@cache
def _pages(parts: frozenset[str], forward: bool, after: bool, before: bool) -> BoundedStatement:
    # Selects from the table with `= ANY`, not from the parameter: a cluster can push only that form down to its shards.
    patients = table_of(Patient)
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
    # Its members are the table's columns in order; computed columns of the statement follow them.
    return Encounter(*row[:COLUMNS])
