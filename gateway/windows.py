"""Counting uses in a moving window: in no span of so many seconds are there more than so many.

Moving, because "200 a minute" is then what it says: a fixed window lets twice as many through around its end, and a
sliding counter, which spreads the last window's uses evenly, refuses a client that sends 200 together every minute. The
price is one number kept for each use, at most the limit for each client.
"""

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple, Protocol

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter

from gateway.telemetry import describe, log

Clock = Callable[[], float]

CONNECTIONS = 8
PATIENCE_SECONDS = 1.0
"""How long the shared window may take. It answers within a millisecond; so long, and it is down, not we are busy."""
PAUSE_SECONDS = 5.0
"""How long a shared window that did not answer is left alone."""


class Taken(NamedTuple):
    """What came of asking for some units."""

    granted: bool
    remaining: int
    more_in_seconds: float
    """Until there is more than `remaining`; where it was not granted, until it would be, as far as can be told."""


class Window(Protocol):
    """Counts uses by key."""

    async def take(self, key: str, limit: int, units: int) -> Taken:
        """Take units if there are so many left; else take none."""

    async def close(self) -> None:
        """Let go of what is held."""


class LocalWindow:
    """Counts in this process.

    Not `limits`' own memory storage: that one starts a task at each hit, which takes every key through a thread.
    """

    def __init__(self, seconds: int, clock: Clock = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._uses: dict[str, list[float]] = {}  # when each unit was taken, the oldest first
        self._sweep_at = clock() + seconds

    async def take(self, key: str, limit: int, units: int) -> Taken:
        """Take units if there are so many left; else take none."""
        now, uses = self._clock(), self._in_window(key)
        too_many = len(uses) + units - limit
        if too_many > 0:
            return Taken(False, max(limit - len(uses), 0), self._left_in(uses, too_many, now))
        uses += [now] * units
        return Taken(True, limit - len(uses), self._left_in(uses, 1, now))

    def wait_seconds(self, key: str, limit: int) -> float:
        """Give how long it takes until one more could be taken: 0 where it could be now."""
        uses = self._in_window(key)
        too_many = len(uses) + 1 - limit
        return self._left_in(uses, too_many, self._clock()) if too_many > 0 else 0

    async def close(self) -> None:
        """Nothing is held."""

    def _in_window(self, key: str) -> list[float]:
        edge = self._clock() - self._seconds
        if edge + self._seconds >= self._sweep_at:
            # Now and then, not at each use: a crowd of callers that come once must not make each other expensive.
            self._uses = {each: uses for each, uses in self._uses.items() if uses and uses[-1] > edge}
            self._sweep_at = edge + 2 * self._seconds
        uses = self._uses.setdefault(key, [])
        del uses[: bisect_right(uses, edge)]
        return uses

    def _left_in(self, uses: list[float], count: int, now: float) -> float:
        """Give the seconds until the `count` oldest uses have left the window; they all do within one."""
        # In this order: added to a large number first, a whole window would sometimes come out a little longer.
        return self._seconds - (now - uses[min(count, len(uses)) - 1]) if uses else self._seconds


class SharedWindow:
    """Counts in Redis or Valkey, for all processes together; while that does not answer, in this process.

    Open rather than closed: an encounter that cannot be recorded harms a patient, one too many harms nobody. The
    clocks of the machines that share a window should agree to a second.
    """

    def __init__(self, url: str, seconds: int, clock: Clock = time.monotonic) -> None:
        # An extra: who counts in one process needs no client of Redis.
        from redis.asyncio import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        # Again once, for a connection that was closed while it lay idle.
        self._pool = ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 1))
        self._turn = asyncio.Semaphore(CONNECTIONS)
        storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix="encounter-gateway",
            connection_pool=self._pool,  # type: ignore[arg-type]
        )
        self._limiter = MovingWindowRateLimiter(storage)
        self._seconds = seconds
        self._clock = clock
        self._local = LocalWindow(seconds, clock)
        self._lost_until: float | None = None

    async def take(self, key: str, limit: int, units: int) -> Taken:
        """Take units if there are so many left; else take none."""
        # A crowd that waits for its turn here says nothing about the other side.
        async with self._turn:
            taken = await self._take_shared(key, limit, units) if self._worth_trying() else None
        return taken or await self._local.take(key, limit, units)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def _take_shared(self, key: str, limit: int, units: int) -> Taken | None:
        window = RateLimitItemPerSecond(limit, self._seconds)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                granted = await self._limiter.hit(window, key, cost=units)
                more_at, remaining = await self._limiter.get_window_stats(window, key)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to refuse
            self._lose(error)
            return None
        self._find()
        return Taken(granted, remaining, max(more_at - time.time(), 0))

    def _worth_trying(self) -> bool:
        if self._lost_until is None:
            return True
        if self._clock() < self._lost_until:
            return False
        # This request tries; those that come meanwhile do not wait with it.
        self._lost_until = self._clock() + PAUSE_SECONDS
        return True

    def _lose(self, error: Exception) -> None:
        if self._lost_until is None:
            log.warning("rate limits", counted="in each process", **describe(error))
        self._lost_until = self._clock() + PAUSE_SECONDS

    def _find(self) -> None:
        if self._lost_until is not None:
            log.warning("rate limits", counted="together again")
        self._lost_until = None
