"""Validate that fields with the same response name can be merged into one value.

graphql-core compares fields in pairs: a few kilobytes of text can take it a second. This module visits each field once
for each place where it is merged. It groups the fields by response name and compares each with the first of its group.
Source: GraphQL specification, 5.3.2 "Field Selection Merging", by the algorithm that XING published for it
(https://tech.new-work.se/graphql-overlapping-fields-can-be-merged-fast-ea6e92e0a01).

The document must satisfy all other rules first. Unknown names and fragment cycles are not handled here.
`schema.documents.limits` bounds the number of fields after expansion of fragments, and thereby this work.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    GraphQLError,
    GraphQLSchema,
    ListValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    StringValueNode,
    ValueNode,
    VariableNode,
    get_named_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    is_object_type,
)

from schema.selections import Selections, collect_fields, fragments_of


class _Field(NamedTuple):
    parent: Any
    node: FieldNode
    type: Any


def conflicts_in(schema: GraphQLSchema, document: DocumentNode, most: int) -> list[GraphQLError]:
    """Return an error for each field that conflicts with the first field of its name, and at most `most` errors."""
    rule = _Rule(schema, document)
    operations = (each for each in document.definitions if isinstance(each, OperationDefinitionNode))
    roots = ((schema.get_root_type(each.operation), each.selection_set) for each in operations)
    found = (rule.conflicts([(root.name, selection_set)]) for root, selection_set in roots if root)
    return list(islice(chain.from_iterable(found), most))


class _Rule:
    def __init__(self, schema: GraphQLSchema, document: DocumentNode) -> None:
        self._schema = schema
        self._fragments = fragments_of(document)
        self._calls: dict[int, object] = {}
        """The normalized arguments of each field by the id of its node, cached because fragments may repeat."""

    def conflicts(self, selections: Selections, *, together: bool = True) -> Iterator[GraphQLError]:
        """Yield the conflicts of the selections that are merged into one object, and of their sub-selections.

        `together` tells whether the selections may apply to the same object. Selections on different object types may
        select different fields under one name. These fields must only have the same response shape, because clients
        parse one response format.
        """
        for name, fields in collect_fields(selections, self._fragments).items():
            group = [self._field(*each) for each in fields]
            parts = _of_one_object(group) if together else []
            if len(group) > 1:
                conflicts = [each for part in parts for each in self._conflicts_of_calls(name, part)]
                # Different fields often have different shapes too, so only the first kind of conflict is reported.
                yield from conflicts or _conflicts_of_shape(name, group)
            if len(parts) != 1 and (below := _below(group)):
                yield from self.conflicts(below, together=False)
            for part in parts:
                if below := _below(part):
                    yield from self.conflicts(below)

    def _field(self, type_name: str, node: FieldNode) -> _Field:
        parent: Any = self._schema.type_map[type_name]
        # Like graphql-core and graphql-js, the rule knows no type of `__typename`.
        field = None if node.name.value == "__typename" else self._schema.get_field(parent, node.name.value)
        return _Field(parent, node, field and field.type)

    def _conflicts_of_calls(self, name: str, part: Sequence[_Field]) -> Iterator[GraphQLError]:
        first = part[0].node
        for _, node, _ in part[1:]:
            if node.name.value != first.name.value:
                reason = f"'{first.name.value}' and '{node.name.value}' are different fields"
            elif self._call_of(node) != self._call_of(first):
                reason = "they have differing arguments"
            else:
                continue
            yield _conflict(name, reason, first, node)

    def _call_of(self, node: FieldNode) -> object:
        if not node.arguments:
            return ()
        if id(node) not in self._calls:
            self._calls[id(node)] = sorted((each.name.value, _written(each.value)) for each in node.arguments)
        return self._calls[id(node)]


def _of_one_object(group: list[_Field]) -> list[list[_Field]]:
    """Group fields by their parent object type. Fields of an abstract type belong to every group."""
    if all(each.parent is group[0].parent for each in group):
        return [group]
    of_any = [each for each in group if not is_object_type(each.parent)]
    objects: dict[str, list[_Field]] = {}
    for each in group:
        if is_object_type(each.parent):
            objects.setdefault(each.parent.name, []).append(each)
    return [[*of_any, *part] for part in objects.values()] or [of_any]


def _conflicts_of_shape(name: str, group: Sequence[_Field]) -> Iterator[GraphQLError]:
    first, *others = [each for each in group if each.type is not None] or group[:1]
    for each in others:
        if each.type is not first.type and _shape(each.type) != _shape(first.type):
            reason = f"they return conflicting types '{first.type}' and '{each.type}'"
            yield _conflict(name, reason, first.node, each.node)


def _shape(type_: Any) -> str:
    """Return the response shape of a type: its lists, its nullability, and its scalar or enum."""
    if is_non_null_type(type_):
        return _shape(type_.of_type) + "!"
    if is_list_type(type_):
        return f"[{_shape(type_.of_type)}]"
    return str(type_) if is_leaf_type(type_) else "{}"


def _below(group: Sequence[_Field]) -> Selections:
    return [(get_named_type(each.type).name, each.node.selection_set) for each in group if each.node.selection_set]


def _written(value: ValueNode) -> str:
    """Return a normalized text of a value. Two texts are equal if and only if the values are equivalent."""
    match value:
        case ObjectValueNode():
            members = sorted((each.name.value, _written(each.value)) for each in value.fields)
            return repr(members)
        case ListValueNode():
            return f"[{','.join(map(_written, value.values))}]"
        case StringValueNode():
            return repr((value.value, bool(value.block)))
        case VariableNode():
            return f"${value.name.value}"
    return f"{value.kind} {getattr(value, 'value', None)}"


def _conflict(name: str, reason: str, *nodes: FieldNode) -> GraphQLError:
    return GraphQLError(
        f"Fields '{name}' conflict because {reason}."
        " Use different aliases on the fields to fetch both if this was intentional.",
        list(nodes),
    )
