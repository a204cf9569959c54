"""How often a caller may ask: what is counted, and the seam to whatever counts it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from resolvers.access import Caller, Verify
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

    async def release(self, client_id: str, kind: Kind, units: int = 1) -> None:
        """Give back units that were granted. Never raises."""

    def note_parsing(self, client_id: str, seconds: float) -> None:
        """Count the CPU time that it took to parse and validate what a client sent."""

    def note_answer(self, client_id: str, count: int) -> None:
        """Count the bytes of a client's answer, and of the rows it was made of."""

    def parsing_wait(self, client_id: str) -> float:
        """Give the seconds until something new of a client may be parsed: 0 where it may be now."""

    async def verified(self, token: str, address: str | None, verify: Verify) -> Caller:
        """Verify a token that came from this address; None where the address tells nobody from another.

        Raises `RateLimited` before it is verified where the address has tried too many, and what `verify` raises.
        """


class Unlimited:
    """Counts nothing."""

    async def spend(self, client_id: str, kind: Kind, units: int = 1) -> Allowance:  # noqa: ARG002
        """Grant it."""
        return Allowance(kind, limit=0, window_seconds=0, remaining=0, more_in_seconds=0)

    async def release(self, client_id: str, kind: Kind, units: int = 1) -> None:
        """Nothing was taken."""

    def note_parsing(self, client_id: str, seconds: float) -> None:
        """Count nothing."""

    def note_answer(self, client_id: str, count: int) -> None:
        """Count nothing."""

    def parsing_wait(self, client_id: str) -> float:  # noqa: ARG002
        """Give 0."""
        return 0

    async def verified(self, token: str, address: str | None, verify: Verify) -> Caller:  # noqa: ARG002
        """Verify it."""
        return await verify(token)
