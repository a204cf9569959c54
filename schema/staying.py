"""What stays open, a socket or a stream of events: how many may, and how long the caller's right to it lasts."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum

from resolvers.access import Caller
from resolvers.context import Context
from resolvers.errors import Forbidden, InvalidToken

WhoCalls = Callable[[], Awaitable[Context]]
"""Signs in again with what was sent at first. Raises what `sign_in` raises."""

LogOperation = Callable[[Context, str, float], None]
"""Writes the log line of an operation: whose it was, what became of it, and how many seconds it took."""


class Places:
    """The sockets and streams that are open in this process at once."""

    def __init__(self, number: int) -> None:
        self._free = number

    @property
    def all_taken(self) -> bool:
        """Whether one more would be one too many."""
        return self._free <= 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Take a place for as long as the block lasts."""
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


class TokenEnd(StrEnum):
    """Why a token that was good is not good any more."""

    EXPIRED = "it has expired"
    REVOKED = "it is not valid any more"
    CHANGED = "it stands for other rights now"


async def end_of_token(
    caller: Caller, who_calls: WhoCalls, recheck_seconds: float, report: Callable[[Exception], object]
) -> TokenEnd:
    """Return when the caller's token ends, or at the next look when it is worth nothing, or something else."""
    while seconds_left(caller) > 0:
        await asyncio.sleep(min(seconds_left(caller), recheck_seconds))
        if seconds_left(caller) <= 0:
            break
        try:
            async with asyncio.timeout(min(seconds_left(caller), recheck_seconds)):
                now = (await who_calls()).caller
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
