"""Recording many encounters of one request: each for itself, or all of them or none."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from models import IdempotencyKey
from resolvers import json_text
from resolvers.access import Permission
from resolvers.commands import RecordEncounter
from resolvers.context import Context
from resolvers.encounters.read import encounter_of_key
from resolvers.encounters.record import Recording, columns_of, insert_encounter, record_encounter, reserve
from resolvers.errors import (
    BatchRolledBack,
    Forbidden,
    GatewayError,
    IdempotencyKeyReused,
    InvalidInput,
    PatientNotFound,
    TemporarilyUnavailable,
    Violation,
)
from resolvers.idempotency import Claim, claim_of, find_claimed
from resolvers.patients import can_exist
from resolvers.services import Kept
from resolvers.sql import Connection

MAX_ITEMS = 100
"""Encounters in one request, at most."""


class Item(NamedTuple):
    """One of them, as `record_encounter` is asked for it."""

    patient_id: str
    members: Mapping[str, Any]
    key: str | None


Outcome = Recording | BaseException


async def record_encounters(context: Context, items: Sequence[Item]) -> list[Outcome]:
    """Record each for itself, and give what came of each in their order: the recording, or why there is none.

    Raises `InsufficientScope`, or `InvalidInput` for too many.
    """
    _require(context, items)
    # Sent at the same time they share statements. On a cluster each is a transaction of its own, and all at once would
    # take every connection there is.
    together = MAX_ITEMS if context.services.batcher else 1
    outcomes: list[Outcome] = []
    for first in range(0, len(items), together):
        asked = [record_encounter(context, *item) for item in items[first : first + together]]
        outcomes += await asyncio.gather(*asked, return_exceptions=True)
    return outcomes


async def record_all_or_none(context: Context, items: Sequence[Item]) -> list[Outcome]:
    """Record all in one transaction, or none; give what came of each in their order.

    Where one is refused, it says why, and the others are `BatchRolledBack`; those recorded earlier under their keys are
    recordings all the same, which is no reason to refuse the others. Raises `InsufficientScope`, `InvalidInput` for too
    many, `Forbidden`, also where they are of several brands, `TemporarilyUnavailable` or `OutcomeUnknown`.
    """
    _require(context, items)
    if not items:
        return []
    brands = {context.acting_brand(item.members.get("brand_id")) for item in items}
    if len(brands) > 1:
        raise Forbidden("All or nothing is for the encounters of one brand.")
    (brand_id,) = brands
    places = [_place(context, brand_id, item) for item in items]

    try:
        async with context.database.transaction(brand_id) as connection:
            outcomes = await _record_places(context, connection, places)
            if any(isinstance(outcome, GatewayError) for outcome in outcomes):
                raise _NoneIsKept
    except _NoneIsKept:
        return outcomes
    news = [outcome for outcome in outcomes if isinstance(outcome, Recording)]
    for each in news:
        context.services.metrics.recorded(replayed=each.replayed)
    if not all(each.replayed for each in news):
        context.services.feed.notify()
    return outcomes


class _NoneIsKept(Exception):
    """Rolls back what is not kept as a whole."""


class _ValidItem(NamedTuple):
    """An encounter that breaks no rule, and the key it claims."""

    columns: dict[str, Any]
    claim: Claim | None


def _require(context: Context, items: Sequence[Item]) -> None:
    context.require(Permission.RECORD_ENCOUNTER)
    if len(items) > MAX_ITEMS:
        told, came = f"must have at most {MAX_ITEMS} items", json_text.shape_of(list(items))
        raise InvalidInput([Violation("/input", "too_many", told, maximum=MAX_ITEMS, received=came)])


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
    # Keys in their own order, as everywhere, so that two at once never wait for each other; the rest in the order of
    # the items, which is that of their ids and so of their events.
    claimed: dict[int, Kept | IdempotencyKey | GatewayError] = {}
    for number in sorted(range(len(places)), key=lambda number: _key(places[number])):
        place = places[number]
        claimed[number] = place if isinstance(place, GatewayError) else await _claim(context, connection, place)
    ours = {place.columns["id"] for place in places if isinstance(place, _ValidItem)}
    refused = any(isinstance(each, GatewayError) for each in claimed.values())

    outcomes: list[Outcome] = []
    for number, place in enumerate(places):
        match claimed[number]:
            case GatewayError() as error:
                outcomes.append(error)
            case IdempotencyKey() as earlier if not (refused and earlier.encounter_id in ours):
                encounter = await encounter_of_key(context, connection, earlier)
                outcomes.append(Recording(encounter, earlier.answer, replayed=True))
            case Kept(created_at=now) if now is not None and not refused:
                assert isinstance(place, _ValidItem)
                encounter = await insert_encounter(context, connection, place.columns, now)
                outcomes.append(Recording(encounter))
            case _:
                outcomes.append(BatchRolledBack())
    return outcomes


def _key(place: _ValidItem | GatewayError) -> str:
    return place.claim.key if isinstance(place, _ValidItem) and place.claim else ""


async def _claim(context: Context, connection: Connection, place: _ValidItem) -> Kept | IdempotencyKey | GatewayError:
    """Claim the place of an encounter; or give what its key stands for already, or why there is no place for it."""
    kept = Kept(patient_is_known=False, created_at=None)
    if can_exist(place.columns["patient_id"]):
        kept = await reserve(context, connection, place.columns, place.claim)
    if kept.created_at is not None:
        return kept
    if place.claim is not None:
        try:
            if earlier := await find_claimed(connection, place.claim):
                return earlier
        except IdempotencyKeyReused as error:
            return error
    if kept.patient_is_known:
        # The key was there a moment ago and has just expired: the caller's next try will claim it.
        raise TemporarilyUnavailable
    return PatientNotFound()
