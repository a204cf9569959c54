"""Rate limits: the kinds of units, and the interface that the process implements."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from resolvers.access import Caller, Verify
from resolvers.errors import RateLimited


class Kind(StrEnum):
    """The kinds of requests with separate limits."""

    READS = "reads"
    WRITES = "writes"


@dataclass(frozen=True, slots=True)
class Allowance:
    """A client's remaining units of one kind, after a request was counted or rejected."""

    kind: Kind
    limit: int
    """Maximum units in any span of `window_seconds`; 0 means unlimited."""
    window_seconds: int
    remaining: int
    more_in_seconds: float
    """Seconds until more than `remaining` units are available; for a rejected request, until it would be granted."""
    granted: bool = True

    def require(self) -> None:
        """Return if the request was granted. Raises `RateLimited`."""
        if not self.granted:
            raise RateLimited(self.more_in_seconds)


class Rates(Protocol):
    """The rate limiter, as REST and GraphQL use it."""

    async def spend(self, client_id: str, kind: Kind, units: int = 1) -> Allowance:
        """Count a request of a client. A request over the limit is not granted, and not counted. Never raises."""

    async def release(self, client_id: str, kind: Kind, units: int = 1) -> None:
        """Return units that were granted. Never raises."""

    def note_parsing(self, client_id: str, seconds: float) -> None:
        """Count the CPU time of parsing and validating a client's input."""

    def note_answer(self, client_id: str, count: int) -> None:
        """Count the bytes of a client's answer, and of the rows it was built from."""

    def parsing_wait(self, client_id: str) -> float:
        """Return the seconds until new input of a client may be parsed: 0 if it may be parsed now."""

    async def verified(self, token: str, address: str | None, verify: Verify) -> Caller:
        """Verify a token sent from this address; None if the address does not distinguish callers.

        Raises `RateLimited` before the verification if the address has tried too many tokens, and whatever `verify`
        raises.
        """


class Unlimited:
    """A rate limiter without limits."""

    async def spend(self, client_id: str, kind: Kind, units: int = 1) -> Allowance:  # noqa: ARG002
        """Grant the request."""
        return Allowance(kind, limit=0, window_seconds=0, remaining=0, more_in_seconds=0)

    async def release(self, client_id: str, kind: Kind, units: int = 1) -> None:
        """Do nothing: no units were counted."""

    def note_parsing(self, client_id: str, seconds: float) -> None:
        """Count nothing."""

    def note_answer(self, client_id: str, count: int) -> None:
        """Count nothing."""

    def parsing_wait(self, client_id: str) -> float:  # noqa: ARG002
        """Return 0."""
        return 0

    async def verified(self, token: str, address: str | None, verify: Verify) -> Caller:  # noqa: ARG002
        """Verify the token without a limit."""
        return await verify(token)
