"""How often a caller may ask: what is counted, and the seam to whatever counts it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from resolvers.errors import RateLimited


class Kind(StrEnum):
    """What is counted apart."""

    READS = "reads"
    WRITES = "writes"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a client has left of one kind, after a request was counted or found to be too many."""

    kind: Kind
    limit: int
    """Units in any span of `window_seconds`; 0 where there is no limit."""
    window_seconds: int
    remaining: int
    more_in_seconds: float
    """Until there is more than `remaining`; for a request that was not granted, until it would be."""
    granted: bool = True

    def require(self) -> None:
        """Return if the request was granted. Raises `RateLimited`."""
        if not self.granted:
            raise RateLimited(self.more_in_seconds)


class Rates(Protocol):
    """What the doors need of whatever counts."""

    async def spend(self, client_id: str, kind: Kind, units: int = 1) -> Allowance:
        """Count a request of a client; one that is too many is not granted, and not counted either. Never raises."""

    def attempt(self, address: str | None, token: str) -> AbstractAsyncContextManager[None]:
        """Watch a token being verified that came from this address; None where the address tells nobody from another.

        Raises `RateLimited` before the block where the address has tried too many tokens.
        """


class Unlimited:
    """Counts nothing."""

    async def spend(self, client_id: str, kind: Kind, units: int = 1) -> Allowance:  # noqa: ARG002
        """Grant it."""
        return Allowance(kind, limit=0, window_seconds=0, remaining=0, more_in_seconds=0)

    @asynccontextmanager
    async def attempt(self, address: str | None, token: str) -> AsyncIterator[None]:  # noqa: ARG002
        """Let it be tried."""
        yield
