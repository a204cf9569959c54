"""The schema as a subgraph: entities and SDL for a router, with the permissions of its caller.

Composition with other subgraphs is tested in tests/javascript/test_composition.py.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from graphql import GraphQLObjectType, build_ast_schema, parse, print_type

from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.audit_notes import ENCOUNTERS_READ
from schema import build_schema
from schema.federation import DIRECTIVES, subgraph_sdl
from tests.cast import Cast
from tests.conftest import GENEROUS_LIMITS
from tests.doors import Service
from tests.logs import captured_logs

MARKER = "tuberculosis"
PRINTED = (Path(__file__).parent.parent.parent / "schema/federated.graphql").read_text().rstrip()

ENTITIES = """query ($asked: [_Any!]!) { _entities(representations: $asked) {
  __typename
  ... on Encounter { id notes providerId provider { id } }
  ... on Patient { id brandId encounters { totalCount } }
} }"""


async def ask(service: Service, *asked: Any, token: str = "dev", query: str = ENTITIES) -> dict[str, Any]:
    """Request entities as a router does; return the response body."""
    return await service.graphql(query, {"asked": list(asked)}, token=token)


def refusal(body: dict[str, Any]) -> dict[str, Any]:
    """Assert that no data was returned; return the extensions of the error."""
    assert body["data"] is None
    (error,) = body["errors"]
    assert error["path"] == ["_entities"]
    extensions: dict[str, Any] = error["extensions"]
    return extensions


def encounter(encounter_id: str) -> dict[str, str]:
    return {"__typename": "Encounter", "id": encounter_id}


def patient(patient_id: str) -> dict[str, str]:
    return {"__typename": "Patient", "id": patient_id}


async def recorded(service: Service, patient_id: str, **members: str) -> str:
    """Record an encounter; return its id."""
    visit = {"brand_id": "loop", "encounter_type": "lab", **members}
    response = await service.rest("POST", f"/v1/patients/{patient_id}/encounters", json=visit)
    encounter_id: str = response.json()["id"]
    return encounter_id


# The SDL


async def test_the_sdl_for_the_router_is_the_printed_contract(subgraph: Service) -> None:
    body = await subgraph.graphql("{ _service { sdl } }")

    assert body == {"data": {"_service": {"sdl": PRINTED}}}


def test_the_sdl_for_the_router_describes_the_served_schema() -> None:
    """The text of these fields is written by hand, so that one could be missing."""
    declared = build_ast_schema(parse(PRINTED), assume_valid=True)
    schema = build_schema(federated=True)._schema
    query = schema.query_type
    assert query is not None
    for name in ("_entities", "_service"):
        del query.fields[name]

    for name, kind in schema.type_map.items():
        if isinstance(kind, GraphQLObjectType) and name not in {"_Service", "Provider"} and not name.startswith("__"):
            assert print_type(declared.type_map[name]) == print_type(kind)
    assert print_type(declared.type_map["Provider"]).endswith(print_type(schema.type_map["Provider"]))


def test_every_entity_type_has_its_federation_directives() -> None:
    printed = subgraph_sdl(build_schema())

    for name, directives in DIRECTIVES.items():
        assert f"type {name} {directives} {{" in printed


@pytest.mark.parametrize(
    "query",
    [
        "{ _service { sdl } }",
        "{ _entities(representations: []) { __typename } }",
        '{ encounter(id: "x") { provider { id } } }',
    ],
)
async def test_without_the_setting_the_federation_fields_do_not_exist(service: Service, query: str) -> None:
    body = await service.graphql(query)

    assert "data" not in body
    assert "Cannot query field" in body["errors"][0]["message"]


# Entities


async def test_entities_are_in_the_order_of_representations_null_if_unknown(subgraph: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    encounter_id = await recorded(subgraph, patient_id, notes="Slept well.")
    asked = [patient("nobody"), encounter(encounter_id), patient(patient_id), encounter(str(uuid4()))]

    body = await ask(subgraph, *asked, asked[1])

    shown = {"id": encounter_id, "notes": "Slept well.", "providerId": None, "provider": None}
    assert body == {
        "data": {
            "_entities": [
                None,
                {"__typename": "Encounter"} | shown,
                {"__typename": "Patient", "id": patient_id, "brandId": "loop", "encounters": {"totalCount": 1}},
                None,
                {"__typename": "Encounter"} | shown,
            ]
        }
    }


async def test_a_provider_is_a_reference_by_id_for_another_subgraph(subgraph: Service, cast: Cast) -> None:
    provider_id = str(uuid4())
    encounter_id = await recorded(subgraph, await cast.patient(), provider_id=provider_id.upper())

    body = await subgraph.graphql(
        "query ($id: ID!) { encounter(id: $id) { providerId provider { __typename id } } }", {"id": encounter_id}
    )

    assert body["data"]["encounter"] == {
        "providerId": provider_id,
        "provider": {"__typename": "Provider", "id": provider_id},
    }


async def test_representations_may_be_literals_in_the_document(subgraph: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    query = """query ($id: ID!) { _entities(representations: [{__typename: "Patient", id: $id, extra: [1]}]) {
      ... on Patient { id } } }"""

    assert await subgraph.graphql(query, {"id": patient_id}) == {"data": {"_entities": [{"id": patient_id}]}}


async def test_no_representations_return_no_entities(subgraph: Service) -> None:
    assert await ask(subgraph) == {"data": {"_entities": []}}


@pytest.mark.parametrize("impossible", ["", "5", MARKER, "\x00", "\ud800", "x" * 10_000])
async def test_a_representation_with_an_impossible_id_is_null(subgraph: Service, impossible: str) -> None:
    assert await ask(subgraph, encounter(impossible), patient(impossible)) == {"data": {"_entities": [None, None]}}


# Refusals


@pytest.mark.parametrize(
    "malformed",
    [
        {},
        {"id": MARKER},
        {"__typename": "Patient"},
        {"__typename": "Patient", "id": None},
        {"__typename": "Patient", "id": 5},
        {"__typename": "Patient", "id": [MARKER]},
        {"__typename": "Patient", "id": {MARKER: MARKER}},
        {"__typename": MARKER, "id": MARKER},
        {"__typename": "Provider", "id": MARKER},
        {"__typename": "Query", "id": MARKER},
        {"__typename": None, "id": MARKER},
        {"__typename": ["Patient"], "id": MARKER},
        MARKER,
        5,
        1.5,
        True,
        [],
        [patient(MARKER)],
    ],
    ids=str,
)
async def test_an_invalid_representation_is_refused_by_index_and_not_repeated(
    subgraph: Service, malformed: Any
) -> None:
    with captured_logs() as lines:
        body = await ask(subgraph, patient("nobody"), malformed, malformed)

    extensions = refusal(body)
    assert (extensions["code"], extensions["recorded"]) == ("validation_error", "no")
    violations = [(each["pointer"], each["rule"]) for each in extensions["violations"]]
    assert violations == [("/representations/1", "representation"), ("/representations/2", "representation")]
    assert MARKER not in json.dumps(body) + json.dumps(lines)


@pytest.mark.parametrize("malformed", ["null", "[null]", '"x"', "5", "{}", '{"a": 1e400000}'])
async def test_a_malformed_list_of_representations_is_a_validation_error(subgraph: Service, malformed: str) -> None:
    answer = await subgraph.rest(
        "POST",
        "/graphql",
        headers={"content-type": "application/json", "accept": "application/graphql-response+json"},
        content=f'{{"query": {json.dumps(ENTITIES)}, "variables": {{"asked": {malformed}}}}}',
    )

    assert answer.status_code in {200, 400}
    assert {each["extensions"]["code"] for each in answer.json()["errors"]} == {"validation_error"}


async def test_representations_above_the_cost_limit_are_refused_before_any_read(
    subgraph: Service,
) -> None:
    query = """query ($asked: [_Any!]!) { _entities(representations: $asked) {
      ... on Patient { encounters(first: 100) { nodes { id } } } } }"""

    allowed = await ask(subgraph, *[patient(f"x{number}") for number in range(100)], query=query)
    refused = await ask(subgraph, *[patient(f"x{number}") for number in range(300)], query=query)

    assert allowed == {"data": {"_entities": [None] * 100}}
    assert [each["rule"] for each in refused["errors"][0]["extensions"]["violations"]] == ["cost"]


# Authorization


@pytest.fixture(scope="module")
async def with_scope_of_token(database_url: str) -> AsyncIterator[Service]:
    """The subgraph for callers with one scope each, which the token names."""

    async def verify(token: str) -> Caller:
        return Caller("few", frozenset({token}), brand_id="loop")

    async with Service.running(
        Settings(database_url=database_url, federation=True, **GENEROUS_LIMITS), verify
    ) as running:
        yield running


@pytest.mark.parametrize("scope", ["write:encounters", "read:patients"])
async def test_each_entity_type_needs_its_own_read_scope(with_scope_of_token: Service, cast: Cast, scope: str) -> None:
    ours = patient(await cast.patient())
    query = "query ($asked: [_Any!]!) { _entities(representations: $asked) { __typename } }"

    assert await ask(with_scope_of_token, ours, token=scope, query=query) == {
        "data": {"_entities": [{"__typename": "Patient"}]}
    }
    for asked in ([encounter("x")], [ours, encounter(str(uuid4()))], [encounter("x"), MARKER]):
        extensions = refusal(await ask(with_scope_of_token, *asked, token=scope, query=query))
        assert (extensions["code"], extensions["scopes"]) == ("insufficient_scope", ["read:encounters"])


async def test_without_read_scopes_only_the_sdl_is_returned(with_scope_of_token: Service) -> None:
    scope = "read:providers"

    for asked in (encounter("x"), patient("x")):
        assert refusal(await ask(with_scope_of_token, asked, token=scope))["code"] == "insufficient_scope"
    assert "data" in await with_scope_of_token.graphql("{ _service { sdl } }", token=scope)


async def test_a_federation_request_without_a_token_is_401(subgraph: Service) -> None:
    for query in ("{ _service { sdl } }", "{ _entities(representations: []) { __typename } }"):
        answer = await subgraph.rest("POST", "/graphql", token=None, json={"query": query})
        assert answer.status_code == 401


async def test_reading_an_entity_is_audited(subgraph: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    await ask(subgraph, encounter(await recorded(subgraph, patient_id)))

    await subgraph.services.audit_sink.flush()

    read = "SELECT count(*) FROM patient_graph.audit_log WHERE patient_id = $1 AND event_type = $2"
    assert await cast.connection.fetchval(read, patient_id, ENCOUNTERS_READ) == 1
