"""The lifecycle of an encounter: its transition table, and the function that applies a transition.

Two callers may change the same encounter concurrently. Each change locks the row and is checked against the row's
current state. A caller that states the version it has read gets `StaleVersion` if it is not the newest. A caller that
repeats a change under its idempotency key gets the current state, and nothing is changed again.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, func, select, update

from models import MEMBERS, Encounter, EncounterAction, EncounterEventKind, EncounterStatus, Kind
from resolvers import json_text
from resolvers.access import Permission
from resolvers.audit import append_entry, encounter_event
from resolvers.commands import AmendEncounter, Change, ExplainedChange, Reschedule
from resolvers.context import Context
from resolvers.encounters.external_ids import replace_external_ids
from resolvers.encounters.history import append_version
from resolvers.encounters.read import OF_BRAND, OF_PATIENT, TABLE, encounter_of_key
from resolvers.errors import (
    CurrentVersionHidden,
    EncounterNotFound,
    IllegalTransition,
    KeyErased,
    StaleVersion,
    TemporarilyUnavailable,
)
from resolvers.idempotency import Claim, KeyTaken, claim_change, claim_of_change, find_claimed, taken_key
from resolvers.ids import id_or_none
from resolvers.outbox import append_event
from resolvers.patients import can_exist
from resolvers.sql import Connection, Row, Statement

# The transition table


class Transition(NamedTuple):
    """One action: the statuses it starts from, the status it leads to, and the kind of its event."""

    kind: EncounterEventKind
    sources: frozenset[EncounterStatus]
    target: EncounterStatus | None = None
    """None if the status does not change."""
    command: type[Change] = Change


_SCHEDULED, _IN_PROGRESS = EncounterStatus.SCHEDULED, EncounterStatus.IN_PROGRESS
_NOT_IN_ERROR = frozenset(EncounterStatus) - {EncounterStatus.ENTERED_IN_ERROR}

LIFECYCLE: Mapping[EncounterAction, Transition] = {
    EncounterAction.START: Transition(EncounterEventKind.STARTED, frozenset({_SCHEDULED}), _IN_PROGRESS),
    EncounterAction.COMPLETE: Transition(
        EncounterEventKind.COMPLETED, frozenset({_IN_PROGRESS}), EncounterStatus.COMPLETED
    ),
    EncounterAction.CANCEL: Transition(
        EncounterEventKind.CANCELLED, frozenset({_SCHEDULED, _IN_PROGRESS}), EncounterStatus.CANCELLED
    ),
    EncounterAction.MARK_NO_SHOW: Transition(
        EncounterEventKind.NO_SHOW, frozenset({_SCHEDULED}), EncounterStatus.NO_SHOW
    ),
    EncounterAction.MARK_ENTERED_IN_ERROR: Transition(
        EncounterEventKind.ENTERED_IN_ERROR, _NOT_IN_ERROR, EncounterStatus.ENTERED_IN_ERROR, ExplainedChange
    ),
    EncounterAction.RESCHEDULE: Transition(EncounterEventKind.RESCHEDULED, frozenset({_SCHEDULED}), command=Reschedule),
    # Also after the encounter has ended, when most mistakes in it are found.
    EncounterAction.AMEND: Transition(EncounterEventKind.AMENDED, _NOT_IN_ERROR, command=AmendEncounter),
    EncounterAction.UNDO_START: Transition(
        EncounterEventKind.START_UNDONE, frozenset({_IN_PROGRESS}), _SCHEDULED, ExplainedChange
    ),
}
"""Source: the platform's published lifecycle, and `UNDO_START` (decision 80). The documentation's table is generated
from this one."""


def allowed_actions(status: EncounterStatus) -> list[EncounterAction]:
    """Return the actions that are allowed in this status."""
    return [action for action, transition in LIFECYCLE.items() if status in transition.sources]


# Applying a transition

PATIENT_OF_ENCOUNTER = Statement(
    select(TABLE.c.patient_id).where(TABLE.c.id == bindparam("id", type_=TABLE.c.id.type), OF_BRAND)
)
# The time of the lock, not of the transaction: of two changes, the one that waited must have the later time.
LOCK_ENCOUNTER = Statement(
    select(TABLE, func.clock_timestamp().label("now"))
    .where(OF_PATIENT, TABLE.c.id == bindparam("id", type_=TABLE.c.id.type), OF_BRAND)
    .with_for_update()
)
CHANGED_COLUMNS = tuple(name for name in MEMBERS if name not in {"id", "patient_id", "brand_id", "created_at"})
JSON_COLUMNS = tuple(name for name in CHANGED_COLUMNS if MEMBERS[name].kind is Kind.JSON)
CHANGE_ENCOUNTER = Statement(
    update(TABLE)
    .where(OF_PATIENT, TABLE.c.id == bindparam("encounter_id", type_=TABLE.c.id.type), OF_BRAND)
    .values({name: bindparam(name, type_=TABLE.c[name].type) for name in CHANGED_COLUMNS})
)


class Changed(NamedTuple):
    """The current state of an encounter after an action."""

    encounter: Encounter
    replayed: bool = False
    """Whether the action was applied earlier, under the same key."""


async def change_encounter(
    context: Context,
    encounter_id: str,
    action: EncounterAction,
    members: Mapping[str, Any] | None = None,
    expected_version: int | None = None,
    *,
    key: str | None = None,
    patient_id: str | None = None,
) -> Changed:
    """Apply an action to an encounter, and return its new state; exactly once, if the caller names an idempotency key.

    An action that changes nothing creates no version. It only shows the encounter, and so requires permission to read.

    `members` are those of the action's command, unvalidated. `patient_id` is the encounter's patient, if the caller
    names it: the encounter is then searched only in its shard of a cluster. It is not part of the request for which the
    key stands.

    Raises `InsufficientScope`, `Forbidden`, `InvalidInput`, `IdempotencyKeyReused`, `EncounterNotFound`,
    `StaleVersion`, `IllegalTransition`, `TemporarilyUnavailable` or `OutcomeUnknown`, in this order.
    """
    context.require(Permission.CHANGE_ENCOUNTER)
    brand_id = context.acting_brand()
    command = LIFECYCLE[action].command.read(members or {}, context.services.input_limits)
    id_ = id_or_none(encounter_id)
    request = {
        "id": str(id_),
        "members": command.members(),
        "reason": command.reason,
        "expected_version": expected_version,
    }
    claim = claim_of_change(key, context, brand_id, action, request)
    of = await _place_of(context, brand_id, id_, patient_id, claim)

    try:
        async with context.database.transaction(brand_id) as connection:
            await claim_change(context, connection, claim, patient_id=of["patient_id"], encounter_id=of["id"])
            before, now = _unlocked(await connection.fetch_one(LOCK_ENCOUNTER, **of))
            if expected_version not in {None, before["version"]}:
                raise StaleVersion(Encounter(**before))
            encounter = await _apply(connection, context, action, command, before=before, now=now)
    except KeyTaken as taken:
        return await _replay(context, taken.claim, of)
    if encounter.version != before["version"]:
        context.services.feed.notify()
    return Changed(encounter)


def current_version(context: Context, stale: StaleVersion) -> Encounter:
    """Return the state that a stale change met. Raises `CurrentVersionHidden` if the caller may not read it."""
    if not context.may(Permission.READ_ENCOUNTERS):
        raise CurrentVersionHidden(context.services.scopes[Permission.READ_ENCOUNTERS])
    context.note_read([stale.encounter])
    return stale.encounter


async def _place_of(
    context: Context, brand_id: str, id_: UUID | None, patient_id: str | None, claim: Claim | None
) -> dict[str, Any]:
    """Return the keys of the encounter's row. Raises `IdempotencyKeyReused` or `EncounterNotFound`.

    With `patient_id` the row need not exist.
    """
    if patient_id is not None:
        if id_ is not None and can_exist(patient_id):
            return {"brand_id": brand_id, "patient_id": patient_id, "id": id_}
        id_ = None
    # A separate statement: on a cluster it queries every shard, and the change then only the patient's.
    async with context.database.connection(brand_id) as connection:
        row = None
        if id_ is not None:
            row = await connection.fetch_one(PATIENT_OF_ENCOUNTER, brand_id=brand_id, id=id_)
        if row is None and claim is not None:
            with suppress(KeyErased):
                await find_claimed(connection, claim)
    if row is None:
        raise EncounterNotFound
    return {"brand_id": brand_id, "patient_id": row["patient_id"], "id": id_}


async def _apply(
    connection: Connection,
    context: Context,
    action: EncounterAction,
    command: Change,
    *,
    before: dict[str, Any],
    now: datetime,
) -> Encounter:
    """Apply an action to a locked row, and return the new state: the same version if nothing changes."""
    transition = LIFECYCLE[action]
    if before["status"] not in transition.sources:
        raise IllegalTransition(before["status"], allowed_actions(before["status"]))
    after = before | command.members() | _moved(before, transition.target, now)
    changes = {name: (before[name], after[name]) for name in CHANGED_COLUMNS if before[name] != after[name]}
    if not changes:
        # Within the transaction: a refusal leaves the key unused.
        context.require(Permission.READ_ENCOUNTERS)
        encounter = Encounter(**before)
        context.note_read([encounter])
        return encounter
    after |= {"version": before["version"] + 1, "updated_at": max(now, before["updated_at"])}
    encounter = Encounter(**after)
    await _keep(connection, context, encounter, transition.kind, changes=changes, reason=command.reason)
    return encounter


async def _replay(context: Context, claim: Claim, of: Mapping[str, Any]) -> Changed:
    """Return the current state of the encounter that was changed under the key.

    Raises `EncounterNotFound` if it is another patient's than the caller names now.
    """
    async with taken_key(context, claim) as (connection, earlier):
        if earlier is not None and earlier.patient_id != of["patient_id"]:
            raise EncounterNotFound
        encounter = None if earlier is None else await encounter_of_key(context, connection, earlier)
    if encounter is None:
        # The key existed a moment ago and has just expired: the caller's next attempt will claim it.
        raise TemporarilyUnavailable
    return Changed(encounter, replayed=True)


def _unlocked(row: Row | None) -> tuple[dict[str, Any], datetime]:
    """Return the members of a locked row, and the time of the lock. Raises `EncounterNotFound`."""
    if row is None:
        # The caller names another patient, or the patient was erased after the encounter was found.
        raise EncounterNotFound
    before = dict(row)
    now = before.pop("now")
    # In the form of commands, so that an unchanged object compares equal when it is sent again.
    for name in JSON_COLUMNS:
        before[name] = json_text.write(json_text.read(before[name]))
    return before, now


def _moved(before: Mapping[str, Any], target: EncounterStatus | None, now: datetime) -> dict[str, Any]:
    """Return the new status, and the times that the transition sets."""
    match target:
        case None:
            return {}
        case EncounterStatus.IN_PROGRESS:
            return {"status": target, "started_at": now}
        case EncounterStatus.SCHEDULED:
            return {"status": target, "started_at": None}
        case EncounterStatus.COMPLETED | EncounterStatus.CANCELLED if before["started_at"] is not None:
            # A start that a caller sent may be up to `CLOCK_ALLOWANCE` ahead of the database's clock.
            return {"status": target, "ended_at": max(now, before["started_at"])}
        case _:
            return {"status": target}


async def _keep(
    connection: Connection,
    context: Context,
    encounter: Encounter,
    kind: EncounterEventKind,
    *,
    changes: Mapping[str, tuple[Any, Any]],
    reason: str | None,
) -> None:
    columns = {name: getattr(encounter, name) for name in CHANGED_COLUMNS}
    of = {"brand_id": encounter.brand_id, "patient_id": encounter.patient_id, "encounter_id": encounter.id}
    await connection.fetch(CHANGE_ENCOUNTER, **of, **columns)
    if "external_ids" in changes:
        await replace_external_ids(connection, encounter)
    await append_version(connection, context, encounter, kind, changes=changes, reason=reason)
    details = {"version": encounter.version, "members": sorted(changes)}
    await append_entry(connection, context, encounter_event(kind), encounter, details)
    await append_event(connection, encounter, kind, context.caller.actor_id, changes, traceparent=context.traceparent)
