"""What an operation may cost at most: how many objects its pages could give, one page inside another.

A page of 100 in each of a page of 100 is ten thousand objects from a few words. So the sizes are multiplied before
anything is read, from the arguments as they were sent.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValueNode,
    VariableNode,
)

from resolvers.duplicates import MOST
from resolvers.json_text import INT_DIGITS
from resolvers.paging import PageLimits
from schema.limits import COUNTLESS


class Cost(NamedTuple):
    """Objects that an operation could give, and the most that it may."""

    requested: int
    limit: int


ASKED_FOR_BY: Mapping[str, str] = {"patients": "ids", "_entities": "representations", "recordEncounters": "input"}
"""The argument that lists what a field gives, one for one."""


class Sent:
    """The arguments of an operation's fields, as they were sent."""

    def __init__(self, operation: OperationDefinitionNode, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self._defaults = {each.variable.name.value: each.default_value for each in operation.variable_definitions or ()}

    def asked_for(self, field: FieldNode) -> int:
        """Say how many objects a field lists that it is to give; 1 where it lists none."""
        arguments = {each.name.value: each.value for each in field.arguments or ()}
        listed = self.value(arguments.get(ASKED_FOR_BY.get(field.name.value, "")))
        return len(listed) if isinstance(listed, list) else 1

    def value(self, node: ValueNode | None) -> Any:
        """Give what stands for a number or a list, or None; of a list only the length can be relied on."""
        match node:
            case VariableNode():
                name = node.name.value
                return self._variables[name] if name in self._variables else self.value(self._defaults.get(name))
            case IntValueNode():
                # So many objects that no number of digits makes a difference; and Python reads only so many.
                return int(node.value) if len(node.value) <= INT_DIGITS else COUNTLESS
            case ListValueNode():
                return list(node.values)
        return None


def cost_of(
    document: DocumentNode, operation: OperationDefinitionNode, variables: Mapping[str, Any], pages: PageLimits
) -> int:
    """Count the objects that a valid operation could give at most. Capped, so that counting itself costs little."""
    fragments = {each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)}
    sent = Sent(operation, variables)
    known: dict[str, int] = {}

    def of(selections: SelectionSetNode | None) -> int:
        cost = 0
        for selection in selections.selections if selections else ():
            match selection:
                case FieldNode():
                    below = of(selection.selection_set)
                    # A scalar comes with its object.
                    cost += size(selection) * (1 + below) if selection.selection_set else 0
                case InlineFragmentNode():
                    cost += of(selection.selection_set)
                case FragmentSpreadNode():
                    name = selection.name.value
                    if name not in known:
                        known[name] = of(fragments[name].selection_set)
                    cost += known[name]
        return cost

    def size(field: FieldNode) -> int:
        arguments = {each.name.value: each.value for each in field.arguments or ()}
        if field.name.value == "encounters":
            sizes = [sent.value(arguments[name]) for name in ("first", "last") if name in arguments]
            given = [each for each in sizes if isinstance(each, int)]
            return min(max(given[0], 0), pages.maximum) if given else pages.default
        if field.name.value == "possibleDuplicates":
            return MOST
        return sent.asked_for(field)

    return min(of(operation.selection_set), COUNTLESS)
