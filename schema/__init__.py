"""The GraphQL door."""

import strawberry
from strawberry.schema.config import StrawberryConfig

from schema.mutations import Mutation
from schema.queries import Query
from schema.scalars import SCALARS


def build_schema() -> strawberry.Schema:
    """Build the schema: the types, and nothing about how they are served."""
    return strawberry.Schema(query=Query, mutation=Mutation, config=StrawberryConfig(scalar_map=SCALARS))
