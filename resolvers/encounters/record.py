"""Recording an encounter. Start reading here.

REST and GraphQL both call these functions. Each function opens its own transaction, checks permissions first, and
returns after the commit.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, insert

from models import Encounter, EncounterEventKind, EncounterStatus
from resolvers.access import Permission
from resolvers.audit import append_entry, encounter_event
from resolvers.commands import RecordEncounter
from resolvers.context import Context
from resolvers.encounters.history import append_version
from resolvers.encounters.insert import NO_ANSWER, OF_THE_ENCOUNTER, TO_COME, Answer
from resolvers.encounters.read import TABLE, encounter_of_key
from resolvers.errors import OutcomeUnknown, PatientNotFound, TemporarilyUnavailable
from resolvers.idempotency import Claim, claim_key, claim_of, find_claimed
from resolvers.ids import new_id
from resolvers.outbox import append_event
from resolvers.patients import can_exist, time_at
from resolvers.services import Kept, NewEncounter
from resolvers.sql import Connection, Statement

RECORDED = EncounterEventKind.RECORDED


# Recording

INSERT_ENCOUNTER = Statement(
    insert(TABLE).values({column.name: bindparam(column.name, type_=column.type) for column in TABLE.c})
)


class Recording(NamedTuple):
    """A recorded encounter."""

    encounter: Encounter
    """Its current state."""
    first_answer: bytes | None = None
    """The answer in the published form, as of the recording, which a replay of the key repeats. None if none was
    written.
    """
    replayed: bool = False
    """Whether it was recorded earlier, under the same key."""


async def record_encounter(
    context: Context, patient_id: str, members: Mapping[str, Any], key: str | None = None
) -> Recording:
    """Record an encounter; exactly once, if the caller names an idempotency key.

    `members` are those of the `RecordEncounter` command, unvalidated: validation happens here because permissions are
    checked before the input. Raises `InsufficientScope`, `Forbidden`, `InvalidInput`, `IdempotencyKeyReused`,
    `PatientNotFound`, `TemporarilyUnavailable` or `OutcomeUnknown`, in this order.
    """
    context.require(Permission.RECORD_ENCOUNTER)
    brand_id = context.acting_brand(members.get("brand_id"))
    command = RecordEncounter.read(members, context.services.input_limits, strict=context.strict)
    claim = None if key is None else claim_of(key, context, brand_id, patient_id, command)

    columns = columns_of(command, patient_id)
    kept, answer = await _keep(context, brand_id, columns, claim)
    if kept.created_at is None:
        return await _replay(context, claim, kept)
    context.services.feed.notify()
    context.services.metrics.recorded(replayed=False)
    return Recording(recorded(columns, kept.created_at), answer.at(kept.created_at))


def columns_of(command: RecordEncounter, patient_id: str) -> dict[str, Any]:
    """Return the row of a new encounter: scheduled, at version 1, without the times of recording."""
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
    """Return the encounter of a row, as of its recording."""
    return Encounter(**columns, created_at=at, updated_at=at)


async def _keep(
    context: Context, brand_id: str, columns: Mapping[str, Any], claim: Claim | None
) -> tuple[Kept, Answer]:
    """Insert an encounter. Return the outcome, and the answer stored for its key if it is known here."""
    if not can_exist(columns["patient_id"]):
        return Kept(patient_is_known=False, created_at=None), NO_ANSWER
    if context.services.batcher is None:
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
    return await context.services.batcher.keep(brand_id, new), answer


async def _keep_step_by_step(context: Context, brand_id: str, columns: Mapping[str, Any], claim: Claim | None) -> Kept:
    """Insert an encounter by one statement after another: on a cluster, each statement concerns one patient."""
    async with context.database.transaction(brand_id) as connection:
        kept = await reserve(context, connection, columns, claim)
        if kept.created_at is not None:
            await insert_encounter(context, connection, columns, kept.created_at)
    return kept


async def reserve(context: Context, connection: Connection, columns: Mapping[str, Any], claim: Claim | None) -> Kept:
    """Claim the key, if there is one, for an encounter of a known patient, and return the time of recording."""
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
    """Insert an encounter with its version, its audit entry and its event; its key must be claimed already."""
    encounter = recorded(columns, now)
    await connection.fetch(INSERT_ENCOUNTER, **columns, created_at=now, updated_at=now)
    await append_version(connection, context, encounter, RECORDED)
    await append_entry(connection, context, encounter_event(RECORDED), encounter)
    await append_event(connection, encounter, RECORDED)
    return encounter


KEY_UNREAD = (
    "The database connection was lost while the key was read; check the outcome before you send the request again."
)


async def _replay(context: Context, claim: Claim | None, kept: Kept) -> Recording:
    """Return the recording that exists under the key. Raises the reason if there is none."""
    if claim is not None:
        try:
            async with context.database.connection(claim.brand_id) as connection:
                if earlier := await find_claimed(connection, claim):
                    encounter = await encounter_of_key(context, connection, earlier)
                    context.services.metrics.recorded(replayed=True)
                    return Recording(encounter, earlier.answer, replayed=True)
        except TemporarilyUnavailable as error:
            # The key is taken, and perhaps by this very encounter: `recorded` cannot be "no".
            raise OutcomeUnknown(KEY_UNREAD) from error
    if kept.patient_is_known:
        # The key existed a moment ago and has just expired: the caller's next attempt will claim it.
        raise TemporarilyUnavailable
    raise PatientNotFound
