"""The checks of a security scanner for GraphQL servers, one by one.

Source: dolevf/graphql-cop 1.15, by the descriptions of its checks: what each sends, and which answer is a finding.
Titles and severities are the scanner's own, so that its report can be compared.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.errors import InvalidToken
from tests.doors import Service

Attack = Callable[["Scanner"], Awaitable[bool]]


class Scanner:
    """Sends the requests of the scanner, with or without a token."""

    def __init__(self, service: Service, token: str | None) -> None:
        self.service = service
        self.token = token

    async def ask(self, query: str) -> dict[str, Any]:
        answer = await self.post(json={"query": query, "operationName": "cop"})
        body: dict[str, Any] = answer.json()
        return body

    async def post(self, **sent: Any) -> httpx2.Response:
        return await self.service.rest("POST", "/graphql", token=self.token, **sent)

    async def get(self, query: str | None = None, **headers: str) -> httpx2.Response:
        parameters = {"query": query} if query else None
        return await self.service.rest("GET", "/graphql", token=self.token, params=parameters, headers=headers)


def data(body: Any) -> Mapping[str, Any]:
    return (isinstance(body, dict) and body.get("data")) or {}


async def alias_overloading(scanner: Scanner) -> bool:
    aliases = " \n".join(f"alias{number}:__typename" for number in range(101))
    return "alias100" in data(await scanner.ask(f"query cop {{ {aliases} }}"))


async def batching(scanner: Scanner) -> bool:
    answers = (await scanner.post(json=[{"query": "query cop { __typename }"}] * 10)).json()
    return isinstance(answers, list) and len(answers) >= 10


async def circular_introspection(scanner: Scanner) -> bool:
    within = "type { fields { " * 4
    query = f"query cop {{ __schema {{ types {{ fields {{ {within} type {{ name }} {'} }' * 4} }} }} }} }}"
    return "__schema" in data(await scanner.ask(query))


async def directive_overloading(scanner: Scanner) -> bool:
    return len((await scanner.ask(f"query cop {{ __typename {'@aa' * 10} }}")).get("errors", ())) == 10


async def field_duplication(scanner: Scanner) -> bool:
    return "__typename" in data(await scanner.ask(f"query cop {{ {'__typename ' * 500} }}"))


async def introspection(scanner: Scanner) -> bool:
    return "__schema" in data(await scanner.ask("query cop { __schema { types { name fields { name } } } }"))


async def mutation_by_get(scanner: Scanner) -> bool:
    return "__typename" in data((await scanner.get("mutation cop {__typename}")).json())


async def query_by_get(scanner: Scanner) -> bool:
    return "__typename" in data((await scanner.get("query cop {__typename}")).json())


async def url_encoded_post(scanner: Scanner) -> bool:
    return "__typename" in data((await scanner.post(data={"query": "query cop { __typename }"})).json())


async def field_suggestions(scanner: Scanner) -> bool:
    return "Did you mean" in json.dumps(await scanner.ask("query cop { __schema { directive } }"))


async def explorer(scanner: Scanner) -> bool:
    page = (await scanner.get(accept="text/html")).text
    return any(word in page for word in ("graphiql.min.css", "GraphQL Playground", "GraphiQL", "graphql-playground"))


async def trace_mode(scanner: Scanner) -> bool:
    return "tracing" in json.dumps(await scanner.ask("query cop { __typename }")).lower()


async def unhandled_errors(scanner: Scanner) -> bool:
    return "exception" in json.dumps(await scanner.ask("qwerty cop { abc }")).lower()


ATTACKS: Mapping[Attack, tuple[str, str]] = {
    alias_overloading: ("HIGH", "Alias Overloading"),
    batching: ("HIGH", "Array-based Query Batching"),
    circular_introspection: ("HIGH", "Introspection-based Circular Query"),
    directive_overloading: ("HIGH", "Directive Overloading"),
    field_duplication: ("HIGH", "Field Duplication"),
    introspection: ("HIGH", "Introspection"),
    mutation_by_get: ("MEDIUM", "Mutation is allowed over GET (possible CSRF)"),
    query_by_get: ("MEDIUM", "GET Method Query Support"),
    url_encoded_post: ("MEDIUM", "POST based url-encoded query (possible CSRF)"),
    field_suggestions: ("LOW", "Field Suggestions"),
    explorer: ("LOW", "GraphQL IDE"),
    trace_mode: ("INFO", "Trace Mode"),
    unhandled_errors: ("INFO", "Unhandled Errors Detection"),
}


async def findings(service: Service, token: str | None) -> set[tuple[str, str]]:
    scanner = Scanner(service, token)
    return {title for attack, title in ATTACKS.items() if await attack(scanner)}


async def verify(token: str) -> Caller:
    if token not in {"client", "first"}:
        raise InvalidToken
    return Caller(token, frozenset({"manage:encounters"}), brand_id="loop")


def production(database_url: str, **chosen: Any) -> Settings:
    """Settings of production: tokens are verified, and all other settings have their defaults."""
    return Settings(
        database_url=database_url,
        introspection_url="https://provider.example/introspect",
        introspection_client_id="gateway",
        introspection_client_secret="secret",
        **chosen,
    )


@pytest.fixture(scope="module")
async def in_production(database_url: str) -> AsyncIterator[Service]:
    async with Service.running(production(database_url), verify) as running:
        # The first document of a process takes longer to validate, which counts for its client.
        assert "errors" not in await running.graphql("{ __typename }", token="first")
        yield running


GET = ("MEDIUM", "GET Method Query Support")
"""Required by the contract. It allows no forgery: browsers add no bearer token to a request by themselves."""


async def test_in_production_an_unauthenticated_scan_finds_nothing(in_production: Service) -> None:
    assert await findings(in_production, token=None) == set()


async def test_in_production_an_authenticated_scan_finds_only_queries_by_get(
    in_production: Service,
) -> None:
    assert await findings(in_production, token="client") == {GET}


async def test_a_query_by_get_needs_a_bearer_token_and_ignores_cookies(in_production: Service) -> None:
    answer = await in_production.rest(
        "GET", "/graphql", token=None, params={"query": "{__typename}"}, headers={"cookie": "token=client; auth=client"}
    )

    assert answer.status_code == 401


@pytest.mark.parametrize("policy", ["safelist", "enforce"])
async def test_with_trusted_documents_a_scan_finds_nothing(database_url: str, tmp_path: Path, policy: str) -> None:
    manifest = tmp_path / "documents.json"
    manifest.write_text(json.dumps({"hello": "query Hello { hello: __typename }"}))

    settings = production(database_url, documents=manifest, documents_policy=policy)
    async with Service.running(settings, verify) as service:
        by_id = await service.rest("POST", "/graphql", token="client", json={"documentId": "hello"})

        assert by_id.json() == {"data": {"hello": "Query"}}
        assert await findings(service, token="client") == set()


async def test_in_development_a_scan_finds_only_what_that_mode_opens(service: Service) -> None:
    found = await findings(service, token="dev")

    assert {title for _, title in found} - {"GraphQL IDE"} == {"Introspection", "Field Suggestions", GET[1]}
