"""The live end of the feed: one reader for all subscribers of this process.

It sleeps until the watermark moves, reads new events once, and passes each event to the subscribers whose filters match
it. The encounter of an event is read, once, only if a filter matches. Without subscribers it does not poll. A
subscriber whose queue is full is disconnected and resumes from its last cursor.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from uuid import UUID

from gateway.database.database import Database
from gateway.events.notifier import Notifier
from gateway.events.subscriber_reads import EventReads, SubscriberReads
from gateway.observability.logs import describe
from resolvers import json_text
from resolvers.commands import EventFilter
from resolvers.encounters.read import ENCOUNTERS_OF_PATIENTS, values_of_keys
from resolvers.errors import GatewayError, TemporarilyUnavailable
from resolvers.feed_cursors import FeedCursors
from resolvers.outbox import MOVED, Event, find_mark, read_events
from resolvers.sql import Connection

logger = logging.getLogger(__name__)

BATCH = 100
"""Events read at once with their encounters; the encounters must fit into the cache of `SubscriberReads`."""

QUEUED_AT_MOST = 1_000
POLL_SECONDS = 1.0
RETRY_SECONDS = 1.0

WOKEN_AT_ONCE = 16
"""Subscribers that get an event in one turn of the event loop; other requests run in between."""

TOO_SLOW = "The subscriber is too slow for the events; subscribe again after the last cursor."
OVER = "The feed was interrupted; subscribe again after the last cursor."


class Follower:
    """The event queue of one subscriber; it ends with an error that has the reason."""

    def __init__(self, start: int, filters: EventFilter) -> None:
        self.start = start
        self._kinds, self._types, self._providers = (
            None if values is None else frozenset[object](values)
            for values in (filters.kinds, filters.encounter_type, filters.provider_id)
        )
        self._queue: asyncio.Queue[Event | GatewayError] = asyncio.Queue(QUEUED_AT_MOST)
        self._ended = False

    def matches(self, event: Event) -> bool:
        """Whether the filter matches the event of one of its patients.

        An event whose provider is unknown matches: a subscriber must not miss an event.
        """
        return (
            (self._kinds is None or event.kind in self._kinds)
            and (self._types is None or not self._types.isdisjoint(event.encounter_types))
            and (
                self._providers is None
                or event.provider_ids is None
                or not self._providers.isdisjoint(event.provider_ids)
            )
        )

    def offer(self, event: Event) -> None:
        """Queue an event, unless it is at or before the start. End the queue if it is full."""
        if self._ended or event.position <= self.start:
            return
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.end(TOO_SLOW)

    def end(self, reason: str) -> None:
        """Discard the queued events and queue the error with the reason."""
        self._ended = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(TemporarilyUnavailable(reason))

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Return the next event, waiting for it. Raises `TemporarilyUnavailable` at the end."""
        event = await self._queue.get()
        if isinstance(event, GatewayError):
            raise event
        return event


