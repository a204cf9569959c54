"""Parse the selections of an operation into a tree, with fragments merged and `@skip` and `@include` evaluated.

The reader supports only the fields that plans serve. It raises `Unplannable` for every other field.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from types import NoneType
from typing import Any, NamedTuple

from graphql import (
    ArgumentNode,
    BooleanValueNode,
    EnumValueNode,
    FieldNode,
    IntValueNode,
    ListTypeNode,
    ListValueNode,
    NamedTypeNode,
    NonNullTypeNode,
    NullValueNode,
    ObjectFieldNode,
    ObjectValueNode,
    SelectionNode,
    SelectionSetNode,
    StringValueNode,
    TypeNode,
    ValueNode,
    VariableDefinitionNode,
    VariableNode,
)
from strawberry.utils.str_converters import to_snake_case

from models import MEMBERS, EncounterOrder, EncounterStatus, EncounterType, Kind
from resolvers.bounded_rows import LONG, LONG_BYTES
from resolvers.commands import RecordEncounter
from resolvers.encounters.json_sql import USUAL_BYTES
from resolvers.json_text import INT_DIGITS
from schema.selections import Fragments, collect_fields

Variables = Mapping[str, Any]
Value = Callable[[Variables], Any]
"""Returns the value of an argument for the given variables."""


class Unplannable(Exception):
    """No plan supports this operation, so the executor must run it."""


# The tree


class Member(NamedTuple):
    """A scalar field of an encounter or a patient, named by its column, or `__typename`."""

    name: str


@dataclass(frozen=True)
class PageNode:
    """A page of a list of encounters."""

    number: int
    of_brand: bool
    """Whether the list is that of the brand; otherwise, it is a patient's."""
    arguments: Value
    fields: Sequence[tuple[str, str, Sequence[Any]]]
    """Response key, field name and sub-selection."""

    @property
    def reads(self) -> bool:
        """Whether the query selects rows or `pageInfo`, and not only the total count."""
        return any(name in {"nodes", "edges", "page_info"} for _, name, _ in self.fields)

    @cached_property
    def item_bytes(self) -> int:
        """The estimated maximum size of one encounter on the page, in bytes."""
        return sum(_most_bytes(below) for _, name, below in self.fields if name in {"nodes", "edges"})


def _most_bytes(fields: Sequence[Any]) -> int:
    """Estimate the maximum size of fields and their sub-selections, in bytes."""
    count = 0
    for key, *_, below in fields:
        if isinstance(below, Member):
            count += LONG_BYTES if below.name in LONG else USUAL_BYTES
        else:
            count += _most_bytes(below)
        count += len(key)
    return count


@dataclass(frozen=True)
class Root:
    """One field at the root of the query."""

    key: str
    nodes: Sequence[FieldNode]
    argument: Value
    fields: Sequence[tuple[str, Any]]
    pages: Sequence[PageNode]
    patient: Value = lambda _: None
    """The argument `patientId` of `encounter`; None if it was not sent."""

    @cached_property
    def name(self) -> str:
        """The name of the field."""
        return self.nodes[0].name.value


# Variables and values

UNION = "RecordEncounterResult"

SCALARS = {"ID", "String", "UUID", "DateTime"}
ENUM_LISTS = {"encounterType": "EncounterType", "status": "EncounterStatus"}
FILTERS: Mapping[str, Mapping[str, str | None]] = {
    "EncounterFilter": {**ENUM_LISTS, **dict.fromkeys(("providerId", "scheduledFrom", "scheduledUntil"))},
    "EncountersFilter": {
        **ENUM_LISTS,
        **dict.fromkeys(("providerId", "patientId"), "ID"),
        **dict.fromkeys(
            f"{name}{side}" for name in ("scheduled", "started", "created", "updated") for side in ("From", "Until")
        ),
    },
}
"""The members of each filter: the type of the values of a list, or None for a string."""

