"""Connections to PostgreSQL, opened as they are needed and lent to one at a time: the one used last first.

asyncpg has a pool of its own, which starts a task for each return and resets what our statements never touch: it costs
as much again as a short statement does. What is left when that is left out is this.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

import asyncpg

Connection = TypeVar("Connection", bound=asyncpg.Connection)

RESET_SECONDS = 5.0
"""How long a connection may take to come to itself after a statement was called off."""


class Pool(Generic[Connection]):
    """At most `size` connections. Whoever finds none waits for a turn, the first come first."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        size: int,
        is_usable: Callable[[Connection], bool] = lambda connection: not connection.is_closed(),
    ) -> None:
        """Take how to open a connection, and whether one that is open may be lent (again)."""
        self.size = size
        self._is_usable = is_usable
        self._connect = connect
        self._free: list[Connection] = []
        self._lent: set[Connection] = set()
        """Those in use, and those that are being reset."""
        self._open_count = 0
        """How many of `size` are taken: by a connection in use, or one that is being opened or reset."""
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._resetting: set[asyncio.Task[None]] = set()
        self._closed = False

    def __iter__(self) -> Iterator[Connection]:
        """Go through the connections that are open: the free ones, and those in use."""
        yield from (*self._free, *self._lent)

    async def open(self) -> None:
        """Open the first connection, to be lent. Raises what keeps it from being opened."""
        self._free.append(await self._connect())

    async def acquire(self, within_seconds: float) -> Connection:
        """Borrow a connection. Raises `TimeoutError`, what keeps one from being opened, or that the pool is closed."""
        if self._closed:
            raise asyncpg.InterfaceError("the pool is closed")
        while self._free:
            connection = self._free.pop()
            if self._is_usable(connection):
                self._open_count += 1
                self._lent.add(connection)
                return connection
            connection.terminate()
        async with asyncio.timeout(within_seconds):
            if self._open_count < self.size:
                self._open_count += 1
                connection = await self._opened()
            else:
                connection = await self._wait_for_release() or await self._opened()
        self._lent.add(connection)
        return connection

    def release(self, connection: Connection, *, cancelled: bool = False) -> None:
        """Return what was borrowed. What is lost, or left in a transaction, makes room for another.

        `cancelled` says that a statement may still be under way: the connection comes to itself before it is lent
        again.
        """
        if cancelled and not self._closed and not connection.is_closed():
            task = asyncio.create_task(self._reset(connection))
            self._resetting.add(task)
            task.add_done_callback(self._resetting.discard)
        else:
            self._returned(connection)

    async def close(self, within_seconds: float) -> None:
        """Close every connection, waiting for those in use, but not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while self._open_count:
                    connection = await self._wait_for_release()
                    self._open_count -= 1
                    if connection is not None:
                        self._free.append(connection)
        self._closed = True
        for each in self._lent:
            each.terminate()
        for each in self._free:
            # One that broke meanwhile is as good as closed.
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await each.close(timeout=RESET_SECONDS)
        self._free.clear()

    async def _reset(self, connection: Connection) -> None:
        # asyncpg waits here until the server has let go of the statement, and ends a transaction that was begun.
        try:
            await connection.reset(timeout=RESET_SECONDS)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - whatever it is, another connection is opened
            connection.terminate()
        finally:
            self._returned(connection)

    def _returned(self, connection: Connection) -> None:
        self._lent.discard(connection)
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
        """Wait for a place: with a connection in it, or None where it was lost."""
        turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                # It came when nobody waited any more.
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
