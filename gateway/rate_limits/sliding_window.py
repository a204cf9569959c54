"""Sliding-window log: at most `limit` uses in any span of the window's length.

A fixed window admits up to twice the limit around its end. A sliding counter assumes an even distribution of uses in
the last window. It would refuse a client that sends 200 requests at once every minute. The cost of the log is one
number for each use, at most `limit` for each client.
"""

import time
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple, Protocol

Clock = Callable[[], float]


class Usage(NamedTuple):
    """Result of a request for units."""

    granted: bool
    remaining: int
    more_in_seconds: float
    """Seconds until more than `remaining` units are left; if not granted, an estimate of when they would be granted."""


class Window(Protocol):
    """Counter of uses by key."""

    async def take(self, key: str, limit: int, units: int) -> Usage:
        """Take the units if all of them are left; otherwise take none."""

    async def release(self, key: str, limit: int, units: int) -> None:
        """Return the `units` that were taken last."""

    async def close(self) -> None:
        """Close the connections, if there are any."""


class InMemorySlidingWindow:
    """Sliding window in the memory of this process.

    The memory storage of `limits` is not used: it starts a task at each hit, which passes every key through a thread.
    """

    def __init__(self, seconds: int, clock: Clock = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._uses: dict[str, list[float]] = {}  # time of each taken unit, oldest first
        self._sweep_at = clock() + seconds

    async def take(self, key: str, limit: int, units: int) -> Usage:
        """Take the units if all of them are left; otherwise take none."""
        now, uses = self._clock(), self._in_window(key)
        too_many = len(uses) + units - limit
        if too_many > 0:
            return Usage(False, max(limit - len(uses), 0), self._seconds_until_free(uses, too_many, now))
        uses += [now] * units
        return Usage(True, limit - len(uses), self._seconds_until_free(uses, 1, now))

    async def release(self, key: str, limit: int, units: int) -> None:  # noqa: ARG002
        """Return the `units` that were taken last."""
        uses = self._in_window(key)
        del uses[max(len(uses) - units, 0) :]

    def wait_seconds(self, key: str, limit: int) -> float:
        """Return the seconds until one more unit could be taken; 0 if it could be taken now."""
        uses = self._in_window(key)
        too_many = len(uses) + 1 - limit
        return self._seconds_until_free(uses, too_many, self._clock()) if too_many > 0 else 0

    async def close(self) -> None:
        """Do nothing: the window has no connections."""

    def _in_window(self, key: str) -> list[float]:
        edge = self._clock() - self._seconds
        if edge + self._seconds >= self._sweep_at:
            # Once per window, not at each use: the cost grows with the number of callers.
            self._uses = {each: uses for each, uses in self._uses.items() if uses and uses[-1] > edge}
            self._sweep_at = edge + 2 * self._seconds
        uses = self._uses.setdefault(key, [])
        del uses[: bisect_right(uses, edge)]
        return uses

    def _seconds_until_free(self, uses: list[float], count: int, now: float) -> float:
        """Return the seconds until the `count` oldest uses leave the window; at most the window's length."""
        # The difference of the times comes first. Adding the window to a large time could round the result up.
        return self._seconds - (now - uses[min(count, len(uses)) - 1]) if uses else self._seconds


class TokenBucket:
    """Token bucket for each key, in the memory of this process. A bucket may be overdrawn.

    Args:
        per_second: Amount that a bucket regains each second.
        capacity: Amount in a full bucket; every bucket starts full.
        clock: Monotonic clock in seconds.

    """

    def __init__(self, per_second: float, capacity: float, clock: Clock = time.monotonic) -> None:
        self._per_second = per_second
        self._capacity = capacity
        self._clock = clock
        self._full_at: dict[str, float] = {}
        """Time at which each bucket will be full again; its level at any time follows from it."""
        self._sweep_at = clock()

    def use(self, key: str, amount: float) -> None:
        """Take an amount, even if the bucket holds less."""
        now = self._clock()
        self._full_at[key] = max(self._full_at.get(key, now), now) + amount / self._per_second
        if now >= self._sweep_at:
            self._full_at = {each: full_at for each, full_at in self._full_at.items() if full_at > now}
            self._sweep_at = now + self._capacity / self._per_second

    def wait_seconds(self, key: str) -> float:
        """Return the seconds until the bucket is no longer overdrawn; 0 if it is not overdrawn now."""
        full_in = self._full_at.get(key, 0) - self._clock()
        return max(full_in - self._capacity / self._per_second, 0)
