"""Schema visibility: one policy for introspection, suggestions and the explorer."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest
from graphql import get_introspection_query

from gateway.settings import Settings
from resolvers.access import Caller
from tests.cast import Cast
from tests.doors import Service
from tests.websocket_client import GatewayServer

RESPONSE = "application/graphql-response+json"
INTROSPECTION = get_introspection_query()
READER = frozenset({"read:encounters"})

RECORD = 'mutation {{ recordEncounter(patientId: "x", input: {{brandId: "b", encounterType: LAB}}) {{ {} }} }}'
SUGGESTING = {
    "a field": "{ patien }",
    "a field of a union": RECORD.format("replayed"),
    "an argument": '{ patient(idd: "x") { id } }',
    "a type": "query ($a: Strin) { __typename }",
    "a type in a fragment": "{ ... on Quer { __typename } }",
    "a directive's argument": "{ __typename @include(iff: true) }",
}


async def verify(token: str) -> Caller:
    return Caller(token, READER | ({"read:schema"} if token == "explorer" else set()), brand_id="loop")


def serve_with_policy(database_url: str, **chosen: Any) -> AbstractAsyncContextManager[Service]:
    return Service.running(Settings(database_url=database_url, **chosen), verify)


@pytest.fixture(scope="module")
async def scoped(database_url: str) -> AsyncIterator[Service]:
    async with serve_with_policy(database_url, explorer="scoped") as running:
        yield running


@pytest.fixture(scope="module")
async def closed(database_url: str) -> AsyncIterator[Service]:
    async with serve_with_policy(database_url, explorer="off") as running:
        yield running


async def ask(service: Service, query: str, token: str = "reader", accept: str = RESPONSE) -> httpx2.Response:
    return await service.rest("POST", "/graphql", token=token, json={"query": query}, headers={"accept": accept})


# The settings


def production(**chosen: Any) -> Settings:
    return Settings(
        introspection_url="https://provider.example/introspect",
        introspection_client_id="gateway",
        introspection_client_secret="secret",
        **chosen,
    )


def test_schema_visibility_is_open_in_development_mode_and_off_otherwise() -> None:
    assert (Settings().exploring, Settings().explorer_pages) == ("open", True)
    assert (production().exploring, production().explorer_pages) == ("off", False)


@pytest.mark.parametrize(("policy", "pages"), [("open", True), ("scoped", True), ("off", False)])
def test_the_explorer_page_is_served_unless_the_policy_is_off(policy: Any, pages: bool) -> None:
    assert Settings(explorer=policy).explorer_pages is pages
    assert production(explorer=policy).explorer_pages is pages


# Introspection


@pytest.mark.parametrize("query", [INTROSPECTION, '{ __type(name: "Query") { name } }'], ids=["__schema", "__type"])
@pytest.mark.parametrize(
    "wrapped", ["{}", "{} fragment Unused on Query {{ __typename }}"], ids=["alone", "in an invalid document"]
)
async def test_policy_off_refuses_introspection_for_every_caller(closed: Service, query: str, wrapped: str) -> None:
    answer = await ask(closed, wrapped.format(query), token="explorer")

    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["extensions"]["code"] == "validation_error"
    assert error["extensions"]["violations"][0]["rule"] == "introspection"
    assert (await ask(closed, query, accept="application/json")).status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "{ ...F } fragment F on Query { __schema { queryType { name } } }",
        "{ ... { a: __schema { queryType { name } } } }",
    ],
)
async def test_introspection_in_a_fragment_is_refused(closed: Service, query: str) -> None:
    assert (await ask(closed, query)).json()["errors"][0]["extensions"]["violations"][0]["rule"] == "introspection"


async def test_typename_is_allowed_under_every_policy(closed: Service, scoped: Service, cast: Cast) -> None:
    query = f'{{ __typename patient(id: "{await cast.patient()}") {{ __typename }} }}'

    for service in (closed, scoped):
        assert (await ask(service, query)).json() == {
            "data": {"__typename": "Query", "patient": {"__typename": "Patient"}}
        }


async def test_policy_scoped_allows_introspection_with_the_scope(scoped: Service) -> None:
    assert (await ask(scoped, INTROSPECTION, token="explorer")).json()["data"]["__schema"]["types"]


@pytest.mark.parametrize("accept", [RESPONSE, "application/json"])
async def test_policy_scoped_refuses_others_and_names_the_scope(scoped: Service, accept: str) -> None:
    answer = await ask(scoped, INTROSPECTION, accept=accept)

    assert answer.status_code == 403
    assert 'scope="read:schema"' in answer.headers["www-authenticate"]
    (error,) = answer.json()["errors"]
    assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("insufficient_scope", "no")
    assert error["extensions"]["scopes"] == ["read:schema"]


async def test_a_refused_introspection_counts_as_a_read(database_url: str) -> None:
    async with serve_with_policy(database_url, explorer="scoped", rate_reads_per_minute=2) as service:
        statuses = [(await ask(service, INTROSPECTION)).status_code for _ in range(3)]

    assert statuses == [403, 403, 429]


async def test_the_policy_holds_on_a_websocket(database_url: str) -> None:
    settings = Settings(database_url=database_url, explorer="scoped")
    async with GatewayServer.serving(settings, verify) as sockets:
        async with sockets.authenticated("reader") as websocket:
            assert (await websocket.refusal(INTROSPECTION))["code"] == "insufficient_scope"
            assert await websocket.ask("{ __typename }") == {"data": {"__typename": "Query"}}
        async with sockets.authenticated("explorer") as websocket:
            assert (await websocket.ask(INTROSPECTION))["data"]["__schema"]


# Suggestions


@pytest.mark.parametrize("query", SUGGESTING.values(), ids=SUGGESTING)
async def test_suggestions_are_sent_only_to_callers_that_may_introspect(
    scoped: Service, closed: Service, query: str
) -> None:
    hidden = (await ask(scoped, query)).text
    suggested = (await ask(scoped, query, token="explorer")).text
    hidden_again = (await ask(scoped, query)).text
    with_policy_off = (await ask(closed, query, token="explorer")).text

    assert "Did you mean" in suggested
    assert "Did you mean" not in hidden + hidden_again + with_policy_off
