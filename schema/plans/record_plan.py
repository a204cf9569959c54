"""The plan of `recordEncounter`: it writes the result directly as JSON, in the shape that the document selects.

The plan raises `Unplannable` for unsupported operations. It supports a single `recordEncounter` whose metadata is
passed in a variable, and selections of the encounter's scalar fields and its patient.

Once recording has begun, the plan no longer raises `Unplannable`, so that the executor does not record again. The plan
writes a refusal that is a member of the result union. It raises every other error.

Measured alone on W1 (2026-11-30, docs/performance.md): without it, a recording over GraphQL takes 1.52 times the CPU of
server and PostgreSQL.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import orjson
from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    ObjectValueNode,
    OperationDefinitionNode,
    VariableNode,
    located_error,
)

from models import MEMBERS, Encounter, EncounterStatus, EncounterType, Kind, Member
from resolvers import json_text
from resolvers.access import Permission
from resolvers.context import Context
from resolvers.encounters.lifecycle import allowed_actions
from resolvers.encounters.record import Recording, record_encounter, require_recorder
from resolvers.errors import GatewayError
from schema.errors import outcome
from schema.plans.selection import (
    RECORDING,
    Reader,
    Unplannable,
    Value,
    Variables,
    coerced,
    conditions_of,
    fits_recording,
    members_of,
)
from schema.selections import fragments_of

Part = bytes | Callable[[Recording], bytes]
"""A piece of the response: constant bytes, or a function of the recording."""


class RecordPlan:
    """The plan of one `recordEncounter` operation."""

    def __init__(self, document: DocumentNode, operation: OperationDefinitionNode) -> None:
        """Read the document. Raise `Unplannable` if the plan cannot serve it, whatever the variables."""
        self._definitions = operation.variable_definitions or ()
        if conditions_of(self._definitions):
            raise Unplannable
        self._reader = Reader(fragments_of(document), {})
        roots = self._reader.collected([operation.selection_set], "Mutation")
        if len(roots) != 1:
            raise Unplannable
        ((self._key, self._nodes),) = roots
        if self._nodes[0].name.value != "recordEncounter":
            raise Unplannable
        self._arguments = _arguments(self._nodes[0])
        fields = self._reader.recorded(self._nodes)
        self._shows_patient = any(
            isinstance(each, list) for _, below in fields if isinstance(below, list) for _, each in below
        )
        self._parts = _joined([b"{", _named(self._key), *_object(fields), b"}"])

    async def run(self, sent: Variables, context: Context) -> bytes:
        """Record the encounter, and return the JSON of `data`.

        Raises:
            Unplannable: The variables are unsupported, or a selected field needs another permission; nothing was
                recorded.
            GatewayError: Recording was refused or failed, and the result union has no member for the error.
            AnswerTooLarge: The encounter was recorded, but the response exceeds its limit.
            AnswerMemoryFull: The encounter was recorded, but the process has no memory left for the response.
        """
        variables = coerced(self._definitions, sent)
        given = self._arguments(variables)
        patient_id, members, key = given.get("patientId"), given.get("input"), given.get("idempotencyKey")
        if not isinstance(patient_id, str) or not isinstance(key, str | None) or not fits_recording(members):
            raise Unplannable
        if self._shows_patient:
            _require_patients(context)
        if ENCOUNTER["allowed_actions"] in self._parts and not context.may(Permission.CHANGE_ENCOUNTER):
            raise Unplannable
        try:
            recording = await record_encounter(require_recorder(context), patient_id, _command(members), key)
        except GatewayError as error:
            refusal = self._reader.selected(outcome(error, context), self._nodes)
            parts = [orjson.dumps({self._key: refusal})]
        else:
            parts = [part if isinstance(part, bytes) else part(recording) for part in self._parts]
        context.answer.add(sum(map(len, parts)))
        return b"".join(parts)

    def failed(self, error: Exception, _sent: Variables) -> ExecutionResult:
        """Return the result of an operation for which `run` raised `error` after it began."""
        return ExecutionResult(None, [located_error(error, self._nodes, [self._key])])


def _require_patients(context: Context) -> None:
    try:
        context.require(Permission.READ_PATIENTS)
        context.acting_brand()
    except GatewayError:
        raise Unplannable from None


def _arguments(node: FieldNode) -> Value:
    nodes = {each.name.value: each.value for each in node.arguments or ()}
    given = nodes["input"]
    if "validateOnly" in nodes:
        raise Unplannable
    if isinstance(given, ObjectValueNode):
        # A JSON literal keeps every digit of its numbers; only the executor supports that.
        objects = [each.value for each in given.fields if MEMBERS[RECORDING[each.name.value]].kind is Kind.JSON]
        if not all(isinstance(each, VariableNode) for each in objects):
            raise Unplannable
    return members_of(node.arguments or ())


def _command(members: dict[str, Any]) -> dict[str, Any]:
    command = {RECORDING[name]: value for name, value in members.items()}
    command["encounter_type"] = EncounterType[command["encounter_type"]]
    if command.get("status") is not None:
        command["status"] = EncounterStatus[command["status"]]
    return command


# Serialization of the result


def _named(key: str) -> bytes:
    return b'"' + key.encode() + b'":'


def _object(fields: Sequence[tuple[str, Any]]) -> list[Part]:
    """Return the parts of an `EncounterRecorded`."""
    parts: list[Part] = []
    for number, (key, each) in enumerate(fields):
        parts += [b"," if number else b"{", _named(key)]
        if isinstance(each, list):
            parts += _encounter(each)
        else:
            parts.append(OUTCOME[each.name])
    return [*parts, b"}"] if parts else [b"{}"]


def _encounter(fields: Sequence[tuple[str, Any]]) -> list[Part]:
    parts: list[Part] = []
    for number, (key, each) in enumerate(fields):
        parts += [b"," if number else b"{", _named(key)]
        if isinstance(each, list):
            # The recorded encounter holds all fields of its patient that clients can select.
            for place, (name, of) in enumerate(each):
                parts += [b"," if place else b"{", _named(name), PATIENT[of.name]]
            parts.append(b"}")
        else:
            parts.append(ENCOUNTER[each.name])
    return [*parts, b"}"]


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Join adjacent constant parts."""
    joined: list[Part] = []
    for part in parts:
        if joined and isinstance(part, bytes) and isinstance(last := joined[-1], bytes):
            joined[-1] = last + part
        else:
            joined.append(part)
    return joined


