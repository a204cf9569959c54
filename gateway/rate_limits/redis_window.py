"""Counting uses in a moving window that all processes share (`gateway/rate_limits/sliding_window.py`).

A module of its own, because its libraries are for those who have a Redis: who counts in one process need not have, or
wait for, what talks to it.
"""

import asyncio
import time

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.observability.logs import describe, log
from gateway.rate_limits.sliding_window import Clock, InMemorySlidingWindow, Usage

CONNECTIONS = 8
PATIENCE_SECONDS = 1.0
"""How long the shared window may take. It answers within a millisecond; so long, and it is down, not we are busy."""
PAUSE_SECONDS = 5.0
"""How long a shared window that did not answer is left alone."""


class RedisSlidingWindow:
    """Counts in Redis or Valkey, for all processes together; while that does not answer, in this process.

    Open rather than closed: an encounter that cannot be recorded harms a patient, one too many harms nobody. The
    clocks of the machines that share a window should agree to a second.
    """

    def __init__(self, url: str, seconds: int, clock: Clock = time.monotonic) -> None:
        # Again once, for a connection that was closed while it lay idle.
        self._pool = ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 1))
        self._redis = Redis(connection_pool=self._pool)
        self._turn = asyncio.Semaphore(CONNECTIONS)
        self._storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix="encounter-gateway",
            connection_pool=self._pool,  # type: ignore[arg-type]
        )
        self._limiter = MovingWindowRateLimiter(self._storage)
        self._seconds = seconds
        self._clock = clock
        self._local = InMemorySlidingWindow(seconds, clock)
        self._lost_until: float | None = None

    async def take(self, key: str, limit: int, units: int) -> Usage:
        """Take units if there are so many left; else take none."""
        # A crowd that waits for its turn here says nothing about the other side.
        async with self._turn:
            taken = await self._take_shared(key, limit, units) if self._worth_trying() else None
        return taken or await self._local.take(key, limit, units)

    async def release(self, key: str, limit: int, units: int) -> None:
        """Give back so many of the units that were taken last."""
        async with self._turn:
            released = await self._release_shared(key, limit, units) if self._lost_until is None else False
        if not released:
            await self._local.release(key, limit, units)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def _take_shared(self, key: str, limit: int, units: int) -> Usage | None:
        window = RateLimitItemPerSecond(limit, self._seconds)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                granted = await self._limiter.hit(window, key, cost=units)
                more_at, remaining = await self._limiter.get_window_stats(window, key)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to refuse
            self._lose(error)
            return None
        self._find()
        return Usage(granted, remaining, max(more_at - time.time(), 0))

    async def _release_shared(self, key: str, limit: int, units: int) -> bool:
        # Of the list that the limiter keeps, the newest is at the left.
        name = self._storage.bridge.prefixed_key(RateLimitItemPerSecond(limit, self._seconds).key_for(key))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._redis.lpop(name, units)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to refuse
            self._lose(error)
            return False
        return True

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
