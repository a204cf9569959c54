"""What subscribers read: on a pool of their own, and the same statement once for all who ask it of one event.

A thousand subscriptions that wake at one event ask for the same few rows. Their resolvers check rights and note reads
one by one; below them each statement is sent once for its event, brand and arguments, and its rows are shared.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import NamedTuple

from gateway.database.database import Database, PoolConnection
from resolvers.sql import Connection, Row, Statement

POOL_SIZE = 4
"""Connections for subscribers in each process: they read little, and each row once."""

READERS_OWN = 1
"""Of these, kept for the reader of live events, which must not wait for those who catch up."""

ACQUIRE_SECONDS = 10.0
"""How long a connection may take to be opened: longer than for a request, because only a subscriber waits for it."""

KEPT_BYTES = 32 * 1024 * 1024
"""Text of rows kept for subscribers who come later to the same event: some hundred encounters of the largest kind."""

KEPT_SECONDS = 5.0
"""How long rows are kept: subscribers who keep up come within that time."""

ROW_BYTES = 200
"""What a row takes besides its text, about."""


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
    """The subscribers' pool, and the rows that were read of late. `database` acts as the application's role."""

    def __init__(self, database: Database) -> None:
        self.database = database
        """The pool itself: for the reader of live events alone."""
        self._turns = asyncio.Semaphore(POOL_SIZE - READERS_OWN)
        self._under_way: dict[_Asked, asyncio.Task[list[Row]]] = {}
        self._kept: dict[_Asked, _Kept] = {}
        self._kept_bytes = 0
        self._expiry: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def turn(self, brand_id: str | None = None) -> AsyncIterator[PoolConnection]:
        """Borrow a connection when it is the caller's turn, however long that takes; for a brand or for none.

        Raises `TemporarilyUnavailable`.
        """
        async with self._turns:
            lent = self.database.unscoped() if brand_id is None else self.database.connection(brand_id)
            async with lent as connection:
                yield connection

    async def rows(self, position: int, brand_id: str, statement: Statement, values: Mapping[str, object]) -> list[Row]:
        """Return the rows of a statement, read once for an event. Raises what reading them raises."""
        asked = _asked(position, brand_id, statement, values)
        if (kept := self._kept.get(asked)) is not None:
            return kept.rows
        task = self._under_way.get(asked)
        if task is None:
            task = self._under_way[asked] = asyncio.create_task(self._read(asked, dict(values)))
            task.add_done_callback(partial(self._read_is_over, asked))
        # A subscriber that goes away must not take the rows of the others with it.
        return await asyncio.shield(task)

    def keep(
        self, position: int, brand_id: str, statement: Statement, values: Mapping[str, object], rows: list[Row]
    ) -> None:
        """Keep rows that were read for an event already."""
        self._keep(_asked(position, brand_id, statement, values), rows)

    async def close(self) -> None:
        """Let go of all rows, and close the pool."""
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
        # Whoever asks next tries anew. Asked here too, because all who waited may have gone.
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
        """Let go of the oldest rows while they are too old, or too many."""
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
    """What is read for one event (`resolvers.outbox.Reads`). Nothing is changed through it."""

    def __init__(self, reads: SubscriberReads, position: int) -> None:
        self.position = position
        self._reads = reads

    @asynccontextmanager
    async def connection(self, brand_id: str) -> AsyncIterator[Connection]:
        """Lend what looks like a connection. A real one is borrowed for each statement that must be sent."""
        yield _SharedConnection(self._reads, self.position, brand_id)

    async def fetch_one_batched(
        self,
        brand_id: str,
        statement: Statement,
        by: str,
        value: str,
        rows: int = 1,  # noqa: ARG002 - how much it reads: nothing is put together here
        **given: object,
    ) -> Row | None:
        """Find the row whose `key` is a value. Raises `TemporarilyUnavailable`."""
        asked = {"brand_id": brand_id, by: [value], **given}
        return next(iter(await self._reads.rows(self.position, brand_id, statement, asked)), None)

    def autocommit(self, brand_id: str, within_seconds: float) -> AbstractAsyncContextManager[Connection]:
        """Refuse: a subscription changes nothing."""
        raise NotImplementedError

    def transaction(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Refuse: a subscription changes nothing."""
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
        """Refuse: only plans read like this, and none serves a subscription."""
        raise NotImplementedError


def _asked(position: int, brand_id: str, statement: Statement, values: Mapping[str, object]) -> _Asked:
    named = ((name, tuple(value) if isinstance(value, list) else value) for name, value in sorted(values.items()))
    return _Asked(position, brand_id, statement, tuple(named))


def _size(row: Row) -> int:
    return ROW_BYTES + sum(len(value) for value in row if isinstance(value, str | bytes))
