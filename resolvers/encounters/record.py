"""Recording an encounter. Start reading here.

REST and GraphQL both call these functions. Each function opens its own transaction and returns after the commit.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, NewType

from sqlalchemy import bindparam, insert

from models import MEMBERS, Encounter, EncounterEventKind, EncounterStatus
from resolvers.access import Permission
from resolvers.audit import append_entry, encounter_event
from resolvers.commands import EncounterBody, RecordEncounter
from resolvers.context import Context
from resolvers.encounters.external_ids import NO_EXTERNAL_IDS, add_external_ids
from resolvers.encounters.history import append_version, json_of
from resolvers.encounters.published import published
from resolvers.encounters.read import TABLE, encounter_of_key
from resolvers.errors import KeyErased, PatientNotFound, TemporarilyUnavailable
from resolvers.idempotency import Claim, claim_key, claim_of, taken_key
from resolvers.ids import new_id
from resolvers.outbox import append_event
from resolvers.patients import can_exist, time_at
from resolvers.services import Insertion, NewEncounter
from resolvers.sql import Connection, Statement

RECORDED = EncounterEventKind.RECORDED


# Recording

ABSENT = dict.fromkeys(member.name for member in MEMBERS.values() if member.optional)
"""The optional members of an encounter, all null."""

INSERT_ENCOUNTER = Statement(
    insert(TABLE).values({column.name: bindparam(column.name, type_=column.type) for column in TABLE.c})
)


class Recording(NamedTuple):
    """A recorded encounter."""

    encounter: Encounter
    """Its current state."""
    first_answer: bytes | None = None
    """For a replay, the published form as of the recording; None for a new recording, which has its current state."""
    replayed: bool = False
    """Whether it was recorded earlier, under the same key."""


Recorder = NewType("Recorder", Context)
"""A context whose permission to record encounters was checked. Each door checks it once."""


def require_recorder(context: Context) -> Recorder:
    """Return the context as a recorder's. Raises `InsufficientScope`."""
    context.require(Permission.RECORD_ENCOUNTER)
    return Recorder(context)


async def record_encounter(
    context: Recorder,
    patient_id: str,
    members: Mapping[str, Any],
    key: str | None = None,
    kind: type[EncounterBody] = RecordEncounter,
) -> Recording:
    """Record an encounter; exactly once, if the caller names an idempotency key.

    `members` are those of the command `kind`, unvalidated: the brand is checked before the other members. Raises
    `Forbidden`, `InvalidInput`, `IdempotencyKeyReused`, `PatientNotFound`, `TemporarilyUnavailable` or
    `OutcomeUnknown`, in this order.
    """
    brand_id = context.acting_brand(members.get("brand_id"))
    command = kind.read(members, context.services.input_limits, strict=context.strict)
    claim = None if key is None else claim_of(key, context, brand_id, patient_id, command)

    columns = columns_of(command, patient_id)
    insertion = await _insert(context, brand_id, columns, claim)
    if insertion.created_at is None:
        return await _replay(context, claim, insertion)
    context.services.feed.notify()
    context.services.metrics.recorded(replayed=False)
    return Recording(recorded(columns, insertion.created_at))


def columns_of(command: EncounterBody, patient_id: str) -> dict[str, Any]:
    """Return the row of a new encounter: at version 1, scheduled without a status, without the times of recording."""
    columns = {**ABSENT, "patient_id": patient_id, "id": new_id(), "version": 1, **command.given()}
    if columns.get("status") is None:
        columns["status"] = EncounterStatus.SCHEDULED
    columns["external_ids"] = columns.get("external_ids") or NO_EXTERNAL_IDS
    return columns


def first_changes(columns: Mapping[str, Any]) -> dict[str, tuple[None, Any]]:
    """Return the changes of the first version: the status and the times of an encounter that is not scheduled."""
    if columns["status"] is EncounterStatus.SCHEDULED:
        return {}
    return {name: (None, columns[name]) for name in ("status", "started_at", "ended_at") if columns[name] is not None}


def recorded(columns: Mapping[str, Any], at: datetime) -> Encounter:
    """Return the encounter of a row, as of its recording."""
    return Encounter(**columns, created_at=at, updated_at=at)


