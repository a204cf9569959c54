"""Long-lived connections (WebSockets and event streams): their limit, and the periodic re-verification of the token."""

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
"""Authenticates again with the connection's original credentials. Raises what `authenticate` raises."""

LogOperation = Callable[[Context, str, float], None]
"""Logs an operation, given its context, its outcome and its duration in seconds."""


RETRY_SECONDS = 1.0
"""Seconds; the Retry-After for a client with too many connections, by which time one of them may be closed."""


class ConnectionLimit:
    """Limits the sockets and streams that are open in this process.

    A connection takes a slot after authentication. Unauthenticated sockets have a limit of their own, so that a flood
    of them cannot exclude authenticated callers. A socket beyond that limit evicts the oldest unauthenticated socket of
    the network that has the most.

    Args:
        number: Maximum number of open connections.
        per_client: Maximum number of open connections of one client.
        unauthenticated: Maximum number of unauthenticated sockets.
        network_of: Returns the network of an address, as one caller is assumed to hold it; None if it is unknown.
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
        """Whether the process has no free slot for any client."""
        return self._open.total() >= self._number

    def refusal(self, client_id: str) -> GatewayError | None:
        """Return the error if this client may not open a socket or stream now, else None."""
        if self.is_full:
            return TemporarilyUnavailable("Too many sockets and streams are open; try again later.")
        if self._open[client_id] >= self._per_client:
            return RateLimited(RETRY_SECONDS, "The client has too many sockets and streams open; close one first.")
        return None

    @contextmanager
    def slot(self, client_id: str) -> Iterator[None]:
        """Hold a slot for this client during the block. Raise what `refusal` returns."""
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
        """Count an unauthenticated socket during the block. `close` is called to evict it."""
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
    """Why a token that was valid is no longer accepted."""

    EXPIRED = "it has expired"
    REVOKED = "it is no longer valid"
    CHANGED = "its permissions have changed"


async def watch_token(
    caller: Caller, reauthenticate: Reauthenticate, recheck_seconds: float, report: Callable[[Exception], object]
) -> TokenEnd:
    """Wait until the caller's token expires, or until a check finds it revoked or with changed permissions.

    Args:
        caller: The caller as authenticated at first.
        reauthenticate: Verifies the token again.
        recheck_seconds: Interval between two checks, and the timeout of each.
        report: Receives unexpected errors of a check. The token then counts as valid until the next check.

    Returns:
        The reason why the token is no longer accepted.
    """
    while seconds_left(caller) > 0:
        await asyncio.sleep(min(seconds_left(caller), recheck_seconds))
        if seconds_left(caller) <= 0:
            break
        try:
            async with asyncio.timeout(min(seconds_left(caller), recheck_seconds)):
                now = (await reauthenticate()).caller
        except (InvalidToken, Forbidden):
            return TokenEnd.REVOKED
        except Exception as error:  # noqa: BLE001 - the check failed, so the last result holds until the token expires
            if not isinstance(error, TimeoutError):
                report(error)
            continue
        if replace(now, expires_at=None) != replace(caller, expires_at=None):
            # The running operations were authorized with the old permissions.
            return TokenEnd.CHANGED
        caller = now
    return TokenEnd.EXPIRED


def seconds_left(caller: Caller) -> float:
    """Return the seconds until the token expires; infinity if it has no expiry."""
    if caller.expires_at is None:
        return math.inf
    return max((caller.expires_at - datetime.now(UTC)).total_seconds(), 0)
