"""Recording several encounters of one request: independently, or all of them or none."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from models import IdempotencyKey
from resolvers import json_text
from resolvers.commands import RecordEncounter
from resolvers.context import Context
from resolvers.encounters.read import encounter_of_key
from resolvers.encounters.record import Recorder, Recording, columns_of, insert_encounter, record_encounter, reserve
from resolvers.errors import (
    BatchRolledBack,
    Forbidden,
    GatewayError,
    IdempotencyKeyReused,
    InvalidInput,
    KeyErased,
    PatientErased,
    PatientNotFound,
    TemporarilyUnavailable,
    Violation,
)
from resolvers.idempotency import Claim, claim_of, find_claimed
from resolvers.patients import can_exist
from resolvers.services import Insertion
from resolvers.sql import Connection

MAX_ITEMS = 100
"""Maximum number of encounters in one request."""


class Item(NamedTuple):
    """One encounter to record, as the arguments of `record_encounter`."""

    patient_id: str
    members: Mapping[str, Any]
    key: str | None


Outcome = Recording | BaseException


async def record_encounters(context: Recorder, items: Sequence[Item]) -> list[Outcome]:
    """Record each encounter independently, and return the outcomes in order: the recording, or the error.

    Raises `InvalidInput` for too many items.
    """
    _require_few(items)
    # Concurrent recordings share statements. On a cluster each is a separate transaction, and all at once would occupy
    # every connection.
    together = MAX_ITEMS if context.services.batcher else 1
    outcomes: list[Outcome] = []
    for first in range(0, len(items), together):
        asked = [record_encounter(context, *item) for item in items[first : first + together]]
        outcomes += await asyncio.gather(*asked, return_exceptions=True)
    return outcomes


async def record_all_or_none(context: Recorder, items: Sequence[Item]) -> list[Outcome]:
    """Record all encounters in one transaction, or none; return the outcomes in order.

    If an encounter is refused, its outcome is its error, and that of the others is `BatchRolledBack`. Encounters
    recorded earlier under their keys remain recordings, and cause no refusal of the others. Raises `InvalidInput` for
    too many items, `Forbidden` (also for items of several brands), `TemporarilyUnavailable` or `OutcomeUnknown`.
    """
    _require_few(items)
    if not items:
        return []
    brands = {context.acting_brand(item.members.get("brand_id")) for item in items}
    if len(brands) > 1:
        raise Forbidden("With `allOrNothing`, all encounters must have the same brand.")
    (brand_id,) = brands
    places = [_place(context, brand_id, item) for item in items]

    try:
        outcomes = await _record_or_roll_back(context, brand_id, places)
    except PatientErased:
        # The second attempt no longer finds the patient, and refuses its encounters.
        outcomes = await _record_or_roll_back(context, brand_id, places)
    if any(isinstance(outcome, GatewayError) for outcome in outcomes):
        return outcomes
    news = [outcome for outcome in outcomes if isinstance(outcome, Recording)]
    for each in news:
        context.services.metrics.recorded(replayed=each.replayed)
    if not all(each.replayed for each in news):
        context.services.feed.notify()
    return outcomes


class _RolledBack(Exception):
    """Rolls back a batch of which an encounter was refused."""


class _ValidItem(NamedTuple):
    """A valid encounter, and the key that it claims."""

    columns: dict[str, Any]
    claim: Claim | None


async def _record_or_roll_back(
    context: Context, brand_id: str, places: Sequence[_ValidItem | GatewayError]
) -> list[Outcome]:
    """Record all encounters in one transaction, or none if one is refused. Raises `PatientErased`."""
    outcomes: list[Outcome] = []
    with suppress(_RolledBack):
        async with context.database.transaction(brand_id) as connection:
            outcomes = await _record_places(context, connection, places)
            if any(isinstance(outcome, GatewayError) for outcome in outcomes):
                raise _RolledBack
    return outcomes


def _require_few(items: Sequence[Item]) -> None:
    if len(items) > MAX_ITEMS:
        message, received = f"must have at most {MAX_ITEMS} items", json_text.shape_of(list(items))
        raise InvalidInput([Violation("/input", "too_many", message, maximum=MAX_ITEMS, received=received)])


def _place(context: Context, brand_id: str, item: Item) -> _ValidItem | GatewayError:
    try:
        command = RecordEncounter.read(item.members, context.services.input_limits)
        claim = None if item.key is None else claim_of(item.key, context, brand_id, item.patient_id, command)
    except InvalidInput as error:
        return error
    return _ValidItem(columns_of(command, item.patient_id), claim)


async def _record_places(
    context: Context, connection: Connection, places: Sequence[_ValidItem | GatewayError]
) -> list[Outcome]:
    # Keys are claimed in key order, as everywhere, so that two concurrent batches cannot deadlock. The inserts follow
    # the order of the items, which is that of their ids and so of their events.
    claimed: dict[int, Insertion | IdempotencyKey | GatewayError] = {}
    for number in sorted(range(len(places)), key=lambda number: _key(places[number])):
        place = places[number]
        claimed[number] = place if isinstance(place, GatewayError) else await _claim(context, connection, place)
    own_ids = {place.columns["id"] for place in places if isinstance(place, _ValidItem)}
    refused = any(isinstance(each, GatewayError) for each in claimed.values())

    outcomes: list[Outcome] = []
    for number, place in enumerate(places):
        match claimed[number]:
            case GatewayError() as error:
                outcomes.append(error)
            case IdempotencyKey() as earlier if not (refused and earlier.encounter_id in own_ids):
                encounter = await encounter_of_key(context, connection, earlier)
                outcomes.append(Recording(encounter, earlier.answer, replayed=True))
            case Insertion(created_at=now) if now is not None and not refused:
                assert isinstance(place, _ValidItem)
                encounter = await insert_encounter(context, connection, place.columns, now)
                outcomes.append(Recording(encounter))
            case _:
                outcomes.append(BatchRolledBack())
    return outcomes


def _key(place: _ValidItem | GatewayError) -> str:
    return place.claim.key if isinstance(place, _ValidItem) and place.claim else ""


async def _claim(
    context: Context, connection: Connection, place: _ValidItem
) -> Insertion | IdempotencyKey | GatewayError:
    """Reserve an encounter. Return the outcome, or the key's earlier claim, or the error for which it is refused."""
    kept = Insertion(patient_is_known=False, created_at=None)
    if can_exist(place.columns["patient_id"]):
        kept = await reserve(context, connection, place.columns, place.claim)
    if kept.created_at is not None:
        return kept
    if place.claim is not None:
        try:
            if earlier := await find_claimed(connection, place.claim):
                return earlier
        except KeyErased as error:
            return error if kept.patient_is_known else PatientNotFound()
        except IdempotencyKeyReused as error:
            return error
    if kept.patient_is_known:
        # The key existed a moment ago and has just expired: the caller's next attempt will claim it.
        raise TemporarilyUnavailable
    return PatientNotFound()