def _of(write: Callable[[Encounter], Any]) -> Callable[[Recording], bytes]:
    # `default=str` serializes asyncpg's UUID type, which orjson does not know.
    return lambda recording: orjson.dumps(write(recording.encounter), default=str)


def _member(member: Member) -> Callable[[Recording], bytes]:
    value = attrgetter(member.name)
    match member.kind:
        case Kind.INSTANT:
            return _of(lambda encounter: None if (at := value(encounter)) is None else json_text.instant(at))
        case Kind.ENUM:
            return _of(lambda encounter: value(encounter).upper())
        case Kind.JSON:
            return lambda recording: value(recording.encounter).encode()
        case _:
            return _of(value)


OUTCOME: dict[str, Part] = {
    "__typename": b'"EncounterRecorded"',
    "replayed": lambda recording: b"true" if recording.replayed else b"false",
}
PATIENT: dict[str, Part] = {
    "__typename": b'"Patient"',
    "id": _member(MEMBERS["patient_id"]),
    "brand_id": _member(MEMBERS["brand_id"]),
}
ENCOUNTER: dict[str, Part] = {
    "__typename": b'"Encounter"',
    **{name: _member(member) for name, member in MEMBERS.items()},
    "allowed_actions": _of(lambda encounter: [action.name for action in allowed_actions(encounter.status)]),
}
