"""The cost of an operation: the maximum number of objects that its nested pages can return.

A page of 100 nested in a page of 100 returns ten thousand objects. The page sizes are therefore multiplied before
anything is read, from the arguments as they were sent.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    StringValueNode,
    ValueNode,
    VariableNode,
)

from resolvers.encounters.duplicates import MOST
from resolvers.encounters.history import MOST_VERSIONS
from resolvers.encounters.worklists import MOST_GROUPS
from resolvers.json_text import INT_DIGITS
from resolvers.paging import PageLimits
from resolvers.patients import MAX_FOUND
from schema.documents.limits import SATURATED
from schema.selections import fragments_of


class Cost(NamedTuple):
    """The maximum number of objects that an operation can return, and the limit."""

    requested: int
    limit: int


ASKED_FOR_BY: Mapping[str, str] = {"patients": "ids", "_entities": "representations", "recordEncounters": "input"}
"""By field, the list argument with one item for each object that the field returns."""


READ_ONCE = frozenset({"patients", "_entities"})
"""Fields that read, complete and charge an object once, even if it is listed several times."""


MOST_OBJECTS: Mapping[str, int] = {
    "possibleDuplicates": MOST,
    "encounterCounts": MOST_GROUPS,
    "patientsByExternalId": MAX_FOUND,
    "encountersByExternalId": MAX_FOUND,
}
"""By field, the number of objects that it can return."""


OF_A_BRAND = frozenset(
    {"encounters", "encounterCounts", "patientList", "patientsByExternalId", "encountersByExternalId"}
)
"""Root fields that ask every shard of a cluster."""


class Sent:
    """The arguments of an operation's fields, with variables and their defaults substituted."""

    def __init__(self, defaults: Mapping[str, ValueNode | None], variables: Mapping[str, Any]) -> None:
        self._defaults = defaults
        self._variables = variables
        self.looked_at: set[str] = set()
        """The variables that have been looked up."""

    def asked_for(self, field: FieldNode) -> int:
        """Return the number of objects that the field's list argument requests; 1 if the field has none."""
        name = field.name.value
        arguments = {each.name.value: each.value for each in field.arguments or ()}
        listed = self.value(arguments.get(ASKED_FOR_BY.get(name, "")))
        if not isinstance(listed, list):
            return 1
        return _distinct(listed) if name in READ_ONCE else len(listed)

    def value(self, node: ValueNode | None) -> Any:
        """Return the number or list that a node represents, else None. The items of a list may be AST nodes."""
        match node:
            case VariableNode():
                self.looked_at.add(node.name.value)
                return self.variable(node.name.value)
            case IntValueNode():
                # Python refuses to parse more digits, and all numbers this large exceed the limit anyway.
                return int(node.value) if len(node.value) <= INT_DIGITS else SATURATED
            case ListValueNode():
                return list(node.values)
        return None

    def variable(self, name: str) -> Any:
        """Like `value`, for a variable name."""
        return self._variables[name] if name in self._variables else self.value(self._defaults.get(name))


def defaults_of(operation: OperationDefinitionNode) -> Mapping[str, ValueNode | None]:
    """Return the default values of an operation's variables."""
    return {each.variable.name.value: each.default_value for each in operation.variable_definitions or ()}


MOST_KNOWN = 64


class Costing:
    """Computes the cost of a valid operation, and caches it for each combination of sizes in the variables."""

    def __init__(self, document: DocumentNode, operation: OperationDefinitionNode) -> None:
        self._document = document
        self._operation = operation
        self._defaults = defaults_of(operation)
        self._sizing: Sequence[str] | None = None
        """The variables that determine sizes; None before the first call of `cost`."""
        self._known: dict[tuple[Any, ...], int] = {}

    def cost(self, variables: Mapping[str, Any], pages: PageLimits) -> int:
        """Return the maximum number of objects that the operation can return with these variables."""
        sent = Sent(self._defaults, variables)
        if self._sizing is None:
            cost_of(self._document, self._operation, sent, pages)
            self._sizing = sorted(sent.looked_at)
        key = (pages, *(_size(sent.variable(name)) for name in self._sizing))
        if key not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = cost_of(self._document, self._operation, sent, pages)
        return self._known[key]


def _size(value: Any) -> object:
    # A list is represented by its length and its number of distinct objects, in a tuple so that it differs from any
    # number.
    if isinstance(value, list):
        return len(value), _distinct(value)
    return value if isinstance(value, int) else None


def _distinct(items: Sequence[Any]) -> int:
    """Count the distinct objects in a list of ids or representations. An unrecognized item counts as one object."""
    named: set[object] = set()
    for item in items:
        name = _named(item)
        named.add(object() if name is None else name)
    return len(named)


def _named(item: Any) -> object:
    match item:
        case str():
            return item
        case StringValueNode():
            return item.value
        case {"__typename": str(kind), "id": str(entity_id)}:
            return kind, entity_id
        case ObjectValueNode():
            members = {each.name.value: each.value for each in item.fields}
            match members.get("__typename"), members.get("id"):
                case StringValueNode() as kind_node, StringValueNode() as id_node:
                    return kind_node.value, id_node.value
    return None


def cost_of(document: DocumentNode, operation: OperationDefinitionNode, sent: Sent, pages: PageLimits) -> int:
    """Return the maximum number of objects that a valid operation can return, capped at `SATURATED`."""
    fragments = fragments_of(document)
    known: dict[tuple[str, bool], int] = {}

    def of(selections: SelectionSetNode | None, *, at_root: bool = False) -> int:
        cost = 0
        for selection in selections.selections if selections else ():
            match selection:
                case FieldNode():
                    below = of(selection.selection_set)
                    # Scalar fields cost nothing beyond their object.
                    cost += size(selection) * (1 + below) if selection.selection_set else 0
                    cost += pages.shards if at_root and selection.name.value in OF_A_BRAND else 0
                case InlineFragmentNode():
                    cost += of(selection.selection_set, at_root=at_root)
                case FragmentSpreadNode():
                    name = selection.name.value
                    if (name, at_root) not in known:
                        known[name, at_root] = of(fragments[name].selection_set, at_root=at_root)
                    cost += known[name, at_root]
        return cost

    def size(field: FieldNode) -> int:
        arguments = {each.name.value: each.value for each in field.arguments or ()}
        if field.name.value in {"encounters", "patientList"}:
            sizes = [sent.value(arguments[name]) for name in ("first", "last") if name in arguments]
            given = [each for each in sizes if isinstance(each, int)]
            return min(max(given[0], 0), pages.maximum) if given else pages.default
        if field.name.value in MOST_OBJECTS:
            return MOST_OBJECTS[field.name.value]
        if field.name.value == "history":
            first = sent.value(arguments.get("first"))
            return min(max(first, 0), MOST_VERSIONS) if isinstance(first, int) else MOST_VERSIONS
        return sent.asked_for(field)

    return min(of(operation.selection_set, at_root=True), SATURATED)
