"""The live end of the feed: one reader for all subscribers of this process.

It sleeps until the watermark moves, reads what is new once, and gives each event to those it is for. Nobody following,
it reads nothing. A subscriber's queue is bounded: whoever does not keep up is sent away with what they need to go on.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from gateway.database import Database
from gateway.doorbell import MOVED, Doorbell
from gateway.telemetry import describe, log
from resolvers.errors import GatewayError, TemporarilyUnavailable
from resolvers.outbox import Event, find_mark, read_events

BATCH = 500
QUEUED_AT_MOST = 1_000
POLL_SECONDS = 1.0

TOO_SLOW = "The events were not taken as fast as they came; subscribe again after the last cursor."
OVER = "The feed ends here for now; subscribe again after the last cursor."


class Follower:
    """One subscriber's queue of events, which ends with the reason."""

    def __init__(self, start: int) -> None:
        self.start = start
        self._queue: asyncio.Queue[Event | GatewayError] = asyncio.Queue(QUEUED_AT_MOST)
        self._ended = False

    def offer(self, event: Event) -> None:
        """Queue an event; end at once when there are too many."""
        if self._ended:
            return
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.end(TOO_SLOW)

    def end(self, reason: str) -> None:
        """Let go of what is queued, and say why."""
        self._ended = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(TemporarilyUnavailable(reason))

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Give the next event when it comes. Raises `TemporarilyUnavailable` at the end."""
        event = await self._queue.get()
        if isinstance(event, GatewayError):
            raise event
        return event


class Feed:
    """The feed of this process (`resolvers.outbox.Feed`). `database` acts as the relay's role."""

    def __init__(self, database: Database, doorbell: Doorbell) -> None:
        self._database = database
        self._doorbell = doorbell
        self._bell = doorbell.wakes(asyncio.Event(), MOVED)
        self._followers: dict[tuple[str, str | None], set[Follower]] = {}
        self._seen = 0

    def ring(self) -> None:
        """Say that an event was appended and committed."""
        self._doorbell.ring()

    async def head(self) -> int:
        """Give the position up to which this process has read: now, if nobody follows."""
        if not self._followers:
            async with self._database.across_brands() as connection:
                mark = await find_mark(connection)
            if not self._followers:
                self._seen = mark.position
        return self._seen

    @contextmanager
    def follow(self, brand_id: str, patient_id: str | None) -> Iterator[Follower]:
        """Follow the events of a brand or a patient that come after the head."""
        key, follower = (brand_id, patient_id), Follower(self._seen)
        self._followers.setdefault(key, set()).add(follower)
        try:
            yield follower
        finally:
            self._followers[key].discard(follower)
            if not self._followers[key]:
                del self._followers[key]

    async def run(self) -> None:
        """Pass events on until cancelled; then every subscriber is told."""
        try:
            while True:
                try:
                    while self._followers and await self._pass_on():
                        pass
                except GatewayError:
                    pass  # the database is away; what comes meanwhile is read afterwards
                except Exception as error:  # noqa: BLE001 - subscribers must not be left waiting for ever
                    log.error("feed", **describe(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._bell.wait()
                self._bell.clear()
        finally:
            self._end_all()

    async def _pass_on(self) -> bool:
        """Give everybody the next events; say whether there are more."""
        seen = self._seen
        async with self._database.across_brands() as connection:
            until = (await find_mark(connection)).position
            events = [] if until == seen else await read_events(connection, seen, until, BATCH)
            # Asked afterwards: events are let go of only after this says so.
            mark = await find_mark(connection)
        if seen != self._seen:
            return True  # everybody left meanwhile, and somebody came
        if not mark.allows(seen):
            # The database is another than it was, or this process was asleep for weeks.
            self._end_all()
            self._seen = mark.position
            return False
        for event in events:
            for key in ((event.brand_id, None), (event.brand_id, event.patient_id)):
                for follower in self._followers.get(key, ()):
                    follower.offer(event)
        self._seen = events[-1].position if events else until
        return self._seen < until

    def _end_all(self) -> None:
        for followers in self._followers.values():
            for follower in followers:
                follower.end(OVER)
