"""All errors that a caller can be refused with. The tree is closed: each door has one table that maps it to answers.

GatewayError
├── Unauthenticated            the request has no token
├── InvalidToken               the token is not valid
├── InsufficientScope          the caller lacks the scope
│   └── CurrentVersionHidden   nothing was changed, and the caller lacks the scope to see why
├── Forbidden                  the caller has the scope, but not for this brand
├── NotFound
│   ├── PatientNotFound
│   │   └── PatientErased      the patient was erased during the request
│   └── EncounterNotFound
├── RateLimited                the caller has exceeded its rate limit
├── MethodNotAllowed           the path exists, but not with this method
├── NotAcceptable              the client accepts no media type that the gateway serves
├── InvalidInput               the input breaks a rule; names the member and the rule
│   ├── MalformedBody          the body cannot be parsed
│   ├── AnswerTooLarge         the answer would exceed the limit
│   └── TooBroad               the list has too many encounters to be read in time
├── Conflict                   the request contradicts the current state
│   ├── IdempotencyKeyReused   the key stands for another request
│   │   └── KeyErased          the record of the key was erased with its patient
│   ├── BatchRolledBack        another encounter of an all-or-nothing batch was refused
│   ├── StaleVersion           the encounter was changed since the caller read it
│   └── IllegalTransition      the encounter's status does not allow the change
├── UnsupportedMediaType       the body has a media type that this door does not read
├── PayloadTooLarge            the body exceeds the limit
├── RequestTimeout             the body did not arrive in time
├── TemporarilyUnavailable     the gateway cannot answer now
│   ├── Locked                 another transaction holds the lock, and the wait for it timed out
│   ├── AnswerMemoryFull       the answers in flight have exhausted the memory budget
│   ├── OutcomeUnknown         the connection was lost at the commit, which may have succeeded
│   └── Stopped                the gateway stopped during the request, which may have been committed
└── ServerError                an internal error

A message never contains any input: a person's words about a patient must not appear in errors.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from models import Encounter, EncounterAction, EncounterStatus
from resolvers.rules import RuleId

Recorded = Literal["no", "unknown"]


class GatewayError(Exception):
    """The request was refused."""

    code: ClassVar[str]
    recorded: ClassVar[Recorded] = "no"
    """Whether the encounter may have been recorded despite the error: "no", or "unknown"."""

    def __init__(self, message: str | None = None) -> None:
        # The first line of the class's docstring is the default message.
        self.message = message or (self.__doc__ or "").split("\n", 1)[0]
        super().__init__(self.message)


class Unauthenticated(GatewayError):
    """A bearer token is required."""

    code = "unauthenticated"


class InvalidToken(GatewayError):
    """The bearer token is invalid, expired or revoked."""

    code = "invalid_token"


class InsufficientScope(GatewayError):
    """The token has no scope that allows this operation."""

    code = "insufficient_scope"

    def __init__(self, scopes: Sequence[str]) -> None:
        super().__init__()
        self.scopes = tuple(scopes)
        """The scopes of which any one is sufficient."""


class CurrentVersionHidden(InsufficientScope):
    """The encounter was changed after it was read, and the token has no scope that allows reading it."""


class Forbidden(GatewayError):
    """The caller may not act for this brand."""

    code = "forbidden"


class RateLimited(GatewayError):
    """Too many requests; try again later."""

    code = "rate_limited"

    def __init__(self, seconds: float, message: str | None = None) -> None:
        super().__init__(message)
        self.retry_after_ms = max(math.ceil(seconds * 1000), 1)
        """Milliseconds to wait before the next attempt."""


class NotFound(GatewayError):
    """There is no resource at this path."""

    code = "not_found"


class PatientNotFound(NotFound):
    """The patient was not found."""


class PatientErased(PatientNotFound):
    """The patient was not found."""

    # Raised if the patient was erased after this request had found it. The erasure has committed by then.


class EncounterNotFound(NotFound):
    """The encounter was not found."""


class MethodNotAllowed(GatewayError):
    """The path does not support this method."""

    code = "method_not_allowed"

    def __init__(self, allowed: Iterable[str]) -> None:
        self.allowed = tuple(sorted(allowed))
        super().__init__(f"The path does not support this method; allowed: {', '.join(self.allowed)}.")


class NotAcceptable(GatewayError):
    """None of the requested media types is supported."""

    code = "not_acceptable"


class Shape(NamedTuple):
    """The type of a value that was sent, and its length in characters, items or members; never the value itself."""

    type: Literal["string", "number", "boolean", "null", "array", "object"]
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that one member breaks.

    `pointer` is an RFC 6901 JSON Pointer into the input. `rule` is a stable name that clients may switch on. `message`
    states the rule for a person. None of them repeats the input.
    """

    pointer: str
    rule: RuleId
    message: str
    allowed: Sequence[str] = ()
    """The allowed values, where they can be enumerated."""
    minimum: int | None = None
    maximum: int | None = None
    """The least and the greatest allowed value, in the unit of the rule."""
    received: Shape | None = None

    def as_members(self) -> dict[str, Any]:
        """Return the violation as both doors show it."""
        members: dict[str, Any] = {"pointer": self.pointer, "rule": self.rule, "message": self.message}
        if self.allowed:
            members["allowed"] = list(self.allowed)
        limits = {"minimum": self.minimum, "maximum": self.maximum}
        members |= {name: limit for name, limit in limits.items() if limit is not None}
        if self.received:
            members["received"] = {name: each for name, each in self.received._asdict().items() if each is not None}
        return members


