"""Gateways that share a database of their own, writers whose commits are held back, and subscribers that write down."""

import asyncio
import hashlib
import struct
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from inspect import isawaitable
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg

from gateway.database.database import APP_ROLE, RELAY_ROLE, Database, Timeouts
from gateway.database.migrate import migrate
from gateway.events.feed import Feed
from gateway.events.pipeline import event_pipeline
from gateway.events.status import event_numbers
from gateway.settings import Settings
from models import Encounter, EncounterEventKind, EncounterType
from resolvers.access import Caller
from resolvers.context import Context
from resolvers.feed import FeedEvent, stream_events
from resolvers.ids import new_id
from resolvers.outbox import append_event
from resolvers.services import Services
from resolvers.sql import Connection
from tests.conftest import create_database

DEADLINE_SECONDS = 30.0
"""How long what should happen at once may take on a busy machine."""

_templates: dict[str, str] = {}


async def fresh_database(server_url: str) -> str:
    """Give a migrated database that nobody else uses: positions are counted from one."""
    if server_url not in _templates:
        url = await create_database(server_url)
        await migrate(url)
        _templates[server_url] = urlsplit(url).path[1:]
    return await create_database(server_url, _templates[server_url])


def beginning(brand_id: str = "loop", position: int = 0) -> str:
    """Write a cursor as the first version did, which needs no key: of the feed's beginning, or another position."""
    digest = hashlib.sha256(f"feed {brand_id}".encode()).digest()[:8]
    return urlsafe_b64encode(struct.pack(">Bq8s", 1, position, digest)).decode().rstrip("=")


async def until(condition: Callable[[], Any]) -> None:
    """Return when the condition holds, which may have to be awaited; fail when it still does not after a while."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            holds = condition()
            if await holds if isawaitable(holds) else holds:
                return
            await asyncio.sleep(0.01)


async def append(connection: Connection, patient_id: str, brand_id: str = "loop") -> UUID:
    """Append that an encounter was recorded, and give its id."""
    columns: dict[str, Any] = dict.fromkeys(each.name for each in fields(Encounter)) | {
        "id": new_id(),
        "patient_id": patient_id,
        "brand_id": brand_id,
        "encounter_type": EncounterType.LAB,
        "created_at": datetime.now(UTC),
    }
    encounter = Encounter(**columns)
    await append_event(connection, encounter, EncounterEventKind.RECORDED)
    return encounter.id


class Silent:
    """A trail that nobody reads."""

    def record(self, _note: object) -> None:
        pass


@dataclass
class Held:
    """A transaction that has appended an event and has not committed."""

    encounter_id: UUID
    _stack: AsyncExitStack

    async def commit(self) -> UUID:
        """Commit, at last."""
        await self._stack.aclose()
        return self.encounter_id


@dataclass
class Subscriber:
    """Somebody who follows the feed, and writes down what they are given."""

    events: list[FeedEvent] = field(default_factory=list)
    ended: BaseException | None = None
    _task: asyncio.Task[None] | None = None

    @property
    def encounters(self) -> list[UUID]:
        """Which encounters they were told of, in this order."""
        return [event.encounter_id for event in self.events]

    async def stop(self) -> None:
        """Go away."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@dataclass
class Gateway:
    """What one gateway process has."""

    url: str
    app: Database
    relay: Database
    feed: Feed
    context: Context

    @classmethod
    @asynccontextmanager
    async def running(cls, url: str, *, relays: bool = True, **settings: Any) -> AsyncIterator[Self]:
        """Start a gateway on a database; without `relays` its relay finds that somebody else has the lease."""
        patience: Timeouts = {"acquire_seconds": 10, "statement_seconds": 20}
        app = await Database.connect(url, role=APP_ROLE, size=12, **patience)
        relay = await Database.connect(url, role=RELAY_ROLE, size=4, **patience)
        if not relays:
            await rows(url, "INSERT INTO gateway.leases VALUES ('relay', gen_random_uuid(), 'infinity')")
        try:
            async with event_pipeline(Settings(database_url=url, **settings), url, relay, []) as feed:
                services = Services(verify=_nobody, database=app, audit_sink=Silent(), feed=feed)
                caller = Caller("tester", frozenset({"read:encounters"}), brand_id="loop")
                yield cls(url, app, relay, feed, Context(caller, None, "request", services))
        finally:
            await relay.close()
            await app.close()

    def acting_for(self, brand_id: str) -> Context:
        """Give the context of a caller of another brand."""
        return replace(self.context, caller=replace(self.context.caller, brand_id=brand_id))

    async def begin(self, patient_id: str, brand_id: str = "loop") -> Held:
        """Record, but do not commit yet."""
        stack = AsyncExitStack()
        connection = await stack.enter_async_context(self.app.transaction(brand_id))
        return Held(await append(connection, patient_id, brand_id), stack)

    async def record(self, patient_id: str, brand_id: str = "loop") -> UUID:
        """Record and commit, and ring as the resolver does."""
        encounter_id = await (await self.begin(patient_id, brand_id)).commit()
        self.feed.notify()
        return encounter_id

    async def relayed(self, position: int) -> None:
        """Return when events up to this position may be read."""
        await until(partial(self._relayed, position))

    async def _relayed(self, position: int) -> bool:
        return (await event_numbers(self.relay)).position >= position

    def subscribe(
        self, after: str | None = None, *, patient_id: str | None = None, brand_id: str = "loop"
    ) -> Subscriber:
        """Follow the feed until stopped."""
        subscriber = Subscriber()

        async def follow() -> None:
            try:
                async for event in await stream_events(self.acting_for(brand_id), patient_id, after):
                    subscriber.events.append(event)
            except Exception as error:  # noqa: BLE001 - the test asks which
                subscriber.ended = error

        subscriber._task = asyncio.create_task(follow())
        return subscriber


async def rows(url: str, query: str, *arguments: object) -> Sequence[Any]:
    """Look into the tables."""
    connection = await asyncpg.connect(url)
    try:
        found: Sequence[Any] = await connection.fetch(query, *arguments)
        return found
    finally:
        await connection.close()


async def _nobody(_token: str) -> Caller:
    raise NotImplementedError
