"""Erasure of a patient: every row about the patient is deleted in one transaction (`gateway patients erase`).

The patient's row is locked first, then the encounters are deleted. A recording or a change either commits before the
lock, and is erased, or finds no patient afterwards. The audit log keeps its entries, which hold no clinical text.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import ColumnElement, Table, bindparam, delete, func, literal_column, null, select, update

from models import (
    DeadLetter,
    EncounterExternalId,
    Encounters,
    EncounterVersion,
    IdempotencyKey,
    OutboxEvent,
    Patient,
    PatientExternalId,
    Watermark,
    table_of,
)
from resolvers import json_text
from resolvers.audit import APPEND_ENTRY, PATIENT_ERASED
from resolvers.errors import PatientNotFound
from resolvers.idempotency import ERASED
from resolvers.ids import new_id
from resolvers.outbox import PATIENT_ERASED as PATIENT_ERASED_EVENT
from resolvers.outbox import append_erasure
from resolvers.patients import ERASED_PATIENTS, FIND_PATIENT, can_exist
from resolvers.sql import Connection, Database, Statement

PATIENTS = table_of(Patient)
KEYS = table_of(IdempotencyKey)
WATERMARK = table_of(Watermark)

ENCOUNTERS_FIRST = tuple(
    table_of(model)
    for model in (Encounters, EncounterVersion, EncounterExternalId, PatientExternalId, OutboxEvent, DeadLetter)
)
"""The tables whose rows are deleted before the patient's. A change holds the row of its encounter until it commits. So
the deletion of encounters waits for it, and later statements find the rows that it inserted elsewhere.
"""

ERASED_TABLES: Final = (PATIENTS, *ENCOUNTERS_FIRST, KEYS)
"""Every table with text about a patient. The audit log and its chain have none."""


def _of_patient(table: Table) -> list[ColumnElement[bool]]:
    patient = table.c.id if table is PATIENTS else table.c.patient_id
    conditions = [patient == bindparam("patient_id"), table.c.brand_id == bindparam("brand_id")]
    if "event_type" in table.c:
        # The event of an earlier erasure stays.
        conditions.append(table.c.event_type != bindparam("event_type", PATIENT_ERASED_EVENT))
    return conditions


COUNT = {
    table.name: Statement(select(func.count()).select_from(table).where(*_of_patient(table))) for table in ERASED_TABLES
}
# Waits for recordings in progress: their foreign key holds a share of this lock.
LOCK_PATIENT = Statement(select(PATIENTS.c.id).where(*_of_patient(PATIENTS)).with_for_update())
DELETE = {
    table.name: Statement(delete(table).where(*_of_patient(table)).returning(table.c.brand_id))
    for table in (*ENCOUNTERS_FIRST, PATIENTS)
}
# The relay stamps events under this lock. Positions between the two must not be deleted: the relay counts them.
LOCK_WATERMARK = Statement(select(WATERMARK.c.stamped, WATERMARK.c.position).with_for_update())
# Without an index: an erasure is rare, and the table has the keys of some days.
ERASE_KEYS = Statement(
    update(KEYS)
    .where(*_of_patient(KEYS))
    .values(patient_id=literal_column("''"), encounter_id=null(), request_hash=ERASED, answer=b"")
    .returning(KEYS.c.brand_id)
)


class EventsUnsettled(Exception):
    """Events have a position beyond the watermark: they must not be deleted before it moves. Nothing was erased."""


async def count_rows(connection: Connection, brand_id: str, patient_id: str) -> dict[str, int]:
    """Return the number of rows about a patient, by table.

    They may all be 0, if the patient was erased. Raises `PatientNotFound` if the brand never had the patient.
    """
    of = {"brand_id": brand_id, "patient_id": patient_id}
    if not can_exist(patient_id):
        raise PatientNotFound
    if await connection.fetch_one(FIND_PATIENT, **of) is None:
        await _require_erased(connection, brand_id, patient_id)
    counts = {}
    for name, statement in COUNT.items():
        row = await connection.fetch_one(statement, **of)
        assert row is not None
        counts[name] = row[0]
    return counts


async def erase_patient(database: Database, brand_id: str, patient_id: str, actor_id: str) -> dict[str, int]:
    """Delete every row about a patient, and return their numbers by table.

    A patient that was erased already is not an error; rows that appeared later are deleted. Idempotency keys stay
    without their answers. The erasure is audited with the actor and the numbers, and sinks get an event.

    Args:
        database: Acts as the owner of the tables.
        brand_id: The brand.
        patient_id: The patient.
        actor_id: The person who erases, as the audit log names them.

    Raises:
        PatientNotFound: The brand never had the patient.
        EventsUnsettled: Nothing was erased.
        TemporarilyUnavailable: Nothing was erased.
        OutcomeUnknown: The connection was lost during the commit.
    """
    of = {"brand_id": brand_id, "patient_id": patient_id}
    if not can_exist(patient_id):
        raise PatientNotFound
    async with database.transaction(brand_id) as connection:
        if await connection.fetch_one(LOCK_PATIENT, **of) is None:
            await _require_erased(connection, brand_id, patient_id)
        counts = {}
        for table in ENCOUNTERS_FIRST:
            if table is table_of(OutboxEvent):
                await _lock_watermark(connection)
            counts[table.name] = len(await connection.fetch(DELETE[table.name], **of))
        counts[PATIENTS.name] = len(await connection.fetch(DELETE[PATIENTS.name], **of))
        counts[KEYS.name] = len(await connection.fetch(ERASE_KEYS, **of))
        if any(counts.values()):
            await _append_entry(connection, brand_id, patient_id, actor_id, counts)
            await append_erasure(connection, brand_id, patient_id, datetime.now(UTC), actor_id)
    return counts


async def _require_erased(connection: Connection, brand_id: str, patient_id: str) -> None:
    """Return if the patient was erased. Raises `PatientNotFound`."""
    if await connection.fetch_one(ERASED_PATIENTS, brand_id=brand_id, ids=[patient_id]) is None:
        raise PatientNotFound


async def _lock_watermark(connection: Connection) -> None:
    """Keep the relay from assigning positions until the end of the transaction. Raises `EventsUnsettled`."""
    mark = await connection.fetch_one(LOCK_WATERMARK)
    assert mark is not None, "the migration inserted it"
    if mark["stamped"] != mark["position"]:
        raise EventsUnsettled


async def _append_entry(
    connection: Connection, brand_id: str, patient_id: str, actor_id: str, counts: Mapping[str, int]
) -> None:
    await connection.fetch(
        APPEND_ENTRY,
        patient_id=patient_id,
        id=new_id(),
        actor_type="user",
        actor_id=actor_id,
        actor_brand_id=None,
        event_type=PATIENT_ERASED,
        entity_type="patient",
        entity_id=patient_id,
        brand_id=brand_id,
        request_id=str(new_id()),
        details=json_text.write({"rows": dict(counts)}),
    )