async def _insert(context: Context, brand_id: str, columns: Mapping[str, Any], claim: Claim | None) -> Insertion:
    if not can_exist(columns["patient_id"]):
        return Insertion(patient_is_known=False, created_at=None)
    if context.services.batcher is None:
        return await _insert_step_by_step(context, brand_id, columns, claim)
    return await context.services.batcher.insert(brand_id, new_encounter(context, columns, claim))


def new_encounter(context: Context, columns: Mapping[str, Any], claim: Claim | None) -> NewEncounter:
    """Return the recording of a row by the caller, for `EncounterBatcher.insert`."""
    caller = context.caller
    return NewEncounter(
        columns,
        entry_id=new_id(),
        event_id=new_id(),
        actor_type=caller.actor_type,
        actor_id=caller.actor_id,
        actor_brand_id=caller.brand_id,
        request_id=context.request_id,
        client_id=caller.client_id,
        key=claim.key if claim else None,
        request_hash=claim.request_hash if claim else None,
        changes=json_of(first_changes(columns)),
        traceparent=context.traceparent,
    )


async def _insert_step_by_step(
    context: Context, brand_id: str, columns: Mapping[str, Any], claim: Claim | None
) -> Insertion:
    """Insert an encounter by one statement after another: on a cluster, each statement concerns one patient."""
    async with context.database.transaction(brand_id) as connection:
        insertion = await reserve(context, connection, columns, claim)
        if insertion.created_at is not None:
            await insert_encounter(context, connection, columns, insertion.created_at)
    return insertion


async def reserve(
    context: Context, connection: Connection, columns: Mapping[str, Any], claim: Claim | None
) -> Insertion:
    """Claim the key, if there is one, for an encounter of a known patient, and return the time of recording."""
    now = await time_at(connection, columns["brand_id"], columns["patient_id"])
    if now is None:
        return Insertion(patient_is_known=False, created_at=None)
    if claim:
        claimed = await claim_key(
            connection,
            claim,
            context.services.keys_kept_for,
            patient_id=columns["patient_id"],
            encounter_id=columns["id"],
            answer=published(recorded(columns, now)),
            claimed_at=now,
        )
        if not claimed:
            return Insertion(patient_is_known=True, created_at=None)
    return Insertion(patient_is_known=True, created_at=now)


async def insert_encounter(
    context: Context, connection: Connection, columns: Mapping[str, Any], now: datetime
) -> Encounter:
    """Insert an encounter with its version, its audit entry and its event; its key must be claimed already."""
    encounter = recorded(columns, now)
    await connection.fetch(INSERT_ENCOUNTER, **columns, created_at=now, updated_at=now)
    await append_recording(context, connection, encounter, columns)
    return encounter


async def append_recording(
    context: Context,
    connection: Connection,
    encounter: Encounter,
    columns: Mapping[str, Any],
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append what belongs to a new encounter: its external ids, its version, its audit entry and its event.

    `columns` are its row; `details` are those of the audit entry.
    """
    await add_external_ids(connection, encounter)
    await append_version(connection, context, encounter, RECORDED, changes=first_changes(columns))
    await append_entry(connection, context, encounter_event(RECORDED), encounter, details)
    await append_event(connection, encounter, RECORDED, context.caller.actor_id, traceparent=context.traceparent)


async def _replay(context: Context, claim: Claim | None, insertion: Insertion) -> Recording:
    """Return the recording that exists under the key. Raises the reason if there is none."""
    if claim is not None:
        try:
            async with taken_key(context, claim) as (connection, earlier):
                if earlier is not None:
                    encounter = await encounter_of_key(context, connection, earlier)
                    context.services.metrics.recorded(replayed=True)
                    return Recording(encounter, earlier.answer, replayed=True)
        except KeyErased:
            # An erased id is never registered again, so a known patient is another one than the key's.
            if insertion.patient_is_known:
                raise
    if insertion.patient_is_known:
        # The key existed a moment ago and has just expired: the caller's next attempt will claim it.
        raise TemporarilyUnavailable
    raise PatientNotFound
