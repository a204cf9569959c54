"""Connections to PostgreSQL, opened as they are needed and lent to one at a time: the one used last first.

asyncpg has a pool of its own, which starts a task for each return and resets what our statements never touch: it costs
as much again as a short statement does. What is left when that is left out is this.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

import asyncpg

Connection = TypeVar("Connection", bound=asyncpg.Connection)


class Pool(Generic[Connection]):
    """At most `size` connections. Whoever finds none waits for a turn, the first come first."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self.size = size
        self._free: list[Connection] = []
        self._lent = 0
        """Connections in use, and those that are being opened for someone."""
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()

    async def open(self, number: int) -> None:
        """Open so many connections at once, to be lent. Raises what keeps one from being opened."""
        for _ in range(number):
            self._free.append(await self._connect())

    async def take(self, within_seconds: float) -> Connection:
        """Borrow a connection. Raises `TimeoutError`, or what keeps one from being opened."""
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                self._lent += 1
                return connection
            connection.terminate()
        async with asyncio.timeout(within_seconds):
            if self._lent < self.size:
                self._lent += 1
                return await self._opened()
            return await self._turn() or await self._opened()

    def give_back(self, connection: Connection) -> None:
        """Return what was borrowed. A lost connection, or one left in a transaction, makes room for another."""
        if connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
            self._pass_on(None)
        else:
            self._pass_on(connection)

    async def close(self, within_seconds: float) -> None:
        """Close every connection, waiting for those in use, but not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while self._free or self._lent:
                    connection = self._free.pop() if self._free else await self._turn_at_the_end()
                    if connection is not None:
                        # One that broke meanwhile is as good as closed.
                        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                            await connection.close()

    async def _turn_at_the_end(self) -> Connection | None:
        connection = await self._turn()
        self._lent -= 1
        return connection

    async def _turn(self) -> Connection | None:
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

    async def _opened(self) -> Connection:
        try:
            return await self._connect()
        except BaseException:
            self._pass_on(None)
            raise

    def _pass_on(self, connection: Connection | None) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        self._lent -= 1
        if connection is not None:
            self._free.append(connection)
