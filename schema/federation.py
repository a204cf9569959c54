"""Extend the built schema to a subgraph of Apollo Federation 2. Existing fields are not changed.

Source: the Apollo Federation subgraph specification, https://www.apollographql.com/docs/federation/subgraph-spec
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import strawberry
from graphql import (
    GraphQLArgument,
    GraphQLField,
    GraphQLID,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLString,
    GraphQLUnionType,
)

import models
from resolvers.access import Scopes, describe_scopes
from resolvers.errors import InvalidInput, Violation
from resolvers.ids import id_or_none
from schema.field_scopes import ENTITIES
from schema.loaders import EncounterKey, Loaders
from schema.types import OperationContext

PROVIDER = "The provider who saw the patient, an entity of the provider directory."

# Other subgraphs define Relay's PageInfo too. On a type extension, @shareable would apply to the extension only.
DIRECTIVES: Mapping[str, str] = {
    "Encounter": '@key(fields: "id") @key(fields: "id patientId")',
    "Patient": '@key(fields: "id")',
    "PageInfo": "@shareable",
}

EXTENSION = f'''
extend schema @link(url: "https://specs.apollo.dev/federation/v2.3", import: ["@key", "@shareable"])

extend type Encounter {{
  """{PROVIDER}"""
  provider: Provider
}}

"""A provider in the provider directory, which is another subgraph."""
type Provider @key(fields: "id", resolvable: false) {{
  id: ID!
}}'''


def subgraph_sdl(schema: strawberry.Schema) -> str:
    """Return the SDL of a plain schema with its federation directives, as a router composes it."""
    printed = schema.as_str()
    for name, directives in DIRECTIVES.items():
        printed = printed.replace(f"\ntype {name} {{\n", f"\ntype {name} {directives} {{\n")
    return f"{printed}\n{EXTENSION}"


def federate(schema: strawberry.Schema, scopes: Scopes) -> None:
    """Add the fields that a federation router queries: `_service`, `_entities` and `Encounter.provider`."""
    sdl, plain = subgraph_sdl(schema), schema._schema  # noqa: SLF001 - see docs/decisions/0001
    query, encounter = plain.type_map["Query"], plain.type_map["Encounter"]
    assert isinstance(query, GraphQLObjectType)
    assert isinstance(encounter, GraphQLObjectType)
    encounter.fields["provider"] = _provider_field()
    query.fields["_entities"] = _entities_field(plain, scopes)
    query.fields["_service"] = _service_field(sdl)
    schema._schema = GraphQLSchema(**plain.to_kwargs())  # noqa: SLF001


def _provider_field() -> GraphQLField:
    def resolve(encounter: models.Encounter, _info: GraphQLResolveInfo[OperationContext]) -> Mapping[str, str] | None:
        return None if encounter.provider_id is None else {"id": str(encounter.provider_id)}

    provider = GraphQLObjectType("Provider", {"id": GraphQLField(GraphQLNonNull(GraphQLID))})
    return GraphQLField(provider, resolve=resolve, description=PROVIDER)


def _service_field(sdl: str) -> GraphQLField:
    service = GraphQLObjectType("_Service", {"sdl": GraphQLField(GraphQLNonNull(GraphQLString))})
    return GraphQLField(
        GraphQLNonNull(service),
        resolve=lambda *_: {"sdl": sdl},
        description="The SDL of this subgraph, for the router.",
    )


def _entities_field(plain: GraphQLSchema, scopes: Scopes) -> GraphQLField:
    json = plain.type_map["JSON"]
    assert isinstance(json, GraphQLScalarType)
    representation = GraphQLScalarType(
        "_Any",
        parse_value=json.parse_value,
        parse_literal=json.parse_literal,
        description="`__typename` and `id`; of an encounter, also `patientId` if it is known.",
    )
    entity = GraphQLUnionType(
        "_Entity",
        [kind for name in ENTITIES if isinstance(kind := plain.type_map[name], GraphQLObjectType)],
        # The model classes have the names of their GraphQL types.
        resolve_type=lambda row, *_: type(row).__name__,
    )
    rights = "\n\n".join(f"`{name}`: {describe_scopes(scopes[operation])}" for name, operation in ENTITIES.items())
    return GraphQLField(
        GraphQLNonNull(GraphQLList(entity)),
        {"representations": GraphQLArgument(GraphQLNonNull(GraphQLList(GraphQLNonNull(representation))))},
        resolve=_resolve_entities,
        description="The entities that a router requests, in the order of the representations; null for each that does "
        f"not exist or that the caller may not see.\n\n{rights}",
    )


async def _resolve_entities(
    _root: None, info: GraphQLResolveInfo[OperationContext], representations: Sequence[Any]
) -> list[models.Encounter | models.Patient | None]:
    asked_for = [_read(each) for each in representations]
    for name in sorted({each[0] for each in asked_for if each}):
        info.context.context.require(ENTITIES[name])
    malformed = [place for place, each in enumerate(asked_for) if each is None]
    if malformed:
        message = f"must be an object with the `__typename` {' or '.join(ENTITIES)} and a string `id`"
        raise InvalidInput([Violation(f"/representations/{place}", "representation", message) for place in malformed])

    return await asyncio.gather(*(_load(info.context.loaders, *each) for each in asked_for if each))


def _read(representation: Any) -> tuple[str, str, str | None] | None:
    """Return the type, the id and the patient's id of a representation, or None if it is malformed."""
    match representation:
        case {"__typename": str(name), "id": str(entity_id)} if name in ENTITIES:
            patient_id = representation.get("patientId")
            return name, entity_id, patient_id if isinstance(patient_id, str) else None
    return None


def _load(
    loaders: Loaders, name: str, entity_id: str, patient_id: str | None
) -> Awaitable[models.Encounter | models.Patient | None]:
    if name == "Patient":
        return loaders.patients.load(entity_id)
    encounter_id = id_or_none(entity_id)
    if encounter_id is None:
        return _nothing()
    return loaders.encounters.load(EncounterKey(encounter_id, patient_id))


async def _nothing() -> None:
    """Return None without a database query, for an id that is not a valid encounter id."""
