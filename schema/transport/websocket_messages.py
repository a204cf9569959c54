"""Parse the messages that a client sends over a WebSocket. Each frame is one message of the protocol.

Source: GraphQL over WebSocket, https://github.com/graphql/graphql-over-http/blob/main/rfcs/GraphQLOverWebSocket.md
"""

from dataclasses import dataclass
from typing import Any

from resolvers import json_text
from resolvers.errors import MalformedBody

MAX_ID_CHARACTERS = 256


class InvalidMessage(Exception):
    """The frame is not a valid message. The text names the violated rule and quotes nothing from the frame."""


@dataclass(frozen=True, slots=True)
class ConnectionInit:
    """The credentials of the client, named as the headers of an HTTP request."""

    authorization: str | None
    stated_brand_id: str | None
    consistency: str | None = None


@dataclass(frozen=True, slots=True)
class Ping:
    """A keep-alive or latency probe, to be answered with a pong."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A request to run an operation. The payload is not validated here, because its errors belong to the operation."""

    id: str
    payload: Any
    size: int
    """The size of the whole message in bytes."""


@dataclass(frozen=True, slots=True)
class Complete:
    """The client no longer wants the results of this operation."""

    id: str


Message = ConnectionInit | Ping | Pong | Subscribe | Complete


def read(text: str) -> Message:
    """Parse a text frame. Raise `InvalidMessage`."""
    try:
        members = json_text.read(text)
    except MalformedBody as error:
        place = ", line {}, column {}".format(*error.place) if error.place else ""
        raise InvalidMessage(f"A message must be one JSON object ({error.violations[0].rule}{place}).") from None
    if not isinstance(members, dict):
        raise InvalidMessage("A message must be a JSON object.")
    match members.get("type"):
        case "connection_init":
            return _connection_init(_object_or_nothing(members))
        case "ping":
            _object_or_nothing(members)
            return Ping()
        case "pong":
            _object_or_nothing(members)
            return Pong()
        case "subscribe":
            return Subscribe(_id(members), members.get("payload"), len(text.encode()))
        case "complete":
            return Complete(_id(members))
        case _:
            raise InvalidMessage("Unknown message type.")


def _connection_init(payload: dict[str, Any]) -> ConnectionInit:
    # The members have the names of the headers, in any letter case. GraphiQL and other explorers send their configured
    # headers in this payload.
    headers: dict[str, str] = {}
    for name, value in payload.items():
        if (header := name.lower()) not in {"authorization", "x-brand-id", "x-consistency"} or value is None:
            continue
        if header in headers:
            raise InvalidMessage("The payload must not repeat a header.")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise InvalidMessage("A header in the payload must be a string of visible characters.")
        headers[header] = value
    return ConnectionInit(headers.get("authorization"), headers.get("x-brand-id"), headers.get("x-consistency"))


def _object_or_nothing(members: dict[str, Any]) -> dict[str, Any]:
    payload = members.get("payload")
    if not isinstance(payload, dict | None):
        raise InvalidMessage("This message's payload must be an object.")
    return payload or {}


def _id(members: dict[str, Any]) -> str:
    operation_id = members.get("id")
    if not isinstance(operation_id, str) or not 0 < len(operation_id) <= MAX_ID_CHARACTERS:
        raise InvalidMessage(f"The id must be a string of 1 to {MAX_ID_CHARACTERS} characters.")
    if json_text.problem_with(operation_id):
        raise InvalidMessage("The id must be Unicode without NUL.")
    return operation_id