class InvalidInput(GatewayError):
    """The input breaks a rule."""

    code = "validation_error"

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{violation.pointer[1:]} {violation.message}".strip() for violation in violations))


class MalformedBody(InvalidInput):
    """The body cannot be parsed."""

    def __init__(
        self, rule: RuleId, message: str, received: Shape | None = None, place: tuple[int, int] | None = None
    ) -> None:
        self.place = place
        """The line and the column of the fault, both from 1, or None if unknown."""
        if place is not None:
            message = f"{message.removesuffix('.')} (line {place[0]}, column {place[1]})."
        super().__init__([Violation("", rule, message, received=received)])


class AnswerTooLarge(InvalidInput):
    """The answer would exceed the maximum size."""

    def __init__(self, maximum: int) -> None:
        message = f"The answer would have more than {maximum:,} bytes; request smaller pages or fewer fields."
        super().__init__([Violation("", "answer_bytes", message, maximum=maximum)])


class TooBroad(InvalidInput):
    """The list has too many encounters to be read in time."""

    code = "too_broad"

    def __init__(self) -> None:
        message = (
            "matches too many encounters to be read in time; add a span of time, such as scheduledFrom and "
            "scheduledUntil, or narrow it"
        )
        super().__init__([Violation("/where", "too_broad", message)])


class Conflict(GatewayError):
    """The request conflicts with the current state."""

    code = "conflict"


class IdempotencyKeyReused(Conflict):
    """The idempotency key was used for another request; send a new key."""

    code = "idempotency_key_payload_mismatch"


class KeyErased(IdempotencyKeyReused):
    """The record of the idempotency key was erased with its patient; send a new key."""


class BatchRolledBack(Conflict):
    """Another encounter of this request was refused, so none of them was recorded."""

    code = "held_back"


class StaleVersion(Conflict):
    """The encounter was changed after it was read; read it again."""

    def __init__(self, encounter: Encounter) -> None:
        super().__init__()
        self.encounter = encounter
        """The current state, for callers that may read it."""


class IllegalTransition(Conflict):
    """The encounter's status does not allow this change."""

    code = "illegal_transition"

    def __init__(self, status: EncounterStatus, allowed: Sequence[EncounterAction]) -> None:
        super().__init__()
        self.status = status
        self.allowed = tuple(allowed)
        """The actions that the status allows."""


class UnsupportedMediaType(GatewayError):
    """The body must be application/json in UTF-8, and not compressed."""

    code = "unsupported_media_type"


class PayloadTooLarge(GatewayError):
    """The body exceeds the maximum size."""

    code = "payload_too_large"


class RequestTimeout(GatewayError):
    """The body did not arrive in time."""

    code = "request_timeout"


class TemporarilyUnavailable(GatewayError):
    """The gateway is temporarily unavailable; retry shortly."""

    code = "temporarily_unavailable"
    retry_after_seconds: ClassVar[int] = 1


class Locked(TemporarilyUnavailable):
    """The resource is locked by another request; retry shortly."""


class AnswerMemoryFull(TemporarilyUnavailable):
    """The memory for large answers is exhausted; retry shortly."""


class OutcomeUnknown(TemporarilyUnavailable):
    """The database connection was lost during the commit; check the outcome before you send the request again."""

    recorded = "unknown"


class Stopped(TemporarilyUnavailable):
    """The gateway stopped during the request; check the outcome before you send the request again."""

    recorded = "unknown"


class ServerError(GatewayError):
    """Internal error; the request id identifies it in the gateway's log."""

    code = "server_error"
    # The error may have occurred after the commit.
    recorded = "unknown"
