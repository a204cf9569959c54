"""Helpers for tests of events: gateways on a new database, uncommitted writers, subscribers of the feed."""

import asyncio
import hashlib
import struct
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self
from uuid import UUID

import asyncpg

from gateway.database.database import APP_ROLE, RELAY_ROLE, Database, Timeouts
from gateway.events.feed import Feed
from gateway.events.pipeline import event_pipeline
from gateway.events.status import event_numbers
from gateway.settings import Settings
from models import Encounter, EncounterEventKind, EncounterType
from resolvers.access import Caller
from resolvers.commands import EventFilter
from resolvers.context import Context
from resolvers.feed import FeedEvent, stream_events
from resolvers.ids import new_id
from resolvers.outbox import append_event
from resolvers.services import Services
from resolvers.sql import Connection
from tests.waiting import wait_until


def cursor_v1(brand_id: str = "loop", position: int = 0) -> str:
    """Return a cursor of the first version, which needs no key; by default of the feed's beginning."""
    digest = hashlib.sha256(f"feed {brand_id}".encode()).digest()[:8]
    return urlsafe_b64encode(struct.pack(">Bq8s", 1, position, digest)).decode().rstrip("=")


async def append(connection: Connection, patient_id: str, brand_id: str = "loop") -> UUID:
    """Append the event of a recorded encounter, and return the encounter's id."""
    columns: dict[str, Any] = dict.fromkeys(each.name for each in fields(Encounter)) | {
        "id": new_id(),
        "patient_id": patient_id,
        "brand_id": brand_id,
        "encounter_type": EncounterType.LAB,
        "created_at": datetime.now(UTC),
    }
    encounter = Encounter(**columns)
    await append_event(connection, encounter, EncounterEventKind.RECORDED, "tester")
    return encounter.id


class NullAuditSink:
    """Discards audit records."""

    def record(self, _note: object) -> None:
        pass


@dataclass
class OpenTransaction:
    """A transaction that has appended an event and has not committed."""

    encounter_id: UUID
    _stack: AsyncExitStack

    async def commit(self) -> UUID:
        """Commit, and return the encounter's id."""
        await self._stack.aclose()
        return self.encounter_id


@dataclass
class Subscriber:
    """Follows the feed and collects its events."""

    events: list[FeedEvent] = field(default_factory=list)
    ended: BaseException | None = None
    _task: asyncio.Task[None] | None = None

    @property
    def encounters(self) -> list[UUID]:
        """The encounters of the collected events, in order."""
        return [event.encounter_id for event in self.events]

    async def stop(self) -> None:
        """End the subscription."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@dataclass
class Gateway:
    """The parts of one gateway process that concern events."""

    url: str
    app: Database
    relay: Database
    feed: Feed
    context: Context

    @classmethod
    @asynccontextmanager
    async def running(cls, url: str, *, relays: bool = True, **settings: Any) -> AsyncIterator[Self]:
        """Start a gateway on a database; without `relays`, another process has the relay's lease."""
        timeouts: Timeouts = {"acquire_seconds": 10, "statement_seconds": 20}
        app = await Database.connect(url, role=APP_ROLE, size=12, **timeouts)
        relay = await Database.connect(url, role=RELAY_ROLE, size=4, **timeouts)
        if not relays:
            await rows(url, "INSERT INTO gateway.leases VALUES ('relay', gen_random_uuid(), 'infinity')")
        try:
            async with event_pipeline(Settings(database_url=url, **settings), url, relay, []) as feed:
                services = Services(verify=_no_verification, database=app, audit_sink=NullAuditSink(), feed=feed)
                caller = Caller("tester", frozenset({"read:encounters"}), brand_id="loop")
                yield cls(url, app, relay, feed, Context(caller, None, "request", services))
        finally:
            await relay.close()
            await app.close()

    def acting_for(self, brand_id: str) -> Context:
        """Return the context of a caller of another brand."""
        return replace(self.context, caller=replace(self.context.caller, brand_id=brand_id))

    async def begin(self, patient_id: str, brand_id: str = "loop") -> OpenTransaction:
        """Append an event in a transaction, and leave it open."""
        stack = AsyncExitStack()
        connection = await stack.enter_async_context(self.app.transaction(brand_id))
        return OpenTransaction(await append(connection, patient_id, brand_id), stack)

    async def record(self, patient_id: str, brand_id: str = "loop") -> UUID:
        """Append an event, commit, and notify as the resolver does."""
        encounter_id = await (await self.begin(patient_id, brand_id)).commit()
        self.feed.notify()
        return encounter_id

    async def relayed(self, position: int) -> None:
        """Wait until events up to this position can be read."""
        await wait_until(partial(self._has_reached, position))

    async def _has_reached(self, position: int) -> bool:
        return (await event_numbers(self.relay)).position >= position

    def subscribe(
        self, after: str | None = None, *, patient_id: str | None = None, brand_id: str = "loop", **where: Sequence[str]
    ) -> Subscriber:
        """Follow the feed until stopped. `where` are members of `EventFilter`."""
        subscriber = Subscriber()

        async def follow() -> None:
            try:
                async for event in await stream_events(
                    self.acting_for(brand_id), patient_id, after, EventFilter.model_validate(where)
                ):
                    subscriber.events.append(event)
            except Exception as error:  # noqa: BLE001 - the test inspects it
                subscriber.ended = error

        subscriber._task = asyncio.create_task(follow())
        return subscriber


async def rows(url: str, query: str, *arguments: object) -> Sequence[Any]:
    """Run a query as the owner of the tables."""
    connection = await asyncpg.connect(url)
    try:
        found: Sequence[Any] = await connection.fetch(query, *arguments)
        return found
    finally:
        await connection.close()


async def _no_verification(_token: str) -> Caller:
    raise NotImplementedError
