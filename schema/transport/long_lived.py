"""What stays open, a socket or a stream of events: how many may, and how long the caller's right to it lasts."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum

from resolvers.access import Caller
from resolvers.context import Context
from resolvers.errors import Forbidden, GatewayError, InvalidToken, RateLimited, TemporarilyUnavailable

Reauthenticate = Callable[[], Awaitable[Context]]
"""Signs in again with what was sent at first. Raises what `authenticate` raises."""

LogOperation = Callable[[Context, str, float], None]
"""Writes the log line of an operation: whose it was, what became of it, and how many seconds it took."""


RETRY_SECONDS = 1.0
"""Seconds until a client with too many sockets and streams may try again: one of them may be closed by then."""


class ConnectionLimit:
    """The sockets and streams that are open in this process at once.

    A place is taken after sign-in. Sockets that have not signed in are bounded apart, so a flood of them keeps no
    caller out who signs in. One more than that bound closes the oldest socket of the network that has the most.

    Args:
        number: The most that may be open.
        per_client: The most that one client may have open.
        unauthenticated: The most sockets that wait for sign-in.
        network_of: Returns what one caller holds of the network, by its address; None where that is not known.
    """

    def __init__(
        self, number: int, *, per_client: int, unauthenticated: int, network_of: Callable[[str | None], str | None]
    ) -> None:
        self._number = number
        self._per_client = per_client
        self._unauthenticated = unauthenticated
        self._network_of = network_of
        self._open: Counter[str] = Counter()
        self._waiting: dict[object, tuple[str | None, Callable[[], None]]] = {}

    @property
    def is_full(self) -> bool:
        """Whether one more would be one too many, whoever opens it."""
        return self._open.total() >= self._number

    def refusal(self, client_id: str) -> GatewayError | None:
        """Return why this client may open no socket or stream now."""
        if self.is_full:
            return TemporarilyUnavailable("Too many sockets and streams are open; try again later.")
        if self._open[client_id] >= self._per_client:
            return RateLimited(RETRY_SECONDS, "This client has too many sockets and streams open; close one first.")
        return None

    @contextmanager
    def slot(self, client_id: str) -> Iterator[None]:
        """Take a place of this client for as long as the block lasts. Raises what `refusal` returns."""
        if (refusal := self.refusal(client_id)) is not None:
            raise refusal
        self._open[client_id] += 1
        try:
            yield
        finally:
            self._open[client_id] -= 1
            if not self._open[client_id]:
                del self._open[client_id]

    @contextmanager
    def unauthenticated(self, address: str | None, close: Callable[[], None]) -> Iterator[None]:
        """Count a socket that has not signed in for as long as the block lasts. `close` is called to evict it."""
        key = object()
        self._waiting[key] = (self._network_of(address), close)
        if len(self._waiting) > self._unauthenticated:
            self._evict()
        try:
            yield
        finally:
            self._waiting.pop(key, None)

    def _evict(self) -> None:
        (most, _), *_ = Counter(network for network, _ in self._waiting.values()).most_common(1)
        oldest = next(key for key, (network, _) in self._waiting.items() if network == most)
        _, close = self._waiting.pop(oldest)
        close()


class TokenEnd(StrEnum):
    """Why a token that was good is not good any more."""

    EXPIRED = "it has expired"
    REVOKED = "it is not valid any more"
    CHANGED = "it stands for other rights now"


async def watch_token(
    caller: Caller, reauthenticate: Reauthenticate, recheck_seconds: float, report: Callable[[Exception], object]
) -> TokenEnd:
    """Return when the caller's token ends, or at the next look when it is worth nothing, or something else."""
    while seconds_left(caller) > 0:
        await asyncio.sleep(min(seconds_left(caller), recheck_seconds))
        if seconds_left(caller) <= 0:
            break
        try:
            async with asyncio.timeout(min(seconds_left(caller), recheck_seconds)):
                now = (await reauthenticate()).caller
        except (InvalidToken, Forbidden):
            return TokenEnd.REVOKED
        except Exception as error:  # noqa: BLE001 - nobody can say, so the last word holds until the token ends
            if not isinstance(error, TimeoutError):
                report(error)
            continue
        if replace(now, expires_at=None) != replace(caller, expires_at=None):
            # What is under way was let in with the old rights.
            return TokenEnd.CHANGED
        caller = now
    return TokenEnd.EXPIRED


def seconds_left(caller: Caller) -> float:
    """How long the token is still good."""
    if caller.expires_at is None:
        return math.inf
    return max((caller.expires_at - datetime.now(UTC)).total_seconds(), 0)