class Feed:
    """The feed of this process (`resolvers.services.Feed`).

    Args:
        database: Acts as the relay's role, and reads the events of all brands.
        notifier: Wakes the reader when the watermark has moved.
        reads: Acts as the application's role, for one brand at a time.
    """

    def __init__(self, database: Database, notifier: Notifier, reads: SubscriberReads) -> None:
        self._database = database
        self._reads = reads
        self._cursors: FeedCursors | None = None
        self._notifier = notifier
        self._wakeup = notifier.subscribe(asyncio.Event(), MOVED)
        self._followers: dict[tuple[str, str | None], set[Follower]] = {}
        self._seen = 0

    def notify(self) -> None:
        """Notify all gateways that an event was appended and committed."""
        self._notifier.notify()

    async def head(self) -> int:
        """Return the position up to which this process has read. Without subscribers, return the current watermark."""
        if not self._followers:
            async with self._reads.turn() as connection:
                mark = await find_mark(connection)
            if not self._followers:
                self._seen = mark.position
        return self._seen

    async def cursors(self) -> FeedCursors:
        """Return the codec of this database's cursors. Raises `TemporarilyUnavailable`."""
        if self._cursors is None:
            async with self._reads.turn() as connection:
                self._cursors = await FeedCursors.find(connection)
        return self._cursors

    def connection(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection of the subscribers' pool, waiting in turn."""
        return self._reads.turn(brand_id)

    def reads(self, position: int) -> EventReads:
        """Return the cached reads of the data that events up to `position` refer to."""
        return EventReads(self._reads, position)

    @contextmanager
    def follow(self, brand_id: str, filters: EventFilter) -> Iterator[Follower]:
        """Subscribe to the events of a brand after the head that match a filter."""
        follower = Follower(self._seen, filters)
        # No event has an empty patient: a follower of no patient gets no event, and ends with the others.
        patients = [None] if filters.patient_id is None else [*filters.patient_id] or [""]
        keys = [(brand_id, patient_id) for patient_id in patients]
        for key in keys:
            self._followers.setdefault(key, set()).add(follower)
        try:
            yield follower
        finally:
            for key in keys:
                self._followers[key].discard(follower)
                if not self._followers[key]:
                    del self._followers[key]

    async def run(self) -> None:
        """Pass events to subscribers until cancelled, then end every subscription."""
        try:
            while True:
                pause_seconds = POLL_SECONDS
                try:
                    while self._followers and await self._pass_on():
                        pass
                except GatewayError:
                    # The database is unavailable. No notification tells that it is back.
                    pause_seconds = RETRY_SECONDS
                except Exception as error:  # noqa: BLE001 - subscribers get the error instead of waiting
                    logger.error("feed", extra=describe(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_seconds):
                        await self._wakeup.wait()
                self._wakeup.clear()
        finally:
            self._end_all()

    async def _pass_on(self) -> bool:
        """Pass the next events to all subscribers; return whether more are waiting."""
        seen = self._seen
        async with self._database.unscoped() as connection:
            until = (await find_mark(connection)).position
            events = [] if until == seen else await read_events(connection, seen, until, BATCH)
            # Read again after the events: events are pruned only after the mark says so.
            mark = await find_mark(connection)
        if seen != self._seen:
            return True  # the subscribers left meanwhile, and a new one moved the head
        last = events[-1].position if events else until
        events = [event for event in events if event.concerns_encounter]
        if not mark.allows(seen):
            # The database was replaced or restored, or this process was suspended for weeks.
            self._end_all()
            self._seen = mark.position
            return False
        await self._read_encounters([event for event in events if self._followers_of(event)])
        if seen != self._seen:
            return True
        # Moved first: a subscriber that joins while the events are passed on starts after them.
        self._seen = last
        # All events, because a subscriber may have joined while the encounters were read.
        for event in events:
            for number, follower in enumerate(self._followers_of(event), 1):
                follower.offer(event)
                if number % WOKEN_AT_ONCE == 0:
                    await asyncio.sleep(0)
        return self._seen < until

    def _followers_of(self, event: Event) -> list[Follower]:
        keys = ((event.brand_id, None), (event.brand_id, event.patient_id))
        return [follower for key in keys for follower in self._followers.get(key, ()) if follower.matches(event)]

    async def _read_encounters(self, events: Sequence[Event]) -> None:
        """Read the encounters of some events, once a brand, for all subscribers. Raises `TemporarilyUnavailable`.

        If those of a brand cannot be read for another reason, each of its subscribers gets that error later. The other
        brands are not affected.
        """
        by_brand: dict[str, dict[int, tuple[str, UUID]]] = {}
        for event in events:
            encounter_id = UUID(json_text.read(event.payload)["encounter_id"])
            by_brand.setdefault(event.brand_id, {})[event.position] = event.patient_id, encounter_id
        for brand_id, keys in by_brand.items():
            try:
                await self._read_of_brand(brand_id, keys)
            except GatewayError:
                raise
            except Exception as error:  # noqa: BLE001 - an error of one brand must not stop the others
                logger.error("feed", extra=describe(error))

    async def _read_of_brand(self, brand_id: str, keys: Mapping[int, tuple[str, UUID]]) -> None:
        # Uses the pool directly: one of its connections is reserved for this reader.
        async with self._reads.database.connection(brand_id) as connection:
            rows = await connection.fetch(ENCOUNTERS_OF_PATIENTS.plain, **values_of_keys(brand_id, keys.values()))
        found = {(row["patient_id"], row["id"]): row for row in rows}
        for position, key in keys.items():
            if (row := found.get(key)) is not None:
                values = values_of_keys(brand_id, [key])
                self._reads.keep(position, brand_id, ENCOUNTERS_OF_PATIENTS.plain, values, [row])

    def _end_all(self) -> None:
        for followers in self._followers.values():
            for follower in followers:
                follower.end(OVER)
