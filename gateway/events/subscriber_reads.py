"""Database reads of subscribers: a separate pool, and shared results of identical statements.

A thousand subscriptions that wake at one event read the same few rows. Their resolvers check permissions and record
audited reads one by one. Below them each statement is sent once for its event, brand and arguments, and its rows are
shared.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import NamedTuple

from gateway.database.database import Database, PoolConnection
from resolvers.sql import Connection, Row, Statement

POOL_SIZE = 4
"""Connections for subscribers in each process; subscribers read little, and each row once."""

RESERVED_CONNECTIONS = 1
"""Connections of the pool reserved for the reader of live events, which must not wait for subscribers that catch up."""

ACQUIRE_SECONDS = 10.0
"""Seconds; the timeout to open a connection. Longer than for a request, because only a subscriber waits for it."""

KEPT_BYTES = 32 * 1024 * 1024
"""Bytes of cached row text for subscribers that reach the same event later: some hundred encounters of maximum size."""

KEPT_SECONDS = 5.0
"""Seconds that rows are cached; subscribers that keep up read them within that time."""

ROW_BYTES = 200
"""Approximate bytes of a row besides its text."""


class _Asked(NamedTuple):
    position: int
    brand_id: str
    statement: Statement
    values: tuple[tuple[str, object], ...]


class _Kept(NamedTuple):
    rows: list[Row]
    size: int
    until: float


class SubscriberReads:
    """The subscribers' pool and the cache of recently read rows. `database` acts as the application's role."""

    def __init__(self, database: Database) -> None:
        self.database = database
        """The pool itself, used directly only by the reader of live events."""
        self._turns = asyncio.Semaphore(POOL_SIZE - RESERVED_CONNECTIONS)
        self._under_way: dict[_Asked, asyncio.Task[list[Row]]] = {}
        self._kept: dict[_Asked, _Kept] = {}
        self._kept_bytes = 0
        self._expiry: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def turn(self, brand_id: str | None = None) -> AsyncIterator[PoolConnection]:
        """Acquire a connection, for a brand or for none, waiting in turn without a timeout.

        Raises `TemporarilyUnavailable`.
        """
        async with self._turns:
            acquired = self.database.unscoped() if brand_id is None else self.database.connection(brand_id)
            async with acquired as connection:
                yield connection

    async def rows(self, position: int, brand_id: str, statement: Statement, values: Mapping[str, object]) -> list[Row]:
        """Return the rows of a statement, read once for an event. Raises the errors of the read.

        Args:
            position: Position of the event.
            brand_id: Brand whose rows are visible.
            statement: The statement.
            values: Its arguments.
        """
        asked = _asked(position, brand_id, statement, values)
        if (kept := self._kept.get(asked)) is not None:
            return kept.rows
        task = self._under_way.get(asked)
        if task is None:
            task = self._under_way[asked] = asyncio.create_task(self._read(asked, dict(values)))
            task.add_done_callback(partial(self._read_is_over, asked))
        # Shielded: a subscriber that disconnects must not cancel the read of the others.
        return await asyncio.shield(task)

    def keep(
        self, position: int, brand_id: str, statement: Statement, values: Mapping[str, object], rows: list[Row]
    ) -> None:
        """Cache rows that were already read for an event. The arguments are those of `rows`."""
        self._keep(_asked(position, brand_id, statement, values), rows)

    async def close(self) -> None:
        """Discard all rows and close the pool."""
        for task in self._under_way.values():
            task.cancel()
        if self._expiry is not None:
            self._expiry.cancel()
        self._kept.clear()
        await self.database.close()

    async def _read(self, asked: _Asked, values: dict[str, object]) -> list[Row]:
        async with self.turn(asked.brand_id) as connection:
            return await connection.fetch(asked.statement, **values)

    def _read_is_over(self, asked: _Asked, task: asyncio.Task[list[Row]]) -> None:
        del self._under_way[asked]
        # A failed read is not cached, so the next call retries. The exception is retrieved here, because every waiter
        # may have been cancelled.
        if not task.cancelled() and task.exception() is None:
            self._keep(asked, task.result())

    def _keep(self, asked: _Asked, rows: list[Row]) -> None:
        loop = asyncio.get_running_loop()
        size = sum(map(_size, rows))
        if (known := self._kept.pop(asked, None)) is not None:
            self._kept_bytes -= known.size
        self._kept[asked] = _Kept(rows, size, loop.time() + KEPT_SECONDS)
        self._kept_bytes += size
        self._expire()
        if self._expiry is None and self._kept:
            self._expiry = loop.call_later(KEPT_SECONDS, self._expire_later)

    def _expire(self) -> None:
        """Discard the oldest rows while they are expired, or exceed `KEPT_BYTES`."""
        now = asyncio.get_running_loop().time()
        while self._kept:
            asked, oldest = next(iter(self._kept.items()))
            if oldest.until > now and self._kept_bytes <= KEPT_BYTES:
                return
            del self._kept[asked]
            self._kept_bytes -= oldest.size

    def _expire_later(self) -> None:
        self._expiry = None
        self._expire()
        if self._kept:
            self._expiry = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._expire_later)


class EventReads:
    """Cached reads for one event (`resolvers.outbox.Reads`). They change nothing."""

    def __init__(self, reads: SubscriberReads, position: int) -> None:
        self.position = position
        self._reads = reads

    @asynccontextmanager
    async def connection(self, brand_id: str) -> AsyncIterator[Connection]:
        """Yield a connection that reads through the cache.

        A real connection is acquired for each statement that must be sent.
        """
        yield _SharedConnection(self._reads, self.position, brand_id)

    async def fetch_one_batched(
        self,
        brand_id: str,
        statement: Statement,
        by: str,
        value: str,
        rows: int = 1,  # noqa: ARG002 - a hint for batching, which does not apply here
        **given: object,
    ) -> Row | None:
        """Return the row whose `key` is `value`. Raises `TemporarilyUnavailable`."""
        asked = {"brand_id": brand_id, by: [value], **given}
        return next(iter(await self._reads.rows(self.position, brand_id, statement, asked)), None)

    def autocommit(self, brand_id: str, within_seconds: float) -> AbstractAsyncContextManager[Connection]:
        """Raise `NotImplementedError`: a subscription changes nothing."""
        raise NotImplementedError

    def transaction(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Raise `NotImplementedError`: a subscription changes nothing."""
        raise NotImplementedError


class _SharedConnection(NamedTuple):
    reads: SubscriberReads
    position: int
    brand_id: str

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        return await self.reads.rows(self.position, self.brand_id, statement, values)

    async def fetch_one(self, statement: Statement, **values: object) -> Row | None:
        return next(iter(await self.fetch(statement, **values)), None)

    async def fetch_at_most(self, most_bytes: int, statement: Statement, /, **values: object) -> list[Row]:
        """Raise `NotImplementedError`: only plans call this method, and no plan serves a subscription."""
        raise NotImplementedError


def _asked(position: int, brand_id: str, statement: Statement, values: Mapping[str, object]) -> _Asked:
    named = ((name, tuple(value) if isinstance(value, list) else value) for name, value in sorted(values.items()))
    return _Asked(position, brand_id, statement, tuple(named))


def _size(row: Row) -> int:
    return ROW_BYTES + sum(len(value) for value in row if isinstance(value, str | bytes))