ENUMS: Mapping[str, Mapping[str, object]] = {
    "EncounterType": {each.name: each for each in EncounterType},
    "EncounterStatus": {each.name: each for each in EncounterStatus},
    "EncounterOrder": {each.name: each for each in EncounterOrder},
}


def fits(type_: TypeNode, value: Any) -> bool:
    """Return whether a variable's value has exactly the declared type. A value that needs coercion does not fit."""
    if isinstance(type_, NonNullTypeNode):
        return value is not None and fits(type_.type, value)
    if value is None:
        return True
    if isinstance(type_, ListTypeNode):
        return isinstance(value, list) and all(fits(type_.type, item) for item in value)
    name = type_.name.value  # type: ignore[attr-defined]
    if name in SCALARS:
        return isinstance(value, str)
    if name == "Int":
        return type(value) is int and -(2**31) <= value < 2**31
    if name == "Boolean":
        return isinstance(value, bool)
    if name in ENUMS:
        return isinstance(value, str) and value in ENUMS[name]
    if name == "RecordEncounterInput":
        return fits_recording(value)
    return name in FILTERS and _fits_filter(FILTERS[name], value)


RECORDING = {MEMBERS[name].graphql_name: name for name in RecordEncounter.model_fields}
"""The members of `RecordEncounterInput`: the name of each in the command."""

_STRINGS = {
    name: str if RecordEncounter.model_fields[of].is_required() else (str, NoneType)
    for name, of in RECORDING.items()
    if MEMBERS[of].kind is not Kind.JSON
}


def fits_recording(members: Any) -> bool:
    """Return whether `members` is a `RecordEncounterInput` whose members have the right types."""
    if not isinstance(members, dict) or not members.keys() <= RECORDING.keys():
        return False
    for name, types in _STRINGS.items():
        if not isinstance(members.get(name), types):
            return False
    status = members.get("status")
    return members["encounterType"] in ENUMS["EncounterType"] and (status is None or status in ENUMS["EncounterStatus"])


def coerced(definitions: Sequence[VariableDefinitionNode], sent: Variables) -> dict[str, Any]:
    """Return the variables of an operation, with defaults. Raise `Unplannable` if one is missing or needs coercion."""
    variables: dict[str, Any] = {}
    for definition in definitions:
        name = definition.variable.name.value
        if name in sent:
            if not fits(definition.type, sent[name]):
                raise Unplannable
            variables[name] = sent[name]
        elif definition.default_value is not None:
            variables[name] = value_of(definition.default_value)({})
            if isinstance(definition.default_value, ObjectValueNode) or not fits(definition.type, variables[name]):
                raise Unplannable
        elif isinstance(definition.type, NonNullTypeNode):
            raise Unplannable
    return variables


def _fits_filter(members: Mapping[str, str | None], where: Any) -> bool:
    if not isinstance(where, dict) or not where.keys() <= members.keys():
        return False
    return all(part is None or _fits_part(members[name], part) for name, part in where.items())


def _fits_part(items: str | None, part: Any) -> bool:
    if items is None:
        return isinstance(part, str)
    return isinstance(part, list) and all(isinstance(each, str) and each in ENUMS.get(items, (each,)) for each in part)


def filter_members(type_name: str, where: Any) -> dict[str, Any]:
    """Return a filter's members by their Python names. Raise `Unplannable` if the filter does not fit its type."""
    if where is None:
        return {}
    members = FILTERS[type_name]
    if not _fits_filter(members, where):
        raise Unplannable
    return {
        to_snake_case(name): [ENUMS[kind][item] for item in part]
        if (kind := members[name] or "") in ENUMS and part
        else part
        for name, part in where.items()
    }


def value_of(node: ValueNode) -> Value:
    """Return a function that evaluates an argument. Raise `Unplannable` for a value of an unsupported kind."""
    match node:
        case VariableNode():
            name = node.name.value
            return lambda variables: variables.get(name)
        case StringValueNode() | BooleanValueNode() | EnumValueNode():
            constant: Any = node.value
        case IntValueNode() if len(node.value) <= INT_DIGITS:
            constant = int(node.value)
        case NullValueNode():
            constant = None
        case ListValueNode():
            items = [value_of(item) for item in node.values]
            return lambda variables: [item(variables) for item in items]
        case ObjectValueNode():
            return members_of(node.fields)
        case _:
            raise Unplannable
    return lambda _: constant


