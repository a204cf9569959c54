"""Read encounters: by id, by key, by external id, and as pages of a patient's list."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, TextClause, any_, bindparam, func, select, text, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Text

from models import Encounter, EncounterExternalId, EncounterOrder, Encounters, IdempotencyKey, Patient, table_of
from resolvers.access import Permission
from resolvers.bounded_rows import LONG, BoundedStatement
from resolvers.commands import EVERYTHING, FindByExternalId, ListFilter, uuid_of
from resolvers.context import Context
from resolvers.errors import EncounterNotFound, OutcomeUnknown
from resolvers.idempotency import HALF_VISIBLE
from resolvers.list_sql import CRITERIA, NEWEST_FIRST, ORDERS, Order, beyond, conditions
from resolvers.outbox import find_mark
from resolvers.paging import Page, Window, page_of
from resolvers.patients import MAX_FOUND, can_exist
from resolvers.sql import Connection, Row, Statement

TABLE = table_of(Encounters)
EXTERNAL_IDS = table_of(EncounterExternalId)


async def encounter_of_key(context: Context, connection: Connection, key: IdempotencyKey) -> Encounter:
    """Return the current state of the encounter that a key stands for.

    On a cluster, the node of the key may finish a commit before the node of the encounter. Until then, a new encounter
    is not visible, and a changed one is locked. Raises `OutcomeUnknown` for one that is not visible, also if the
    patient was erased after the key was read.
    """
    of = {"brand_id": key.brand_id, "patient_id": key.patient_id, "id": key.encounter_id}
    statement = ENCOUNTER_OF_PATIENT if context.services.batcher else ENCOUNTER_OF_KEY
    row = await connection.fetch_one(statement, **of)
    if row is None:
        raise OutcomeUnknown(HALF_VISIBLE)
    encounter = encounter_of(row)
    context.note_read([encounter])
    return encounter


OF_BRAND = TABLE.c.brand_id == bindparam("brand_id")


OF_PATIENT = TABLE.c.patient_id == bindparam("patient_id")


ENCOUNTERS_BY_IDS = BoundedStatement(
    select(TABLE).where(TABLE.c.id == any_(bindparam("ids", type_=ARRAY(TABLE.c.id.type))), OF_BRAND), LONG
)


ENCOUNTERS_OF_PATIENTS = BoundedStatement(
    select(TABLE).where(
        TABLE.c.patient_id == any_(bindparam("patient_ids", type_=ARRAY(Text))),
        TABLE.c.id == any_(bindparam("ids", type_=ARRAY(TABLE.c.id.type))),
        OF_BRAND,
    ),
    LONG,
)


ENCOUNTER_OF_PATIENT = Statement(
    select(TABLE).where(OF_PATIENT, TABLE.c.id == bindparam("id", type_=TABLE.c.id.type), OF_BRAND)
)
# For a cluster: waits for the second phase of a change under the key.
ENCOUNTER_OF_KEY = Statement(
    select(TABLE)
    .where(OF_PATIENT, TABLE.c.id == bindparam("id", type_=TABLE.c.id.type), OF_BRAND)
    .with_for_update(read=True)
)


async def encounters_by_ids(context: Context, ids: Sequence[UUID]) -> list[Encounter | None]:
    """Return the encounters that the caller may see, in the order of `ids`; None for an id that is not found."""
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    if not ids:
        return []
    async with context.database.connection(brand_id) as connection:
        rows = await ENCOUNTERS_BY_IDS.fetch(context.answer, connection, len(ids), brand_id=brand_id, ids=ids)
    found = {row["id"]: encounter_of(row) for row in rows}
    context.note_read(found.values())
    return [found.get(encounter_id) for encounter_id in ids]


def values_of_keys(brand_id: str, keys: Collection[tuple[str, UUID]]) -> dict[str, Any]:
    """Return the values of `ENCOUNTERS_OF_PATIENTS` for keys of patient and id. Its rows may be of other pairs too."""
    return {
        "brand_id": brand_id,
        "patient_ids": [*{patient_id for patient_id, _ in keys}],
        "ids": [*{id_ for _, id_ in keys}],
    }


async def encounters_of_patients(context: Context, keys: Sequence[tuple[str, UUID]]) -> list[Encounter | None]:
    """Return encounters by patient and id, in the order of `keys`; None for an id that is not that patient's.

    On a cluster, it queries the shards of these patients only.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    asked = {key for key in keys if can_exist(key[0])}
    if not asked:
        return [None for _ in keys]
    values = values_of_keys(brand_id, asked)
    async with context.database.connection(brand_id) as connection:
        rows = await ENCOUNTERS_OF_PATIENTS.fetch(context.answer, connection, len(asked), **values)
    # The statement may return an encounter of one key's id and another key's patient.
    found = {key: encounter_of(row) for row in rows if (key := (row["patient_id"], row["id"])) in asked}
    context.note_read(found.values())
    return [found.get(key) for key in keys]


ENCOUNTERS_WITH_EXTERNAL_ID = Statement(
    select(EXTERNAL_IDS.c.encounter_id)
    .where(*(EXTERNAL_IDS.c[name] == bindparam(name) for name in ("brand_id", "system", "value")))
    # Ids are UUIDv7, so this is the order of recording. It is that of the index.
    .order_by(EXTERNAL_IDS.c.encounter_id.desc())
    .limit(MAX_FOUND)
)


