"""The scalars of the schema: serialization and parsing.

An incoming UUID or date-time is only checked to be a string. The commands (`resolvers.commands`) validate its content,
so that GraphQL and REST report the same error.
"""

from datetime import datetime
from enum import Enum
from typing import Any, NewType
from uuid import UUID

import orjson
import strawberry
from graphql import (
    BooleanValueNode,
    FloatValueNode,
    GraphQLError,
    IntValueNode,
    ListValueNode,
    NullValueNode,
    ObjectValueNode,
    StringValueNode,
    Undefined,
    ValueNode,
    VariableNode,
)

from resolvers import json_text

JSON = NewType("JSON", str)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise GraphQLError("must be a string")
    return value


def _json_literal(node: ValueNode, variables: dict[str, Any] | None = None) -> Any:
    match node:
        case NullValueNode():
            return None
        case BooleanValueNode() | StringValueNode():
            return node.value
        case IntValueNode() | FloatValueNode():
            return json_text.number(node.value)
        case ListValueNode():
            items = [_json_literal(item, variables) for item in node.values]
            return [item for item in items if item is not Undefined]
        case ObjectValueNode():
            members = {field.name.value: _json_literal(field.value, variables) for field in node.fields}
            return {name: member for name, member in members.items() if member is not Undefined}
        case VariableNode():
            return _variable(node.name.value, variables or {})
    raise GraphQLError("must be a JSON value")


def _variable(name: str, variables: dict[str, Any]) -> Any:
    """Return a variable's value, or `Undefined` if it was not sent. An `Undefined` member or item is omitted."""
    value = variables.get(name, Undefined)
    if isinstance(value, Enum):
        # Enum literals are refused too; a client must send a string.
        raise GraphQLError("must be a JSON value")
    return value


SCALARS: dict[object, Any] = {
    JSON: strawberry.scalar(
        name="JSON",
        description="Any JSON value; numbers keep every digit.",
        serialize=orjson.Fragment,
        parse_value=lambda value: value,
        parse_literal=_json_literal,
    ),
    UUID: strawberry.scalar(
        name="UUID",
        description="A UUID in its hyphenated form; returned in lower case.",
        serialize=str,
        parse_value=_string,
        specified_by_url="https://www.rfc-editor.org/rfc/rfc9562",
    ),
    datetime: strawberry.scalar(
        name="DateTime",
        description="An RFC 3339 date-time. An offset is required; returned in UTC with `Z`, to the microsecond.",
        # `schema.execution.serialize` formats it with the rest of the response, in the format of `json_text.instant`.
        serialize=lambda value: value,
        parse_value=_string,
        specified_by_url="https://www.rfc-editor.org/rfc/rfc3339#section-5.6",
    ),
}