def members_of(nodes: Sequence[ArgumentNode | ObjectFieldNode]) -> Value:
    """Return a function that evaluates arguments or the members of an object.

    The function omits a member whose variable was not sent.
    """
    members = [(each.name.value, _variable_of(each.value), value_of(each.value)) for each in nodes]
    return lambda variables: {
        name: value(variables) for name, variable, value in members if variable is None or variable in variables
    }


def _variable_of(node: ValueNode) -> str | None:
    return node.name.value if isinstance(node, VariableNode) else None


class Reader:
    """Builds the tree of an operation for one set of values of the variables in `@skip` and `@include`.

    Without `may_change`, the caller may not change encounters, and the field `allowedActions` becomes `no_actions`.
    """

    def __init__(self, fragments: Fragments, variables: Variables, *, may_change: bool = True) -> None:
        self._fragments = fragments
        self._variables = variables
        self._may_change = may_change
        self._pages = 0

    def roots(self, selections: SelectionSetNode) -> list[Root]:
        """Return the root fields of a query."""
        roots = []
        for key, nodes in self.collected([selections], "Query"):
            name = nodes[0].name.value
            match name:
                case "__typename":
                    roots.append(Root(key, nodes, lambda _: None, (), ()))
                case "encounter":
                    fields = self._encounter(nodes)
                    patient = self._argument(nodes[0], "patientId")
                    roots.append(Root(key, nodes, self._argument(nodes[0], "id"), fields, (), patient))
                case "encounters":
                    page = self._page(nodes, of_brand=True)
                    roots.append(Root(key, nodes, lambda _: "", [(key, page)], [page]))
                case "patient" | "patients":
                    pages: list[PageNode] = []
                    fields = self._patient(nodes, pages)
                    argument = self._argument(nodes[0], "id" if name == "patient" else "ids")
                    roots.append(Root(key, nodes, argument, fields, pages))
                case _:
                    raise Unplannable
        return roots

    def recorded(self, nodes: Sequence[FieldNode]) -> list[tuple[str, Any]]:
        """Return the selected fields of an `EncounterRecorded`."""
        fields: list[tuple[str, Any]] = []
        for key, below in self.collected(_below(nodes), "EncounterRecorded", UNION):
            match below[0].name.value:
                case "encounter":
                    fields.append((key, self._encounter(below)))
                case "__typename" | "replayed" as name:
                    fields.append((key, Member(name)))
                case _:
                    raise Unplannable
        return fields

    def selected(self, value: object, nodes: Sequence[FieldNode]) -> object:
        """Return the selected fields of a `Problem`, and of the objects in it, as JSON."""
        if isinstance(value, Enum):
            return value.name
        if isinstance(value, list):
            return [self.selected(item, nodes) for item in value]
        if value is None or not (sets := _below(nodes)):
            return value
        types = [each.__name__ for each in type(value).__mro__]
        return {
            key: types[0]
            if (name := below[0].name.value) == "__typename"
            else self.selected(getattr(value, to_snake_case(name)), below)
            for key, below in self.collected(sets, *types, UNION)
        }

    def _encounter(self, nodes: Sequence[FieldNode]) -> list[tuple[str, Any]]:
        fields: list[tuple[str, Any]] = []
        for key, below in self.collected(_below(nodes), "Encounter"):
            name = below[0].name.value
            if name == "patient":
                fields.append((key, self._patient(below, None)))
            elif below[0].selection_set:
                # A nested object that plans do not support: the history, or the federated provider.
                raise Unplannable
            elif name == "allowedActions" and not self._may_change:
                fields.append((key, Member("no_actions")))
            else:
                fields.append((key, Member(to_snake_case(name) if name != "__typename" else name)))
        return fields

    def _patient(self, nodes: Sequence[FieldNode], pages: list[PageNode] | None) -> list[tuple[str, Any]]:
        """Return the selected fields of a patient.

        `pages` collects the pages found. None means that a page is unsupported here, because it would be nested.
        """
        fields: list[tuple[str, Any]] = []
        for key, below in self.collected(_below(nodes), "Patient"):
            match below[0].name.value:
                case "id" | "brandId" | "__typename" as name:
                    fields.append((key, Member(to_snake_case(name) if name != "__typename" else name)))
                case "encounters" if pages is not None:
                    pages.append(page := self._page(below))
                    fields.append((key, page))
                case _:
                    # A nested page, or a member of the patient's own row; external ids are audited too.
                    raise Unplannable
        return fields

    def _page(self, nodes: Sequence[FieldNode], *, of_brand: bool = False) -> PageNode:
        fields: list[tuple[str, str, Sequence[Any]]] = []
        for key, below in self.collected(_below(nodes), "EncounterConnection"):
            match below[0].name.value:
                case "nodes":
                    fields.append((key, "nodes", self._encounter(below)))
                case "edges":
                    fields.append((key, "edges", self._edge(below)))
                case "pageInfo":
                    inner = [(each, of[0].name.value) for each, of in self.collected(_below(below), "PageInfo")]
                    fields.append((key, "page_info", inner))
                case "totalCount" | "totalCountIsExact" | "feedCursor" as name:
                    fields.append((key, to_snake_case(name), ()))
                case "__typename":
                    fields.append((key, "__typename", ()))
                case _:
                    raise Unplannable
        self._pages += 1
        return PageNode(self._pages - 1, of_brand, members_of(nodes[0].arguments or ()), fields)

    def _edge(self, nodes: Sequence[FieldNode]) -> list[tuple[str, str, Sequence[Any]]]:
        fields: list[tuple[str, str, Sequence[Any]]] = []
        for key, below in self.collected(_below(nodes), "EncounterEdge"):
            name = below[0].name.value
            fields.append((key, name, self._encounter(below) if name == "node" else ()))
        return fields

    def _argument(self, node: FieldNode, name: str) -> Value:
        values = (value_of(each.value) for each in node.arguments or () if each.name.value == name)
        return next(values, lambda _: None)

    def collected(self, sets: Sequence[SelectionSetNode], *types: str) -> list[tuple[str, list[FieldNode]]]:
        """Return the fields of some selections by response key, merged as in the GraphQL specification (6.3.2).

        `types` are the object's type, and the interfaces and unions that it belongs to.
        """

        def includes(selection: SelectionNode, type_name: str) -> bool:
            if not self._included(selection):
                return False
            if type_name not in types and UNION not in types:
                raise Unplannable
            # Otherwise, the fragment is on another member of the union.
            return type_name in types

        groups = collect_fields([(types[0], each) for each in sets], self._fragments, includes)
        return [(key, [node for _, node in group]) for key, group in groups.items()]

    def _included(self, selection: SelectionNode) -> bool:
        for directive in selection.directives or ():
            if directive.name.value not in {"skip", "include"}:
                raise Unplannable
            applies = value_of((directive.arguments or ())[0].value)(self._variables)
            if applies is (directive.name.value == "skip"):
                return False
        return True


def _below(nodes: Sequence[FieldNode]) -> list[SelectionSetNode]:
    return [each.selection_set for each in nodes if each.selection_set]


def conditions_of(definitions: Sequence[VariableDefinitionNode]) -> list[str]:
    """Return the variables that `@skip` and `@include` can use: those of the type `Boolean`."""
    names = []
    for each in definitions:
        type_ = each.type.type if isinstance(each.type, NonNullTypeNode) else each.type
        if isinstance(type_, NamedTypeNode) and type_.name.value == "Boolean":
            names.append(each.variable.name.value)
    return names
