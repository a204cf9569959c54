"""What an operation counts for: as many writes or reads as it has fields at its root, one of many for each of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationType,
    SelectionSetNode,
    get_operation_ast,
)

from resolvers.batches import MAX_ITEMS
from resolvers.rates import Kind
from schema.cost import Sent
from schema.documents import Document


class Price(NamedTuple):
    """Units of one kind."""

    kind: Kind
    units: int


ONE_READ = Price(Kind.READS, 1)
"""What everything counts for that does not get as far as an operation."""


def price_of(document: Document, operation_name: str | None, variables: Mapping[str, Any]) -> Price:
    """Price the operation that is asked for. A document that cannot be run is one read."""
    if document.ast is None or document.errors:
        return ONE_READ
    operation = get_operation_ast(document.ast, operation_name)
    if operation is None:
        return ONE_READ
    kind = Kind.WRITES if operation.operation is OperationType.MUTATION else Kind.READS
    fields = _root_fields(document.ast, operation.selection_set)
    sent = Sent(operation, variables)
    return Price(kind, sum(_units(field, sent) for field in fields.values()))


def _units(field: FieldNode, sent: Sent) -> int:
    if field.name.value != "recordEncounters":
        return 1
    # More are refused, and nobody should wait until they can afford that.
    return min(max(sent.asked_for(field), 1), MAX_ITEMS)


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
