"""What an operation counts for: as many writes or reads as it has fields at its root, one of many for each of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
)

from resolvers.encounters.record_many import MAX_ITEMS
from resolvers.rate_limits import Kind
from schema.documents.cost import Sent, defaults_of


class RateUnits(NamedTuple):
    """Units of one kind."""

    kind: Kind
    units: int


ONE_READ = RateUnits(Kind.READS, 1)
"""What everything counts for that does not get as far as an operation."""


class RateCost:
    """What a valid operation counts for."""

    def __init__(self, document: DocumentNode, operation: OperationDefinitionNode) -> None:
        fields = _root_fields(document, operation.selection_set).values()
        self._many = [each for each in fields if each.name.value == "recordEncounters"]
        self._others = RateUnits(
            Kind.WRITES if operation.operation is OperationType.MUTATION else Kind.READS, len(fields) - len(self._many)
        )
        self._defaults = defaults_of(operation)

    def price(self, variables: Mapping[str, Any]) -> RateUnits:
        """Price it."""
        if not self._many:
            return self._others
        sent = Sent(self._defaults, variables)
        # More items are refused, and nobody should wait until they can afford that.
        units = (min(max(sent.asked_for(field), 1), MAX_ITEMS) for field in self._many)
        return self._others._replace(units=self._others.units + sum(units))


def _root_fields(document: DocumentNode, selections: SelectionSetNode) -> dict[str, FieldNode]:
    """Give the fields of the answer's first level: those of one name are run once, whichever fragments repeat them.

    `@skip` and `@include` are not looked at: what might be run counts.
    """
    fragments = {each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)}
    fields: dict[str, FieldNode] = {}
    seen: set[str] = set()
    pending = [selections]
    while pending:
        for selection in pending.pop().selections:
            match selection:
                case FieldNode():
                    fields[(selection.alias or selection.name).value] = selection
                case InlineFragmentNode():
                    pending.append(selection.selection_set)
                # Each fragment once: spreads of spreads would otherwise be counted in their powers of two.
                case FragmentSpreadNode() if selection.name.value not in seen:
                    seen.add(selection.name.value)
                    pending.append(fragments[selection.name.value].selection_set)
    return fields
