"""The feed: what happened, in an order that never changes, from any place in it and then as it happens.

A subscriber reads what is kept at its own pace, and then joins the one reader that the process has (`outbox.Feed`).
Any gateway serves any subscriber: a cursor means the same at each.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self
from uuid import UUID

from models import EncounterEventKind
from resolvers import json_text
from resolvers.access import Permission
from resolvers.context import Context
from resolvers.errors import InvalidInput, PatientNotFound, Violation
from resolvers.feed_cursors import FeedCursors
from resolvers.outbox import Event, Reads, find_mark, read_events
from resolvers.patients import find_patient
from resolvers.services import Feed

BATCH = 200


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One event as a subscriber sees it: what became of which encounter, and the cursor to go on from."""

    cursor: str
    id: UUID
    event_type: str
    kind: EncounterEventKind
    encounter_id: UUID
    patient_id: str
    brand_id: str
    created_at: datetime
    reads: Reads = field(repr=False, compare=False)
    """Where to read what it tells of."""

    @classmethod
    def of(cls, event: Event, cursors: FeedCursors, reads: Reads) -> Self:
        """Show an event of the outbox."""
        payload = json_text.read(event.payload)
        return cls(
            cursor=cursors.write(event.position, event.brand_id),
            id=event.id,
            event_type=event.event_type,
            kind=EncounterEventKind(payload.get("kind", EncounterEventKind.RECORDED)),
            encounter_id=UUID(payload["encounter_id"]),
            patient_id=event.patient_id,
            brand_id=event.brand_id,
            created_at=event.created_at,
            reads=reads,
        )


async def stream_events(
    context: Context, patient_id: str | None = None, after: str | None = None
) -> AsyncGenerator[FeedEvent, None]:
    """Give the events of the caller's brand, or of one patient, each once and in order, as they come.

    `after` is the cursor of the last event that was seen; without it the stream begins now. Raises `InsufficientScope`,
    `Forbidden`, `InvalidInput` for a cursor that is none or too old, `PatientNotFound` or `TemporarilyUnavailable`
    before there is a stream. The stream itself ends with `TemporarilyUnavailable` for one who takes the events more
    slowly than they come, and when the process stops: go on from the last cursor.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    feed = context.services.feed
    position = None if after is None else (await feed.cursors()).read(after, brand_id)
    async with feed.connection(brand_id) as connection:
        if patient_id is not None and await find_patient(connection, brand_id, patient_id) is None:
            raise PatientNotFound
        if position is not None and not (await find_mark(connection)).allows(position):
            raise _expired()

    events = _stream(feed, brand_id, patient_id, position, await feed.head())
    return _shown(feed, await feed.cursors(), events)


async def _shown(
    feed: Feed, cursors: FeedCursors, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[FeedEvent, None]:
    async with aclosing(events):
        async for event in events:
            yield FeedEvent.of(event, cursors, feed.reads(event.position))


async def _stream(
    feed: Feed, brand_id: str, patient_id: str | None, position: int | None, head: int
) -> AsyncGenerator[Event, None]:
    """Give what is kept after a position up to the head, and what follows the head."""
    of = {"brand_id": brand_id} if patient_id is None else {"brand_id": brand_id, "patient_id": patient_id}
    if position is not None:
        async for event in _kept(feed, of, position, head):
            yield event
        # That took as long as the subscriber liked. A reader whom nobody follows stands still meanwhile.
        await feed.head()
        # The cursor may be another gateway's who had read further.
        head = max(position, head)
    with feed.follow(brand_id, patient_id) as live:
        async for event in _kept(feed, of, head, live.start):
            yield event
        async for event in live:
            if event.position > head:
                yield event


async def _kept(feed: Feed, of: Mapping[str, str], after: int, until: int) -> AsyncIterator[Event]:
    """Give the events after one position and up to another; raises `InvalidInput` if some are no longer kept."""
    while after != until:
        async with feed.connection(of["brand_id"]) as connection:
            events = await read_events(connection, after, until, BATCH, **of)
            # Asked afterwards: events are let go of only after this says so.
            mark = await find_mark(connection)
        if not mark.allows(after):
            raise _expired()
        for event in events:
            yield event
        if len(events) < BATCH:
            return
        after = events[-1].position


def _expired() -> InvalidInput:
    return InvalidInput([Violation("/after", "cursor_expired", "is not among the events that are kept")])
