"""A pool of PostgreSQL connections, opened on demand. The connection released last is acquired first (LIFO).

asyncpg's own pool starts a task for each release and resets state that our statements never change. This costs as much
as a short statement. This pool omits both.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

import asyncpg

Connection = TypeVar("Connection", bound=asyncpg.Connection)

RESET_SECONDS = 5.0
"""Seconds; the timeout of `reset()` after a cancelled statement."""


class Pool(Generic[Connection]):
    """At most `size` connections. Callers that find none free wait in order of arrival."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        size: int,
        is_usable: Callable[[Connection], bool] = lambda connection: not connection.is_closed(),
    ) -> None:
        """Create an empty pool.

        Args:
            connect: Opens a connection.
            size: Maximum number of connections.
            is_usable: Whether an open connection may be acquired (again).
        """
        self.size = size
        self._is_usable = is_usable
        self._connect = connect
        self._free: list[Connection] = []
        self._in_use_connections: set[Connection] = set()
        """Connections in use or being reset."""
        self._open_count = 0
        """How many of `size` are taken by connections in use, being opened or being reset."""
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._resetting: set[asyncio.Task[None]] = set()
        self._closed = False

    def __iter__(self) -> Iterator[Connection]:
        """Iterate over the open connections, free or in use."""
        yield from (*self._free, *self._in_use_connections)

    async def open(self) -> None:
        """Open the first connection and add it to the free ones. Raises the errors of `connect`."""
        self._free.append(await self._connect())

    async def acquire(self, within_seconds: float) -> Connection:
        """Acquire a connection, waiting at most `within_seconds`.

        Raises `TimeoutError`, the errors of `connect`, or `asyncpg.InterfaceError` if the pool is closed.
        """
        if self._closed:
            raise asyncpg.InterfaceError("the pool is closed")
        while self._free:
            connection = self._free.pop()
            if self._is_usable(connection):
                self._open_count += 1
                self._in_use_connections.add(connection)
                return connection
            connection.terminate()
        async with asyncio.timeout(within_seconds):
            if self._open_count < self.size:
                self._open_count += 1
                connection = await self._opened()
            else:
                connection = await self._wait_for_release() or await self._opened()
        self._in_use_connections.add(connection)
        return connection

    def release(self, connection: Connection, *, cancelled: bool = False) -> None:
        """Release a connection. One that is lost or still in a transaction is closed, which makes room for another.

        `cancelled` means that a statement may still be running: the connection is reset before it is acquired again.
        """
        if cancelled and not self._closed and not connection.is_closed():
            task = asyncio.create_task(self._reset(connection))
            self._resetting.add(task)
            task.add_done_callback(self._resetting.discard)
        else:
            self._returned(connection)

    async def close(self, within_seconds: float) -> None:
        """Close every connection. Waits up to `within_seconds` for those in use."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while self._open_count:
                    connection = await self._wait_for_release()
                    self._open_count -= 1
                    if connection is not None:
                        self._free.append(connection)
        self._closed = True
        for each in self._in_use_connections:
            each.terminate()
        for each in self._free:
            # An error here means that the connection is already broken.
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await each.close(timeout=RESET_SECONDS)
        self._free.clear()

    async def _reset(self, connection: Connection) -> None:
        # asyncpg waits here until the server has cancelled the statement, and ends any open transaction.
        try:
            await connection.reset(timeout=RESET_SECONDS)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - after any error another connection is opened
            connection.terminate()
        finally:
            self._returned(connection)

    def _returned(self, connection: Connection) -> None:
        self._in_use_connections.discard(connection)
        if self._closed or not self._is_usable(connection) or connection.is_in_transaction():
            connection.terminate()
            self._pass_on(None)
        else:
            self._pass_on(connection)

    async def _opened(self) -> Connection:
        try:
            return await self._connect()
        except BaseException:
            self._pass_on(None)
            raise

    async def _wait_for_release(self) -> Connection | None:
        """Wait until a slot is free. Return the connection in it, or None if that connection was lost."""
        turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                # The connection was handed over after the waiter was cancelled.
                self._pass_on(turn.result())
            raise

    def _pass_on(self, connection: Connection | None) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        self._open_count -= 1
        if connection is not None:
            self._free.append(connection)