async def encounters_by_external_id(context: Context, members: Mapping[str, Any]) -> list[Encounter]:
    """Return the encounters with an external id, newest first, at most `MAX_FOUND`.

    `members` are those of the `FindByExternalId` command, unvalidated. Raises `InsufficientScope`, `Forbidden`,
    `InvalidInput`, `AnswerTooLarge` or `TemporarilyUnavailable`, in this order.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    external_id = FindByExternalId.read(members, context.services.input_limits)
    async with context.database.connection(brand_id) as connection:
        rows = await connection.fetch(ENCOUNTERS_WITH_EXTERNAL_ID, brand_id=brand_id, **external_id.given())
    # Not a join, which PostgreSQL may begin with the table of encounters.
    encounters = await encounters_by_ids(context, [row["encounter_id"] for row in rows])
    return [encounter for encounter in encounters if encounter]


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
    encounter = encounter_of(row)
    context.note_read([encounter])
    return encounter


async def list_encounters(
    context: Context,
    patient_ids: Sequence[str],
    window: Window,
    filters: ListFilter = EVERYTHING,
    order: EncounterOrder = EncounterOrder.CREATED_AT_DESC,
    *,
    for_feed: bool = False,
) -> list[Page]:
    """Return one page of encounters for each patient, in the order of `patient_ids`, from one statement.

    With `for_feed`, each page has its position in the feed.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    criteria, places = filters.criteria(), places_of(window, ORDERS[order])
    statement = _pages(frozenset(criteria), ORDERS[order], window.forward, tuple(places))
    async with context.database.connection(brand_id) as connection:
        position = await feed_position(context, connection) if for_feed else None
        # One row more than requested shows whether the list continues.
        values = {"patient_ids": patient_ids, "limit": window.size + 1, **criteria, **arguments_of(places)}
        most = len(patient_ids) * (window.size + 1)
        rows = await statement.fetch(context.answer, connection, most, brand_id=brand_id, **values)
    by_patient: dict[str, list[Encounter]] = {}
    for row in rows:
        by_patient.setdefault(row["patient_id"], []).append(encounter_of(row))
    pages = [page_of(by_patient.get(patient_id, []), window, position) for patient_id in patient_ids]
    context.note_read(encounter for page in pages for encounter in page.items)
    return pages


def places_of(window: Window, order: Order) -> dict[str, dict[str, object]]:
    """Return the arguments of the window's positions, by `after` and `before`."""
    sides = {"after": window.after, "before": window.before}
    return {side: position.arguments(order) for side, position in sides.items() if position is not None}


def arguments_of(places: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """Return the arguments of `places_of` by the names that statements give them."""
    return {f"{side}_{name}": value for side, values in places.items() for name, value in values.items()}


async def feed_position(context: Context, connection: Connection) -> int:
    """Return a position up to which every event is committed. Read it before the rows, which then include them."""
    if context.reads is not None:
        # Another subscriber may have read the event's rows before the watermark would be read here.
        return context.reads.position
    return (await find_mark(connection)).position


async def count_encounters(context: Context, patient_ids: Sequence[str], filters: ListFilter = EVERYTHING) -> list[int]:
    """Return the number of encounters of each patient, in the order of `patient_ids`, from one statement."""
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    parts = filters.criteria()
    async with context.database.connection(brand_id) as connection:
        rows = await connection.fetch(_counts(frozenset(parts)), brand_id=brand_id, patient_ids=patient_ids, **parts)
    counts = {row["patient_id"]: row["count"] for row in rows}
    return [counts.get(patient_id, 0) for patient_id in patient_ids]


@cache
def _pages(parts: frozenset[str], order: Order, forward: bool, sides: tuple[str, ...]) -> BoundedStatement:
    # Selects from the table with `= ANY`, not from the parameter: a cluster can push only that form down to its shards.
    patients = table_of(Patient)
    page = (
        select(TABLE)
        .where(
            TABLE.c.patient_id == patients.c.id,
            # This says nothing new: a cluster infers the shards from it.
            TABLE.c.patient_id == any_(bindparam("patient_ids", type_=ARRAY(Text))),
            TABLE.c.brand_id == patients.c.brand_id,
            *matching(parts, order),
            *beyond_places(order, sides),
        )
        .order_by(text(order.by(ROW, forward=forward)))
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
        .order_by(text(order.by("page", forward=forward)))
    )
    return BoundedStatement(rows, LONG)


@cache
def _counts(parts: frozenset[str]) -> Statement:
    return Statement(
        select(TABLE.c.patient_id, func.count().label("count"))
        .where(
            TABLE.c.patient_id == any_(bindparam("patient_ids", type_=ARRAY(Text))),
            OF_BRAND,
            *matching(parts, NEWEST_FIRST),
        )
        .group_by(TABLE.c.patient_id)
    )


ROW = TABLE.name
"""The name of a row of encounters in these statements."""


def matching(parts: Collection[str], order: Order) -> list[TextClause]:
    """Return the SQL of a filter's criteria; their arguments have the names of the criteria."""
    values = {name: f"CAST(:{name} AS {CRITERIA[name].kind})" for name in parts}
    return [text(each) for each in conditions(ROW, order, values)]


def beyond_places(order: Order, sides: Sequence[str]) -> list[TextClause]:
    """Return the SQL for the items after and before positions, with the arguments of `arguments_of`."""
    places = {
        side: [*(f"CAST(CAST(:{side}_{key.column} AS text) AS {key.kind})" for key in order.keys), f":{side}_id"]
        for side in sides
    }
    return [text(each) for each in beyond(ROW, order, places)]


COLUMNS = len(TABLE.c)


def encounter_of(row: Row) -> Encounter:
    """Return the encounter of a row of the table."""
    # Its members are the table's columns in order; computed columns of the statement follow them.
    return Encounter(*row[:COLUMNS])
