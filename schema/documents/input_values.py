"""Find the faults of an input value: each once, with its path, in a message that quotes no values.

The same code checks values of variables and literals in documents. The validation of graphql-core finds these faults
too, but its messages do not name the member of an object, and they quote the client's values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from graphql import (
    GraphQLError,
    ListValueNode,
    NullValueNode,
    ObjectFieldNode,
    ObjectValueNode,
    ValueNode,
    VariableNode,
    get_named_type,
    is_enum_type,
    is_input_object_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    is_required_input_field,
)
from graphql.utilities import validate_input_literal, validate_input_value

from resolvers import json_text
from resolvers.errors import Violation
from resolvers.rules import RuleId
from resolvers.spelling import is_plain, near_miss

MOST_FAULTS = 20
"""Maximum number of faults reported per value or literal; more appear once these are corrected."""

Path = tuple[str | int, ...]


class Fault(NamedTuple):
    """A value that does not fit its type, or a missing or unknown member."""

    path: Path
    rule: RuleId
    message: str
    found: Any
    """The value or AST node at the path; for a missing member, the object that lacks it."""
    allowed: Sequence[str] = ()
    is_missing: bool = False


class _Reader(NamedTuple):
    """The functions that inspect a value, in one set for variables and one for literals."""

    is_left_to_others: Callable[[Any], bool]
    is_null: Callable[[Any], bool]
    items: Callable[[Any], Sequence[Any] | None]
    members: Callable[[Any], Mapping[str, Any] | None]
    validate: Callable[[Any, Any, Callable[[GraphQLError, Any], None]], None]


def _literal_members(node: ValueNode) -> Mapping[str, ObjectFieldNode] | None:
    return {each.name.value: each for each in node.fields} if isinstance(node, ObjectValueNode) else None


VALUES = _Reader(
    is_left_to_others=lambda _: False,
    is_null=lambda value: value is None,
    items=lambda value: value if isinstance(value, list) else None,
    members=lambda value: value if isinstance(value, dict) else None,
    validate=validate_input_value,
)
LITERALS = _Reader(
    # Another validation rule checks the types of variables in literals.
    is_left_to_others=lambda node: isinstance(node, VariableNode),
    is_null=lambda node: isinstance(node, NullValueNode),
    items=lambda node: node.values if isinstance(node, ListValueNode) else None,
    members=_literal_members,
    validate=validate_input_literal,
)


def faults_of_value(value: Any, wanted: Any) -> list[Fault]:
    """Return the faults of a variable's value."""
    return list(islice(_faults(VALUES, value, wanted, ()), MOST_FAULTS))


def faults_of_literal(node: ValueNode, wanted: Any) -> list[Fault]:
    """Return the faults of a literal."""
    return list(islice(_faults(LITERALS, node, wanted, ()), MOST_FAULTS))


def violation_of(fault: Fault, pointer: str) -> Violation:
    """Return the violation for a fault of a variable, whose JSON pointer is `pointer`."""
    received = None if fault.is_missing else json_text.shape_of(fault.found)
    within = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in fault.path)
    return Violation(pointer + within, fault.rule, fault.message, allowed=fault.allowed, received=received)


def _faults(reader: _Reader, value: Any, wanted: Any, path: Path) -> Iterator[Fault]:
    if reader.is_left_to_others(value):
        return
    plain = wanted.of_type if is_non_null_type(wanted) else wanted
    if reader.is_null(value):
        if plain is not wanted:
            yield Fault(path, "null", "must not be null", value)
    elif is_list_type(plain):
        items = reader.items(value)
        if items is None:
            # A single value is coerced to a list of one item (GraphQL specification, 3.11).
            of_one = list(_faults(reader, value, plain.of_type, path))
            yield from (
                [Fault(path, "type", f"must be of type {plain}", value)] if _is_flat(plain) and of_one else of_one
            )
        for place, item in enumerate(items or ()):
            yield from _faults(reader, item, plain.of_type, (*path, place))
    elif is_input_object_type(plain):
        members = reader.members(value)
        if members is None:
            yield Fault(path, "type", f"must be an object: {plain}", value)
        else:
            yield from _faults_of_members(reader, value, members, plain, path)
    else:
        faults: list[GraphQLError] = []
        reader.validate(value, plain, lambda error, _: faults.append(error))
        if faults:
            yield _fault_of_leaf(value, plain, path)


def _faults_of_members(
    reader: _Reader, whole: Any, members: Mapping[str, Any], wanted: Any, path: Path
) -> Iterator[Fault]:
    fields: Mapping[str, Any] = wanted.fields
    near_names: set[str] = set()
    unknown_count = 0
    for name in members:
        if name in fields:
            continue
        near = near_miss(name, fields) if is_plain(name) and len(near_names) + unknown_count < MOST_FAULTS else None
        if near is None:
            unknown_count += 1
            continue
        near_names.add(near)
        message = f"is not a member of {wanted}; did you mean {near}?"
        yield Fault((*path, name), "unknown_member", message, members[name], tuple(fields))
    if unknown_count:
        more = "another" if unknown_count == 1 else f"{unknown_count:,} others"
        message = f"must have only members that {wanted} defines, but has {more}"
        yield Fault(path, "unknown_member", message, whole, tuple(fields))
    for name, field in fields.items():
        if name in members:
            member = members[name]
            within = member.value if isinstance(member, ObjectFieldNode) else member
            yield from _faults(reader, within, field.type, (*path, name))
        elif is_required_input_field(field) and name not in near_names:
            # A required member that was sent under a misspelt name has been reported above.
            yield Fault((*path, name), "required", "is required", whole, is_missing=True)


def _is_flat(list_type: Any) -> bool:
    return is_leaf_type(get_named_type(list_type))


def _fault_of_leaf(value: Any, plain: Any, path: Path) -> Fault:
    if is_enum_type(plain):
        words = tuple(plain.values)
        return Fault(path, "enum", f"must be one of: {', '.join(words)}", value, words)
    return Fault(path, "type", f"must be of type {plain}", value)
