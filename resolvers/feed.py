"""The feed: events in an order that never changes, from any position, continuing live.

A subscriber reads the stored events at its own pace and then joins the process's only live reader (`outbox.Feed`). Any
gateway serves any subscriber: a cursor means the same at each.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self
from uuid import UUID

from models import EncounterEventKind
from resolvers import json_text
from resolvers.access import Permission
from resolvers.commands import EVERY_EVENT, EventFilter
from resolvers.context import Context
from resolvers.errors import PatientNotFound
from resolvers.feed_cursors import FeedCursors, expired
from resolvers.outbox import Event, Reads, find_mark, read_events
from resolvers.patients import find_patient
from resolvers.services import Feed

BATCH = 200

MOST_POSITIONS = 50_000
"""Positions of the feed that one statement searches with a filter, which may match none of them."""


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One event as a subscriber sees it, with its kind, its encounter and the cursor to resume from."""

    cursor: str
    id: UUID
    event_type: str
    kind: EncounterEventKind
    encounter_id: UUID
    patient_id: str
    brand_id: str
    created_at: datetime
    at: datetime
    """The time of the change."""
    version: int
    """The encounter's version that the change made."""
    actor_id: str | None
    """The actor of the change. None in an event of an earlier version of the gateway."""
    reads: Reads = field(repr=False, compare=False)
    """Where to read the encounter and the patient of the event."""

    @classmethod
    def of(cls, event: Event, cursors: FeedCursors, reads: Reads) -> Self:
        """Return the event of the outbox in the subscriber's form."""
        payload = json_text.read(event.payload)
        return cls(
            cursor=cursors.write(event.position, event.brand_id),
            id=event.id,
            event_type=event.event_type,
            kind=EncounterEventKind(event.kind),
            encounter_id=UUID(payload["encounter_id"]),
            patient_id=event.patient_id,
            brand_id=event.brand_id,
            created_at=event.created_at,
            at=datetime.fromisoformat(payload.get("changed_at") or payload["recorded_at"]),
            version=event.version,
            actor_id=event.actor_id,
            reads=reads,
        )


async def stream_events(
    context: Context, patient_id: str | None = None, after: str | None = None, filters: EventFilter = EVERY_EVENT
) -> AsyncGenerator[FeedEvent, None]:
    """Return a stream of the events of the caller's brand, or of one patient, each once, in order, when published.

    `after` is the cursor of the last event seen; without it the stream begins now. A cursor is a position in the feed,
    so it may come from a stream with another filter. For an event that `filters` does not match, no encounter is read.

    Raises `InsufficientScope`, `Forbidden`, `InvalidInput` for a cursor that is invalid or expired, `PatientNotFound`
    or `TemporarilyUnavailable` before it returns the stream. The stream itself raises `TemporarilyUnavailable` if the
    subscriber is too slow, and when the process stops. The subscriber then resumes from its last cursor.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    feed = context.services.feed
    position = None if after is None else (await feed.cursors()).read(after, brand_id)
    async with feed.connection(brand_id) as connection:
        if patient_id is not None and await find_patient(connection, brand_id, patient_id) is None:
            raise PatientNotFound
        if position is not None and not (await find_mark(connection)).allows(position):
            raise expired()

    if patient_id is not None:
        filters = filters.of_patient(patient_id)
    events = _stream(feed, brand_id, filters, position, await feed.head())
    return _shown(feed, await feed.cursors(), events)


async def _shown(
    feed: Feed, cursors: FeedCursors, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[FeedEvent, None]:
    async with aclosing(events):
        async for event in events:
            yield FeedEvent.of(event, cursors, feed.reads(event.position))


async def _stream(
    feed: Feed, brand_id: str, filters: EventFilter, position: int | None, head: int
) -> AsyncGenerator[Event, None]:
    """Yield the stored events after a position up to the head, then the live events after the head."""
    if position is not None:
        async for event in _kept(feed, brand_id, filters, position, head):
            yield event
        # Reading took as long as the subscriber liked, and a reader without subscribers does not advance meanwhile.
        await feed.head()
        # The cursor may come from another gateway that had read further.
        head = max(position, head)
    with feed.follow(brand_id, filters) as live:
        async for event in _kept(feed, brand_id, filters, head, live.start):
            yield event
        async for event in live:
            if event.position > head:
                yield event


async def _kept(feed: Feed, brand_id: str, filters: EventFilter, after: int, until: int) -> AsyncIterator[Event]:
    """Yield the events after one position up to another. Raises `InvalidInput` if some of them have been pruned."""
    while after < until:
        end = min(until, after + MOST_POSITIONS) if filters.criteria() else until
        async with feed.connection(brand_id) as connection:
            events = await read_events(connection, after, end, BATCH, brand_id=brand_id, filters=filters)
            # Read after the events: events are pruned only after the mark has moved.
            mark = await find_mark(connection)
        if not mark.allows(after):
            raise expired()
        for event in events:
            if event.concerns_encounter:
                yield event
        after = end if len(events) < BATCH else events[-1].position
