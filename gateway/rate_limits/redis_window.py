"""Sliding-window counter shared by all processes, in Redis or Valkey (see `gateway/rate_limits/sliding_window.py`).

A separate module, because its libraries are optional: a gateway that counts per process need not install or import
them.
"""

import asyncio
import logging
import time

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.observability.logs import describe
from gateway.rate_limits.sliding_window import Clock, InMemorySlidingWindow, Usage

logger = logging.getLogger(__name__)

CONNECTIONS = 8
TIMEOUT_SECONDS = 1.0
"""Seconds; timeout of one Redis call. Redis answers within a millisecond, so a timeout means that Redis is down."""
PAUSE_SECONDS = 5.0
"""Seconds without further Redis calls after one failed."""


class RedisSlidingWindow:
    """Sliding window in Redis or Valkey for all processes; in this process while Redis does not answer.

    It fails open: an encounter that cannot be recorded harms a patient, and an extra request is harmless. The clocks
    of the machines that share a window should agree to one second.
    """

    def __init__(self, url: str, seconds: int, clock: Clock = time.monotonic) -> None:
        # One retry, for a connection that was closed while idle.
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
        self._unavailable_until: float | None = None

    async def take(self, key: str, limit: int, units: int) -> Usage:
        """Take the units if all of them are left; otherwise take none."""
        # The wait for the semaphore is outside the timeout, because local load does not mean that Redis is down.
        async with self._turn:
            taken = await self._take_shared(key, limit, units) if self._worth_trying() else None
        return taken or await self._local.take(key, limit, units)

    async def release(self, key: str, limit: int, units: int) -> None:
        """Return the `units` that were taken last."""
        async with self._turn:
            released = await self._release_shared(key, limit, units) if self._unavailable_until is None else False
        if not released:
            await self._local.release(key, limit, units)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def _take_shared(self, key: str, limit: int, units: int) -> Usage | None:
        window = RateLimitItemPerSecond(limit, self._seconds)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                granted = await self._limiter.hit(window, key, cost=units)
                more_at, remaining = await self._limiter.get_window_stats(window, key)
        except Exception as error:  # noqa: BLE001 - no error of Redis is a reason to refuse
            self._mark_unavailable(error)
            return None
        self._mark_available()
        return Usage(granted, remaining, max(more_at - time.time(), 0))

    async def _release_shared(self, key: str, limit: int, units: int) -> bool:
        # The limiter stores uses in a list, newest on the left.
        name = self._storage.bridge.prefixed_key(RateLimitItemPerSecond(limit, self._seconds).key_for(key))
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._redis.lpop(name, units)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - no error of Redis is a reason to refuse
            self._mark_unavailable(error)
            return False
        return True

    def _worth_trying(self) -> bool:
        if self._unavailable_until is None:
            return True
        if self._clock() < self._unavailable_until:
            return False
        # Only this request tries; concurrent requests count locally and do not wait for it.
        self._unavailable_until = self._clock() + PAUSE_SECONDS
        return True

    def _mark_unavailable(self, error: Exception) -> None:
        if self._unavailable_until is None:
            logger.warning("rate limits", extra={"counted": "in each process", **describe(error)})
        self._unavailable_until = self._clock() + PAUSE_SECONDS

    def _mark_available(self) -> None:
        if self._unavailable_until is not None:
            logger.warning("rate limits", extra={"counted": "together again"})
        self._unavailable_until = None
