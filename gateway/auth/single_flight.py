"""Single-flight: concurrent calls with the same key share one request."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


Answer = TypeVar("Answer")


class SingleFlight(Generic[Key, Answer]):
    """Deduplicator of concurrent calls: one call for each key runs at a time, and all callers get its result."""

    def __init__(self) -> None:
        self._in_flight: dict[Key, asyncio.Task[Answer]] = {}

    async def run(self, key: Key, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the result of the call in flight for `key`, or start one. Cancelling a caller does not cancel it."""
        flight = self._in_flight.get(key)
        if flight is None:
            flight = self._in_flight[key] = asyncio.create_task(_asked(ask))
            flight.add_done_callback(lambda done: self._finish(key, done))
        return await asyncio.shield(flight)

    def _finish(self, key: Key, flight: asyncio.Task[Answer]) -> None:
        del self._in_flight[key]
        # If all callers were cancelled, the exception is never retrieved, which asyncio would log.
        if not flight.cancelled():
            flight.exception()

    async def close(self) -> None:
        """Cancel all calls in flight."""
        flights = list(self._in_flight.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)


async def _asked(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    return await ask()
