"""Counting uses in a moving window: in no span of so many seconds are there more than so many.

Moving, because "200 a minute" is then what it says: a fixed window lets twice as many through around its end, and a
sliding counter, which spreads the last window's uses evenly, refuses a client that sends 200 together every minute. The
price is one number kept for each use, at most the limit for each client.
"""

import time
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple, Protocol

Clock = Callable[[], float]


class Usage(NamedTuple):
    """What came of asking for some units."""

    granted: bool
    remaining: int
    more_in_seconds: float
    """Until there is more than `remaining`; where it was not granted, until it would be, as far as can be told."""


class Window(Protocol):
    """Counts uses by key."""

    async def take(self, key: str, limit: int, units: int) -> Usage:
        """Take units if there are so many left; else take none."""

    async def release(self, key: str, limit: int, units: int) -> None:
        """Give back so many of the units that were taken last."""

    async def close(self) -> None:
        """Let go of what is held."""


class InMemorySlidingWindow:
    """Counts in this process.

    Not `limits`' own memory storage: that one starts a task at each hit, which takes every key through a thread.
    """

    def __init__(self, seconds: int, clock: Clock = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._uses: dict[str, list[float]] = {}  # when each unit was taken, the oldest first
        self._sweep_at = clock() + seconds

    async def take(self, key: str, limit: int, units: int) -> Usage:
        """Take units if there are so many left; else take none."""
        now, uses = self._clock(), self._in_window(key)
        too_many = len(uses) + units - limit
        if too_many > 0:
            return Usage(False, max(limit - len(uses), 0), self._left_in(uses, too_many, now))
        uses += [now] * units
        return Usage(True, limit - len(uses), self._left_in(uses, 1, now))

    async def release(self, key: str, limit: int, units: int) -> None:  # noqa: ARG002
        """Give back so many of the units that were taken last."""
        uses = self._in_window(key)
        del uses[max(len(uses) - units, 0) :]

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


class TokenBucket:
    """Counts by key what is used at a steady rate, in this process: a bucket that refills, and may be overdrawn."""

    def __init__(self, per_second: float, capacity: float, clock: Clock = time.monotonic) -> None:
        self._per_second = per_second
        self._capacity = capacity
        self._clock = clock
        self._full_at: dict[str, float] = {}
        """When each bucket that is not full will be: which says how much is in it at any time."""
        self._sweep_at = clock()

    def use(self, key: str, amount: float) -> None:
        """Take an amount, whether there is as much or not."""
        now = self._clock()
        self._full_at[key] = max(self._full_at.get(key, now), now) + amount / self._per_second
        if now >= self._sweep_at:
            self._full_at = {each: full_at for each, full_at in self._full_at.items() if full_at > now}
            self._sweep_at = now + self._capacity / self._per_second

    def wait_seconds(self, key: str) -> float:
        """Give the seconds until there is something in the bucket: 0 where there is now."""
        full_in = self._full_at.get(key, 0) - self._clock()
        return max(full_in - self._capacity / self._per_second, 0)
