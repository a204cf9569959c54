"""Worklists: pages and counts of the encounters of a brand, across its patients.

They use connections of their own. Their statements are planned for their arguments, because the best index depends on
them, and have a short time limit. A caller has one of them at a time, and a client at most half of the connections, so
no caller's list delays those of others.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from sqlalchemy import BigInteger, bindparam, func, literal_column, select, text

from models import EncounterOrder
from resolvers.access import Permission
from resolvers.bounded_rows import LONG, BoundedStatement
from resolvers.commands import ALL_OF_BRAND, ListFilter
from resolvers.context import Context
from resolvers.encounters.read import (
    ROW,
    TABLE,
    arguments_of,
    beyond_places,
    encounter_of,
    feed_position,
    matching,
    places_of,
)
from resolvers.errors import InvalidInput, TemporarilyUnavailable, Violation
from resolvers.json_text import shape_of
from resolvers.list_sql import NEWEST_FIRST, ORDERS, Order, of_brand
from resolvers.paging import Page, Window, page_of
from resolvers.sql import Connection, Statement

MOST_COUNTED = 10_000
"""A worklist's total is exact up to this number."""


@asynccontextmanager
async def worklist_connection(context: Context, brand_id: str) -> AsyncIterator[Connection]:
    """Acquire a connection for a statement about all patients of a brand, when it is the caller's turn.

    Raises `TooBroad` if the statement takes too long, or `TemporarilyUnavailable`.
    """
    worklists, caller = context.services.worklists, context.caller
    assert worklists is not None, "both doors have them"
    async with AsyncExitStack() as turns:
        try:
            async with asyncio.timeout(worklists.wait_seconds):
                await turns.enter_async_context(worklists.caller_turns.of(f"{caller.client_id}\n{caller.actor_id}"))
                await turns.enter_async_context(worklists.client_turns.of(caller.client_id))
        except TimeoutError:
            raise TemporarilyUnavailable from None
        async with context.worklist_database.connection(brand_id) as connection:
            yield connection


class Listing(NamedTuple):
    """The page of a worklist to read."""

    window: Window
    filters: ListFilter = ALL_OF_BRAND
    order: EncounterOrder = EncounterOrder.CREATED_AT_DESC
    for_feed: bool = False
    """Whether the page is read with its position in the feed."""


async def list_worklists(context: Context, listings: Sequence[Listing]) -> list[Page]:
    """Return pages of the encounters of the caller's brand. One audit entry names the patients on all of them.

    Raises `InsufficientScope`, `Forbidden`, `TooBroad`, `AnswerTooLarge` or `TemporarilyUnavailable`.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    pages = [await _list(context, brand_id, listing) for listing in listings]
    context.note_worklist(brand_id, Counter(encounter.patient_id for page in pages for encounter in page.items))
    return pages


async def _list(context: Context, brand_id: str, listing: Listing) -> Page:
    window, order = listing.window, ORDERS[listing.order]
    criteria, places = listing.filters.criteria(), places_of(window, order)
    statement = _page(frozenset(criteria), order, window.forward, tuple(places))
    values = {"limit": window.size + 1, **criteria, **arguments_of(places)}
    async with worklist_connection(context, brand_id) as connection:
        position = await feed_position(context, connection) if listing.for_feed else None
        rows = await statement.fetch(context.answer, connection, window.size + 1, brand_id=brand_id, **values)
    return page_of([encounter_of(row) for row in rows], window, position)


async def count_worklist(context: Context, filters: ListFilter = ALL_OF_BRAND) -> int:
    """Return the number of encounters of the brand that match a filter, at most one more than `MOST_COUNTED`."""
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    criteria = filters.criteria()
    async with worklist_connection(context, brand_id) as connection:
        row = await connection.fetch_one(_count(frozenset(criteria)), brand_id=brand_id, **criteria)
    assert row is not None, "an aggregate without groups returns one row"
    return row["count"]  # type: ignore[no-any-return]


class EncounterDimension(StrEnum):
    """A property by which encounters are counted. A day is a calendar day in a time zone, whatever its length."""

    STATUS = "status"
    ENCOUNTER_TYPE = "encounter_type"
    PROVIDER_ID = "provider_id"
    SCHEDULED_DAY = "scheduled_day"
    CREATED_DAY = "created_day"


@dataclass(frozen=True, slots=True)
class Group:
    """The encounters with the same value of a dimension."""

    key: str | None
    """The value as GraphQL shows it, a day as `2026-11-30`; None for encounters without a provider or schedule."""
    count: int


MOST_GROUPS = 500
UTC = "UTC"


async def count_by(
    context: Context, by: EncounterDimension, filters: ListFilter = ALL_OF_BRAND, time_zone: str = UTC
) -> list[Group]:
    """Return the numbers of the brand's encounters by a dimension, largest first.

    Returns at most one group more than `MOST_GROUPS`. `time_zone` is a name of the IANA time zone database. Raises
    `InsufficientScope`, `Forbidden`, `InvalidInput` for another name, `TooBroad` or `TemporarilyUnavailable`.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    criteria = filters.criteria()
    async with worklist_connection(context, brand_id) as connection:
        if time_zone != UTC and time_zone not in await _time_zones(context, connection):
            message, received = (
                "must be a name of the IANA time zone database, such as Europe/Berlin",
                shape_of(time_zone),
            )
            raise InvalidInput([Violation("/timeZone", "time_zone", message, received=received)])
        zone = {"time_zone": time_zone} if by in _DAYS else {}
        rows = await connection.fetch(_groups(by, frozenset(criteria)), brand_id=brand_id, **criteria, **zone)
    return [Group(**row) for row in rows]


