"""The GraphQL API."""

import strawberry
from strawberry.schema.config import StrawberryConfig

from resolvers.access import DEFAULT_SCOPES, Scopes
from schema.federation import federate
from schema.field_scopes import add_scopes
from schema.mutations import Mutation
from schema.queries import Query
from schema.scalars import SCALARS
from schema.subscriptions import Subscription


class _Schema(strawberry.Schema):
    def _warn_for_federation_directives(self) -> None:
        # The schema uses no federation directives. Strawberry's check would import its federation modules at startup.
        pass


def build_schema(scopes: Scopes = DEFAULT_SCOPES, *, federated: bool = False) -> strawberry.Schema:
    """Build the schema, and add the scopes of each field to its description.

    `federated` adds the fields that a federation router requires of a subgraph.
    Raises `ValueError` if a root field has no permission.
    """
    schema = _Schema(
        query=Query, mutation=Mutation, subscription=Subscription, config=StrawberryConfig(scalar_map=SCALARS)
    )
    add_scopes(schema._schema, scopes)  # noqa: SLF001 - see docs/decisions/0001
    if federated:
        federate(schema, scopes)
    return schema
