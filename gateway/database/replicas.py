"""Streaming replicas: reads go to one that is recent enough, or else to the primary (`resolvers.consistency.Replicas`).

A statement that a replica fails is repeated on the primary.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from enum import StrEnum
from operator import attrgetter
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg

from gateway.database.connection import hosts_of
from gateway.database.database import APP_ROLE, Database
from gateway.database.replica_polls import FAILED, Primary, Problem, Replica
from gateway.observability.metrics import READS
from resolvers.consistency import UNKNOWN, Consistency, Marker, newest
from resolvers.errors import GatewayError, TemporarilyUnavailable, TooBroad
from resolvers.sql import Connection, Row, Statement

POLL_SECONDS = 0.2
"""Seconds between two polls of a server."""

HURRY_SECONDS = 0.005
"""Seconds between two polls while a read waits for a replica to come as far as its marker."""

WAIT_SECONDS = 0.1
"""Seconds that a read waits for a replica to come as far as its marker; then the primary answers."""

CLIENT_SECONDS = 150.0
"""Seconds that the last change of a client is remembered: longer than any lag that a replica in use may have."""

MAX_CLIENTS = 10_000
"""Number of clients whose last change is remembered."""

T = TypeVar("T")


class Reason(StrEnum):
    """Why a request reads where it does: a label of the metrics."""

    RECENT = "recent"
    WAITED = "waited"
    BEHIND = "behind"
    LEFT_OUT = "left_out"
    FAILED = "failed"


class _Clients:
    """The position of each client's last change, for `CLIENT_SECONDS` and at most `MAX_CLIENTS` clients."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, tuple[Marker, float]] = OrderedDict()
        self._dropped: tuple[Marker, float] | None = None
        """The newest change that was dropped for want of space: a client that is not listed may have made it."""

    def note(self, client_id: str, marker: Marker) -> None:
        now = asyncio.get_running_loop().time()
        self._last[client_id] = marker, now
        self._last.move_to_end(client_id)
        while (oldest := next(iter(self._last.values())))[1] < now - CLIENT_SECONDS or len(self._last) > MAX_CLIENTS:
            if oldest[1] >= now - CLIENT_SECONDS:
                self._dropped = oldest
            self._last.popitem(last=False)

    def of(self, client_id: str) -> list[Marker]:
        """Return the markers that a read of the client must see."""
        oldest = asyncio.get_running_loop().time() - CLIENT_SECONDS
        last = self._last.get(client_id, self._dropped)
        return [last[0]] if last is not None and last[1] >= oldest else []


