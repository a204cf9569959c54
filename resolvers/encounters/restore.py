"""Restoring an exported encounter: a recording that keeps the id, the times of recording and the version.

Only `gateway encounters import --restore` calls it. The history of the encounter begins with the restored version.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import insert

from models import MEMBERS, Encounter, Kind
from resolvers import json_text
from resolvers.commands import RestoredEncounter
from resolvers.context import Context
from resolvers.encounters.read import OF_BRAND, TABLE, encounter_of
from resolvers.encounters.record import Recorder, Recording, append_recording, columns_of, new_encounter
from resolvers.errors import Conflict, PatientNotFound
from resolvers.patients import can_exist, time_at
from resolvers.services import Insertion
from resolvers.sql import Statement

# By the id alone, so that it also finds the encounter of another patient.
ENCOUNTER_OF_ID = Statement(select(TABLE).where(TABLE.c.id == bindparam("id", type_=TABLE.c.id.type), OF_BRAND))
INSERT_RESTORED = Statement(
    insert(TABLE)
    .values({column.name: bindparam(column.name, type_=column.type) for column in TABLE.c})
    .on_conflict_do_nothing()
    .returning(TABLE.c.id)
)

JSON_MEMBERS = [name for name, member in MEMBERS.items() if member.kind is Kind.JSON]


async def restore_encounter(context: Recorder, patient_id: str, members: Mapping[str, Any]) -> Recording:
    """Record an exported encounter under its own id; exactly once, however often it is restored.

    `members` are those of the command `RestoredEncounter`, unvalidated. Raises `Forbidden`, `InvalidInput`,
    `PatientNotFound`, `Conflict` for an id that the brand has with other values, `TemporarilyUnavailable` or
    `OutcomeUnknown`, in this order.
    """
    brand_id = context.acting_brand(members.get("brand_id"))
    command = RestoredEncounter.read(members, context.services.input_limits, strict=context.strict)
    columns = columns_of(command, patient_id)
    encounter = Encounter(**columns)
    if not can_exist(patient_id):
        raise PatientNotFound
    if context.services.batcher is None:
        insertion = await _insert_step_by_step(context, encounter, columns)
    else:
        insertion = await context.services.batcher.insert(brand_id, new_encounter(context, columns, None))
    if not insertion.patient_is_known:
        raise PatientNotFound
    if insertion.created_at is None:
        await _require_same(context, encounter)
        return Recording(encounter, replayed=True)
    context.services.feed.notify()
    context.services.metrics.recorded(replayed=False)
    return Recording(encounter)


async def _insert_step_by_step(context: Context, encounter: Encounter, columns: Mapping[str, Any]) -> Insertion:
    """Insert an encounter by one statement after another, for a cluster."""
    async with context.database.transaction(encounter.brand_id) as connection:
        if await time_at(connection, encounter.brand_id, encounter.patient_id) is None:
            return Insertion(patient_is_known=False, created_at=None)
        of = {"brand_id": encounter.brand_id, "id": encounter.id}
        if await connection.fetch(ENCOUNTER_OF_ID, **of) or not await connection.fetch(INSERT_RESTORED, **columns):
            return Insertion(patient_is_known=True, created_at=None)
        await append_recording(context, connection, encounter, columns, {"restored": True})
    return Insertion(patient_is_known=True, created_at=encounter.created_at)


async def _require_same(context: Context, encounter: Encounter) -> None:
    """Return if the brand has the encounter with the same values. Raises `Conflict`."""
    async with context.database.connection(encounter.brand_id) as connection:
        row = await connection.fetch_one(ENCOUNTER_OF_ID, brand_id=encounter.brand_id, id=encounter.id)
    if row is None or _comparable(encounter_of(row)) != _comparable(encounter):
        raise Conflict("The encounter exists with other values.")


def _comparable(encounter: Encounter) -> dict[str, object]:
    members = {name: getattr(encounter, name) for name in MEMBERS}
    return members | {name: json_text.write(json_text.read(members[name])) for name in JSON_MEMBERS}
