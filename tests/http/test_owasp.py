"""The OWASP API Security Top 10 of 2023: one test for each risk, with the attack that fits this gateway."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import Settings, SettingsError
from resolvers.access import Caller
from resolvers.errors import InvalidToken
from rest.openapi import openapi
from tests.cast import Cast
from tests.doors import ENCOUNTER, Service
from tests.identity_provider import IdentityProvider

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "In confidence."}
JSON = {"content-type": "application/json"}
CLIENTS = re.compile(
    r"^\s*(import|from) (httpx2|httpx|requests|aiohttp|urllib\.request|urllib3|socket)\b", re.MULTILINE
)
CALLERS = {
    "reader": Caller("reader", frozenset({"read:encounters"}), brand_id="loop"),
    "writer": Caller("writer", frozenset({"write:encounters"}), brand_id="loop"),
    "stranger": Caller("stranger", frozenset({"manage:encounters"}), brand_id="loopbio"),
}


@pytest.fixture
async def service(database_url: str) -> AsyncIterator[Service]:
    """A service with callers that have different scopes."""

    async def verify(token: str) -> Caller:
        if token not in CALLERS:
            raise InvalidToken
        return CALLERS[token]

    async with Service.running(Settings(database_url=database_url), verify=verify) as running:
        yield running


@pytest.fixture
async def path(cast: Cast) -> str:
    return f"/v1/patients/{await cast.patient()}/encounters"


async def test_api1_broken_object_level_authorization(service: Service, path: str) -> None:
    """An encounter of another tenant is 404 by its id."""
    recorded = (await service.rest("POST", path, token="writer", json=VISIT)).json()

    over_rest = await service.rest("GET", path, token="stranger")
    alone = await service.rest("GET", f"{path}/{recorded['id']}", token="stranger")
    over_graphql = await service.graphql(
        f"query ($id: ID!) {{ encounter(id: $id) {ENCOUNTER} }}", {"id": recorded["id"]}, token="stranger"
    )

    assert (over_rest.status_code, alone.status_code) == (404, 404)
    assert over_graphql == {"data": {"encounter": None}}


@pytest.mark.parametrize("token", ["", "none", "reader\x7f", "Basic cmVhZGVy", "x" * 10_000])
async def test_api2_broken_authentication(service: Service, path: str, token: str) -> None:
    """A missing, invented or malformed token is refused with the challenge of RFC 6750."""
    response = await service.rest("GET", path, token=None, headers={"authorization": f"Bearer {token}"})

    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_api3_broken_object_property_level_authorization(service: Service, path: str, cast: Cast) -> None:
    """Members that a caller may not set are ignored: every new encounter has the same state."""
    forbidden_members = {
        "id": "mine",
        "status": "completed",
        "started_at": "2020-01-01T00:00:00Z",
        "created_at": "x",
        "version": 9,
    }

    response = await service.rest("POST", path, token="writer", json=VISIT | forbidden_members)

    (row,) = await cast.rows(path.split("/")[3])
    assert response.json()["id"] == str(row["id"]) != "mine"
    assert (row["status"], row["started_at"], row["version"]) == ("scheduled", None, 1)


async def test_api4_unrestricted_resource_consumption(service: Service, path: str) -> None:
    """Pages, bodies and lists of ids are bounded."""
    too_many = await service.rest("GET", f"{path}?limit=101", token="reader")
    too_large = await service.rest("POST", path, token="writer", content=b'"' + b"x" * 300_000 + b'"', headers=JSON)
    ids = ", ".join(f'"{number}"' for number in range(101))
    too_many_ids = await service.graphql(f"{{ patients(ids: [{ids}]) {{ id }} }}", token="reader")

    assert (too_many.status_code, too_large.status_code) == (400, 413)
    assert too_many_ids["errors"][0]["extensions"]["code"] == "validation_error"


async def test_api5_broken_function_level_authorization(service: Service, path: str, cast: Cast) -> None:
    """Permission to read does not include permission to record, and vice versa, through both doors."""
    patient_id = path.split("/")[3]
    query = """mutation ($id: ID!) {
      recordEncounter(patientId: $id, input: {brandId: "loop", encounterType: LAB}) { __typename } }"""

    recorded = await service.rest("POST", path, token="reader", json=VISIT)
    over_graphql = await service.graphql(query, {"id": patient_id}, token="reader")
    listed = await service.rest("GET", path, token="writer")

    assert (recorded.status_code, listed.status_code) == (403, 403)
    assert over_graphql["errors"][0]["extensions"]["code"] == "insufficient_scope"
    assert await cast.rows(patient_id) == []


async def test_api6_unrestricted_access_to_sensitive_business_flows(service: Service, path: str, cast: Cast) -> None:
    """A hundred concurrent recordings under one key are one encounter, and requests over the rate limit are refused."""
    answers = await asyncio.gather(
        *(service.rest("POST", path, token="writer", json=VISIT, headers={"idempotency-key": path}) for _ in range(250))
    )

    assert len(await cast.rows(path.split("/")[3])) == 1
    assert 429 in {answer.status_code for answer in answers}


def test_api7_server_side_request_forgery() -> None:
    """No URL that a caller sends is fetched: no code behind a door opens a connection."""
    root = Path(__file__).parents[2]
    behind_the_doors = [*root.glob("resolvers/**/*.py"), *root.glob("schema/**/*.py"), *root.glob("rest/**/*.py")]

    asking = [source.name for source in behind_the_doors if CLIENTS.search(source.read_text())]

    assert behind_the_doors
    assert asking == []


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"scopes": {"record_encounter": ()}}, {"pasword": "x"}])
def test_api8_security_misconfiguration(settings: dict[str, Any]) -> None:
    """Settings that would expose the gateway by mistake prevent its start."""
    with pytest.raises((SettingsError, ValueError)):
        Settings(**settings).refuse_open_development()


async def test_api9_improper_inventory_management(service: Service) -> None:
    """The served operations are the described ones."""
    described = set(openapi()["paths"]) | {"/graphql", "/openapi.json"}
    pages = {"/", "/board", "/docs", "/assets"}

    assert {route.path for route in service.app.routes} - pages == described


@pytest.mark.parametrize("trouble", ["down", "failing", "raving"])
async def test_api10_unsafe_consumption_of_apis(
    database_url: str, provider: IdentityProvider, path: str, trouble: str
) -> None:
    """A failing identity provider authenticates no request."""
    settings = provider.settings(introspection=True, database_url=database_url)
    async with Service.running(settings) as service, provider.with_fault(trouble):
        response = await service.rest("GET", path, token="anything")

    assert (response.status_code, response.json()["error"]) == (503, "temporarily_unavailable")