class ReplicaSet:
    """The replicas of a process (`resolvers.consistency.Replicas`)."""

    def __init__(
        self, primary: Primary, replicas: Sequence[Replica], pools: tuple[Database, Database], max_lag_seconds: float
    ) -> None:
        """Take the replicas of a primary.

        Args:
            primary: The primary's position.
            replicas: The replicas.
            pools: The primary's pools for requests and for worklists.
            max_lag_seconds: Seconds behind the primary from which a replica is left out.
        """
        self.replicas = replicas
        self.pools = pools
        self._primary = primary
        self._max_lag_seconds = max_lag_seconds
        self._clients = _Clients()
        self._turn = 0
        self._waiting = 0
        self._polled = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        read_urls: Sequence[str],
        pools: tuple[Database, Database],
        *,
        size: int,
        worklist_size: int,
        acquire_seconds: float,
        statement_seconds: float,
        worklist_seconds: float,
        max_lag_seconds: float,
    ) -> AsyncIterator[Self]:
        """Poll the replicas until the block ends. One that cannot be reached is left out.

        Args:
            url: The primary.
            read_urls: The replicas, one server each.
            pools: The primary's pools for requests and for worklists.
            size: Maximum number of connections to each replica for requests.
            worklist_size: The same for worklists.
            acquire_seconds: Seconds to wait for a connection.
            statement_seconds: Seconds that a statement of a request may run.
            worklist_seconds: Seconds that a statement of a worklist may run.
            max_lag_seconds: Seconds behind the primary from which a replica is left out.
        """
        common: dict[str, Any] = {
            "role": APP_ROLE,
            "acquire_seconds": acquire_seconds,
            "long_answers": True,
            "opens_first": False,
            "of_replica": True,
        }
        replicas = [
            Replica(
                name,
                read_url,
                await Database.connect(
                    read_url,
                    f"replica {name}",
                    size=size,
                    statement_seconds=statement_seconds,
                    plans_once=True,
                    **common,
                ),
                await Database.connect(
                    read_url,
                    f"worklists {name}",
                    size=worklist_size,
                    statement_seconds=worklist_seconds,
                    late=TooBroad,
                    **common,
                ),
            )
            for name, read_url in names_of(read_urls).items()
        ]
        primary = Primary(url)
        opened = cls(primary, replicas, pools, max_lag_seconds)
        with suppress(*FAILED):
            await primary.position()
        await asyncio.gather(*(replica.poll(primary, max_lag_seconds) for replica in replicas))
        polls = [asyncio.create_task(opened._poll_primary())]
        polls += [asyncio.create_task(opened._poll(replica)) for replica in replicas]
        try:
            yield opened
        finally:
            for task in polls:
                task.cancel()
            await asyncio.gather(*polls, return_exceptions=True)
            await asyncio.gather(primary.close(), *(replica.close() for replica in replicas))

    async def _poll_primary(self) -> None:
        while True:
            with suppress(*FAILED):
                await self._primary.position()
            await asyncio.sleep(POLL_SECONDS)

    async def _poll(self, replica: Replica) -> None:
        while True:
            replica.hurry.clear()
            await replica.poll(self._primary, self._max_lag_seconds)
            polled, self._polled = self._polled, asyncio.Event()
            polled.set()
            if self._waiting:
                await asyncio.sleep(HURRY_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await replica.hurry.wait()

    def reads(self, consistency: Consistency) -> "RequestReads":
        """Return where a request reads."""
        return RequestReads(self, consistency)

    async def position(self, client_id: str) -> Marker:
        """Return the primary's current position, and remember it for the client; `UNKNOWN` if it cannot be read."""
        try:
            marker = await self._primary.position()
        except FAILED:
            marker = UNKNOWN
        self._clients.note(client_id, marker)
        return marker

    async def choose(self, consistency: Consistency) -> Replica | None:
        """Return a replica that has come as far as a request needs; None for the primary.

        Waits at most `WAIT_SECONDS` for one.
        """
        needed = [*consistency.needed, *self._clients.of(consistency.client_id)]
        if not self._in_use():
            READS.labels("primary", Reason.LEFT_OUT).inc()
            return None
        position = newest(needed, self._primary.timeline)
        if position is None:
            READS.labels("primary", Reason.BEHIND).inc()
            return None
        if replica := self._recent(position):
            READS.labels("replica", Reason.RECENT).inc()
            return replica
        late = await self._wait_for(position)
        READS.labels(*(("replica", Reason.WAITED) if late else ("primary", Reason.BEHIND))).inc()
        return late

    async def _wait_for(self, position: int) -> Replica | None:
        self._waiting += 1
        for each in self.replicas:
            each.hurry.set()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    await self._polled.wait()
                    if replica := self._recent(position):
                        return replica
        except TimeoutError:
            return None
        finally:
            self._waiting -= 1

    def _in_use(self) -> list[Replica]:
        return [each for each in self.replicas if each.is_in_use(self._primary.timeline)]

    def _recent(self, position: int) -> Replica | None:
        """Return a replica that has come as far as a position, in turn; None if there is none."""
        recent = [each for each in self._in_use() if each.position >= position]
        if not recent:
            return None
        self._turn += 1
        return recent[self._turn % len(recent)]


class RequestReads:
    """Where one request reads (`resolvers.consistency.Reads`).

    Its first read chooses the server. Later reads use the same one, or the primary once that has failed, so no read of
    a request is older than an earlier one.
    """

    def __init__(self, replicas: ReplicaSet, consistency: Consistency) -> None:
        requests, worklists = replicas.pools
        self.consistency = consistency
        self.requests = ReplicaDatabase(self, requests, attrgetter("requests"))
        self.worklists = ReplicaDatabase(self, worklists, attrgetter("worklists"))
        self._replicas = replicas
        self._chosen: Replica | None = None
        self._is_chosen = False
        self._choosing = asyncio.Lock()

    async def replica(self) -> Replica | None:
        """Return the replica of this request; None for the primary."""
        if not self._is_chosen:
            async with self._choosing:
                if not self._is_chosen:
                    self._chosen = await self._replicas.choose(self.consistency)
                    self._is_chosen = True
        return self._chosen

    def move(self, replica: Replica, error: BaseException) -> None:
        """Read from the primary from now on, because a read on the replica failed with an error."""
        if self._chosen is replica:
            self._chosen = None
            READS.labels("primary", Reason.FAILED).inc()
        cause = error.__cause__ if isinstance(error, GatewayError) else error
        if isinstance(cause, LOST):
            replica.fail()


LOST = (
    ConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.CrashShutdownError,
)
"""Errors that mean that the server is gone, not that it failed one statement."""


class ReplicaDatabase:
    """A pool of the request's replica, and of the primary where the replica fails (`resolvers.sql.Database`)."""

    def __init__(self, reads: RequestReads, primary: Database, pool_of: Callable[[Replica], Database]) -> None:
        self.reads = reads
        self.primary = primary
        self.pool_of = pool_of

    def connection(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection of the replica. Once a statement fails there, the block goes on with the primary.

        Raises `TemporarilyUnavailable`.
        """
        return _Reading(self, brand_id)

    async def fetch_one_batched(
        self,
        brand_id: str,
        statement: Statement,
        by: str,
        value: str,
        *,
        rows: int = 1,
        most_bytes: int,
        **given: object,
    ) -> Row | None:
        """Return the row whose `key` is `value`, as `Database.fetch_one_batched` does."""
        replica = await self.reads.replica()
        if replica is not None:
            try:
                return await self.pool_of(replica).fetch_one_batched(
                    brand_id, statement, by, value, rows=rows, most_bytes=most_bytes, **given
                )
            except (TemporarilyUnavailable, asyncpg.PostgresError) as error:
                if isinstance(error.__cause__, asyncpg.QueryCanceledError):
                    raise  # it would take as long on the primary
                self.reads.move(replica, error)
        return await self.primary.fetch_one_batched(
            brand_id, statement, by, value, rows=rows, most_bytes=most_bytes, **given
        )

    def autocommit(self, brand_id: str, within_seconds: float) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection of the primary for one writing statement."""
        self.reads.consistency.begin_change()
        return self.primary.autocommit(brand_id, within_seconds)

    def transaction(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection of the primary in a transaction. The request's later reads use the primary too."""
        self.reads.consistency.begin_change()
        return self.primary.transaction(brand_id)


class _Reading:
    """A connection of a replica, and of the primary once a statement has failed on the replica."""

    def __init__(self, database: ReplicaDatabase, brand_id: str) -> None:
        self._database = database
        self._brand_id = brand_id
        self._acquired = AsyncExitStack()
        self._replica: Replica | None = None

    async def __aenter__(self) -> Self:
        self._replica = await self._database.reads.replica()
        if self._replica is not None:
            try:
                await self._acquire(self._database.pool_of(self._replica))
            except TemporarilyUnavailable as error:
                self._leave(error)
        if self._replica is None:
            await self._acquire(self._database.primary)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._acquired.__aexit__(kind, error, traceback)

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        return await self._read(lambda connection: connection.fetch(statement, **values))

    async def fetch_one(self, statement: Statement, **values: object) -> Row | None:
        return await self._read(lambda connection: connection.fetch_one(statement, **values))

    async def fetch_at_most(self, most_bytes: int, statement: Statement, /, **values: object) -> list[Row]:
        return await self._read(lambda connection: connection.fetch_at_most(most_bytes, statement, **values))

    async def _read(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        if self._replica is None:
            return await read(self._connection)
        try:
            return await read(self._connection)
        except asyncpg.QueryCanceledError:
            raise  # it would take as long on the primary
        except FAILED as error:
            # Released first, as after an error of the block.
            with suppress(*FAILED, TemporarilyUnavailable):
                await self._acquired.__aexit__(type(error), error, error.__traceback__)
            self._acquired = AsyncExitStack()
            self._leave(error)
        await self._acquire(self._database.primary)
        return await read(self._connection)

    async def _acquire(self, pool: Database) -> None:
        self._connection = await self._acquired.enter_async_context(pool.connection(self._brand_id))

    def _leave(self, error: BaseException) -> None:
        assert self._replica is not None, "the connection is one of a replica"
        self._database.reads.move(self._replica, error)
        self._replica = None


def names_of(urls: Sequence[str]) -> dict[str, str]:
    """Return the URLs by the names of their replicas in metrics and the log: the host and the port."""
    named: dict[str, str] = {}
    for url in urls:
        ((host, port),) = hosts_of(url)
        name = f"{host or 'localhost'}:{port or 5432}"
        named[f"{name} ({len(named) + 1})" if name in named else name] = url
    return named


async def replica_problems(url: str, read_urls: Sequence[str], max_lag_seconds: float) -> dict[str, Problem | None]:
    """Return what is wrong with each replica now, by its name; None if it would be used."""
    async with ReplicaSet.open(
        url,
        read_urls,
        # No request is read.
        pools=None,  # type: ignore[arg-type]
        size=1,
        worklist_size=1,
        acquire_seconds=1,
        statement_seconds=1,
        worklist_seconds=1,
        max_lag_seconds=max_lag_seconds,
    ) as replicas:
        return {replica.name: replica.problem for replica in replicas.replicas}
