"""Map `GatewayError` to GraphQL: to a member of the result union if a client can act on it, else to an error."""

from enum import Enum
from typing import Any

import strawberry
from strawberry.utils.str_converters import to_camel_case

from models import EncounterAction, EncounterStatus
from resolvers import errors
from resolvers.context import Context
from resolvers.encounters.lifecycle import current_version
from resolvers.errors import GatewayError
from schema.types import Encounter, Info


@strawberry.enum(description="Whether the encounter may have been recorded despite the error.")
class Recorded(Enum):
    NO = strawberry.enum_value("no", description="Nothing was recorded; the same request may be sent again.")
    UNKNOWN = strawberry.enum_value(
        "unknown", description="It may have been recorded; check the outcome before sending the request again."
    )


@strawberry.interface(description="The reason why nothing was recorded or changed.")
class Problem:
    code: str = strawberry.field(description="Stable, for programs.")
    message: str = strawberry.field(description="Text for people; it may change.")
    recorded: Recorded


@strawberry.type(description="The patient does not exist, or the caller may not see it.")
class PatientNotFound(Problem):
    pass


@strawberry.type(description="The idempotency key was used for another request; this one recorded and changed nothing.")
class IdempotencyKeyReused(Problem):
    pass


@strawberry.type(
    description="Another encounter of the same request was refused, so this one was not recorded. It may be recorded "
    "in a request without the refused one."
)
class EncounterHeldBack(Problem):
    pass


@strawberry.type(description="The encounter does not exist, or the caller may not see it.")
class EncounterNotFound(Problem):
    pass


@strawberry.type(description="The encounter was changed after the caller read it. Read it again before changing it.")
class StaleVersion(Problem):
    current_version: int = strawberry.field(description="The current version.")
    error: strawberry.Private[errors.StaleVersion]

    @strawberry.field(description="The encounter in its current version.")
    def encounter(self, info: Info) -> Encounter:
        return current_version(info.context.context, self.error)  # type: ignore[return-value]


@strawberry.type(description="The encounter's status does not allow this change.")
class IllegalTransition(Problem):
    status: EncounterStatus = strawberry.field(description="The current status.")
    allowed_actions: list[EncounterAction] = strawberry.field(description="The actions that the status allows.")


@strawberry.enum(description="The types of JSON values.")
class JsonType(Enum):
    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    NULL = "null"
    ARRAY = "array"
    OBJECT = "object"


@strawberry.type(description="The type and the length of a value that was sent, never the value itself.")
class Shape:
    type: JsonType
    length: int | None = strawberry.field(
        description="Characters of a string, items of an array, members of an object."
    )


@strawberry.type(description="One rule that one member breaks.")
class Violation:
    path: list[str] = strawberry.field(description="The path to the member, from the argument.")
    rule: str = strawberry.field(description="Stable, for programs.")
    message: str = strawberry.field(description="The rule as text, for people; it never repeats the input.")
    allowed: list[str] | None = strawberry.field(description="The allowed values, if they can be enumerated.")
    minimum: int | None = strawberry.field(description="The least allowed value, in the unit of the rule.")
    maximum: int | None = strawberry.field(description="The greatest allowed value, in the unit of the rule.")
    received: Shape | None = strawberry.field(
        description="Type and length of the received value; null if the member was not sent."
    )


@strawberry.type(description="The input breaks a rule.")
class InvalidInput(Problem):
    violations: list[Violation]


def outcome(error: GatewayError, context: Context, within: str | None = "input") -> Any:
    """Return the union member for an error. Raise the error again if the union has no member for it.

    Args:
        error: The error. It is counted, and recorded in the audit log if it is a refusal of the caller.
        context: The caller's context.
        within: The argument that holds the command's members; None if the members are arguments themselves.
    """
    context.note_refusal(error)
    members: dict[str, Any] = {"code": error.code, "message": error.message, "recorded": Recorded(error.recorded)}
    match error:
        case errors.PatientNotFound():
            return PatientNotFound(**members)
        case errors.EncounterNotFound():
            return EncounterNotFound(**members)
        case errors.IdempotencyKeyReused():
            return IdempotencyKeyReused(**members)
        case errors.BatchRolledBack():
            return EncounterHeldBack(**members)
        case errors.StaleVersion():
            return StaleVersion(**members, current_version=error.encounter.version, error=error)
        case errors.IllegalTransition():
            return IllegalTransition(**members, status=error.status, allowed_actions=list(error.allowed))
        case errors.InvalidInput():
            violations = [_violation(each, within) for each in error.violations]
            members["message"] = "; ".join(f"{'.'.join(each.path)} {each.message}" for each in violations)
            return InvalidInput(**members, violations=violations)
        case _:
            raise error


def _violation(violation: errors.Violation, within: str | None) -> Violation:
    # The pointer's segments after the member's name come from the client and must not be repeated.
    path = [to_camel_case(violation.pointer.split("/")[1])]
    if within is not None and path != ["idempotencyKey"]:
        path.insert(0, within)
    received = violation.received and Shape(type=JsonType(violation.received.type), length=violation.received.length)
    return Violation(
        path=path,
        rule=violation.rule,
        message=violation.message,
        allowed=list(violation.allowed) or None,
        minimum=violation.minimum,
        maximum=violation.maximum,
        received=received,
    )


def refuse(error: GatewayError, context: Context) -> dict[str, Any]:
    """Return the GraphQL error of a refusal. Count it, and record in the audit log that the caller was refused."""
    context.note_refusal(error)
    return phrase(error, context.request_id)


def phrase(error: GatewayError, request_id: str) -> dict[str, Any]:
    """Return the GraphQL error of a refusal before authentication. After authentication, use `refuse`."""
    extensions: dict[str, Any] = {"code": error.code, "recorded": error.recorded, "request_id": request_id}
    if isinstance(error, errors.InvalidInput):
        extensions["violations"] = [each.as_members() for each in error.violations]
    if isinstance(error, errors.InsufficientScope):
        extensions["scopes"] = list(error.scopes)
    if isinstance(error, errors.RateLimited):
        extensions["retry_after_ms"] = error.retry_after_ms
    return {"message": error.message, "extensions": extensions}
