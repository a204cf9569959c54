"""The rate units of an operation: one read or write for each root field, and one for each item of a batch mutation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from graphql import DocumentNode, OperationDefinitionNode, OperationType

from resolvers.encounters.record_many import MAX_ITEMS
from resolvers.rate_limits import Kind
from schema.documents.cost import Sent, defaults_of
from schema.selections import collect_fields, fragments_of


class RateUnits(NamedTuple):
    """A number of rate-limit units of one kind."""

    kind: Kind
    units: int


ONE_READ = RateUnits(Kind.READS, 1)
"""The charge for requests that fail before an operation is known."""


class RateCost:
    """Computes the rate units of a valid operation."""

    def __init__(self, document: DocumentNode, operation: OperationDefinitionNode) -> None:
        # `@skip` and `@include` are ignored: every field that might be run counts. Repeated fields are run once.
        groups = collect_fields([("", operation.selection_set)], fragments_of(document)).values()
        fields = [node for [(_, node), *_] in groups]
        self._many = [each for each in fields if each.name.value == "recordEncounters"]
        self._others = RateUnits(
            Kind.WRITES if operation.operation is OperationType.MUTATION else Kind.READS, len(fields) - len(self._many)
        )
        self._defaults = defaults_of(operation)

    def price(self, variables: Mapping[str, Any]) -> RateUnits:
        """Return the rate units of the operation with these variables."""
        if not self._many:
            return self._others
        sent = Sent(self._defaults, variables)
        # A batch of more than `MAX_ITEMS` is refused, so it must not be delayed by the rate limit for its full size.
        units = (min(max(sent.asked_for(field), 1), MAX_ITEMS) for field in self._many)
        return self._others._replace(units=self._others.units + sum(units))
