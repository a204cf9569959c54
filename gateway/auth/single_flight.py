"""Single-flight: concurrent calls with the same key share one request."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


Answer = TypeVar("Answer")


class SingleFlight(Generic[Key, Answer]):
    """Lets everyone who asks the same thing at the same time wait for one answer."""

    def __init__(self) -> None:
        self._in_flight: dict[Key, asyncio.Task[Answer]] = {}

    async def run(self, key: Key, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Give the answer of whoever asks already; else ask. Who goes away meanwhile takes it from nobody else."""
        flight = self._in_flight.get(key)
        if flight is None:
            flight = self._in_flight[key] = asyncio.create_task(_asked(ask))
            flight.add_done_callback(lambda landed: self._finish(key, landed))
        return await asyncio.shield(flight)

    def _finish(self, key: Key, flight: asyncio.Task[Answer]) -> None:
        del self._in_flight[key]
        # Everyone may have gone away: then nobody else looks at the exception, and asyncio complains of that.
        if not flight.cancelled():
            flight.exception()

    async def close(self) -> None:
        """Call back whoever is still in the air."""
        flights = list(self._in_flight.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)


async def _asked(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    return await ask()