async def _time_zones(context: Context, connection: Connection) -> Collection[str]:
    """Return the time zones of the database server, which it reads from its disk: once for each process."""
    worklists = context.services.worklists
    assert worklists is not None, "both doors have them"
    if not worklists.time_zones:
        worklists.time_zones.update(row["name"] for row in await connection.fetch(TIME_ZONES))
    return worklists.time_zones


TIME_ZONES = Statement("SELECT name FROM pg_timezone_names")

_DAYS = {EncounterDimension.SCHEDULED_DAY: "scheduled_at", EncounterDimension.CREATED_DAY: "created_at"}


@cache
def _groups(by: EncounterDimension, parts: frozenset[str]) -> Statement:
    if by in _DAYS:
        key = f"to_char({ROW}.{_DAYS[by]} AT TIME ZONE CAST(:time_zone AS text), 'YYYY-MM-DD')"
    else:
        key = f"{ROW}.provider_id::text" if by is EncounterDimension.PROVIDER_ID else f"upper({ROW}.{by})"
    return Statement(
        select(literal_column("key"), func.count().label("count"))
        .select_from(
            select(text(f"{key} AS key"))
            .select_from(TABLE)
            .where(text(of_brand(ROW, ":brand_id", parts)), *matching(parts, NEWEST_FIRST))
            .subquery("found")
        )
        .group_by(literal_column("key"))
        .order_by(literal_column("count").desc(), literal_column("key"))
        .limit(MOST_GROUPS + 1)
    )


@cache
def _page(parts: frozenset[str], order: Order, forward: bool, sides: Sequence[str]) -> BoundedStatement:
    return BoundedStatement(
        select(TABLE)
        .where(text(of_brand(ROW, ":brand_id", parts)), *matching(parts, order), *beyond_places(order, sides))
        .order_by(text(order.by(ROW, forward=forward)))
        .limit(bindparam("limit", type_=BigInteger)),
        LONG,
    )


@cache
def _count(parts: frozenset[str]) -> Statement:
    found = (
        select(literal_column("1"))
        .select_from(TABLE)
        .where(text(of_brand(ROW, ":brand_id", parts)), *matching(parts, NEWEST_FIRST))
        .limit(MOST_COUNTED + 1)
        .subquery()
    )
    return Statement(select(func.count().label("count")).select_from(found))
