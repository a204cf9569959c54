"""`GATEWAY_PUBLIC_URL`: what clients receive below a path, whether the proxy removes the path or not."""

import re
from collections.abc import AsyncIterator
from urllib.parse import urljoin, urlsplit

import pytest

from gateway.app import create_app
from gateway.server import startup_banner
from gateway.settings import OWN_PATHS, Settings
from rest.openapi import openapi
from tests.cast import Cast
from tests.doors import Service
from tests.http.test_hosts import TRANSPORTS, answer
from tests.http.test_pages import CHROME, needs_pages
from tests.identity_provider import IdentityProvider
from tests.websocket_client import GatewayServer

PUBLIC_URL = "https://clinic.example/gateway/"
VISIT = {"brand_id": "loop", "encounter_type": "lab"}
LINK = re.compile(r'<([^>]*)>; rel="([a-z-]+)"')


def settings(database_url: str, public_url: str = PUBLIC_URL) -> Settings:
    return Settings(database_url=database_url, public_url=public_url)


@pytest.fixture(scope="module")
async def below(database_url: str) -> AsyncIterator[Service]:
    """A gateway whose public URL is `PUBLIC_URL`."""
    async with Service.running(settings(database_url)) as running:
        yield running


@pytest.fixture(params=["/gateway", ""], ids=["path kept", "path removed by the proxy"])
def prefix(request: pytest.FixtureRequest) -> str:
    path: str = request.param
    return path


# Answers


async def test_location_is_the_public_path_of_the_encounter(below: Service, cast: Cast, prefix: str) -> None:
    path = f"/v1/patients/{await cast.patient()}/encounters"

    recorded = await below.rest("POST", prefix + path, json=VISIT)

    assert recorded.status_code == 201
    assert recorded.headers["location"] == f"/gateway{path}/{recorded.json()['id']}"
    read = await below.rest("GET", recorded.headers["location"])
    assert read.json() == recorded.json()


async def test_every_link_is_a_public_path_that_is_served(below: Service, cast: Cast, prefix: str) -> None:
    refused = await below.rest("POST", f"{prefix}/v1/patients/nobody/encounters", json={"encounter_type": "x-ray"})

    assert refused.status_code == 400
    links = LINK.findall(refused.headers["link"])
    assert [relation for _, relation in links] == ["service-desc", "help"] + ["describedby"] * 3
    for target, _ in links:
        assert target.startswith("/gateway/")
        assert (await below.rest("GET", target, token=None)).status_code == 200
    success = await below.rest("GET", f"{prefix}/v1/patients/{await cast.patient()}/encounters")
    assert LINK.findall(success.headers["link"]) == links[:2]


async def test_the_type_of_a_problem_is_a_public_path(below: Service, prefix: str) -> None:
    refused = await below.rest(
        "GET", f"{prefix}/v1/patients/nobody/encounters", headers={"accept": "application/problem+json"}
    )

    assert refused.json()["type"] == "/gateway/problems/not_found"
    assert "not_found" in (await below.rest("GET", refused.json()["type"], token=None)).text


async def test_a_final_slash_is_refused_with_the_public_path(below: Service, prefix: str) -> None:
    refused = await below.rest("GET", f"{prefix}/v1/patients/demo-patient/encounters/")

    assert refused.json()["message"].endswith("is /gateway/v1/patients/{patient_id}/encounters.")


async def test_openapi_names_the_public_url_as_its_server(below: Service, prefix: str) -> None:
    described = (await below.rest("GET", f"{prefix}/openapi.json", token=None)).json()

    assert [server["url"] for server in described["servers"]] == ["https://clinic.example/gateway"]
    assert described["paths"].keys() == openapi()["paths"].keys()
    assert described["components"]["headers"]["Link"]["example"].startswith("</gateway/openapi.json>")
    assert described["components"]["headers"]["Location"]["example"].startswith("/gateway/v1/")


async def test_a_public_url_without_a_path_changes_only_the_server_of_openapi(database_url: str, cast: Cast) -> None:
    path = f"/v1/patients/{await cast.patient()}/encounters"

    async with Service.running(settings(database_url, "https://records.example")) as root:
        recorded = await root.rest("POST", path, json=VISIT)
        described = (await root.rest("GET", "/openapi.json", token=None)).json()

    assert recorded.headers["location"].startswith(f"{path}/")
    assert recorded.headers["link"].startswith("</openapi.json>")
    assert described == openapi() | {"servers": described["servers"]}
    assert described["servers"][0]["url"] == "https://records.example"


async def test_without_a_public_url_no_answer_has_its_path(below: Service, service: Service, cast: Cast) -> None:
    path = f"/v1/patients/{await cast.patient()}/encounters"
    await below.rest("GET", path)

    recorded = await service.rest("POST", path, json=VISIT)

    assert recorded.headers["location"] == f"{path}/{recorded.json()['id']}"
    assert (await service.rest("GET", "/openapi.json", token=None)).json() == openapi()
    assert (await service.rest("GET", f"/gateway{path}")).status_code == 404


# Requests


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_transport_is_served_below_the_path(database_url: str, cast: Cast, transport: str) -> None:
    target, fields, body = TRANSPORTS[transport]
    request = (target.replace(" /", " /gateway/", 1), fields, body)

    async with GatewayServer.serving(settings(database_url)) as serving:
        status, _ = await answer(serving.port, request, "Host: localhost", patient=await cast.patient())

    assert status in {200, 201, 101}


@pytest.mark.parametrize("path", ["/gateway/gateway/healthz", "/gatewayhealthz", "/other/healthz", "/gateway//healthz"])
async def test_no_other_path_is_served(below: Service, path: str) -> None:
    assert (await below.rest("GET", "/gateway/healthz", token=None)).status_code == 200
    assert (await below.rest("GET", path)).status_code == 404


async def test_the_path_of_a_refused_request_is_not_logged(below: Service, caplog, prefix: str) -> None:
    with caplog.at_level("INFO"):
        await below.rest("GET", f"{prefix}/v1/patients/demo-patient/encounters")

    routes = [record.route for record in caplog.records if hasattr(record, "route")]
    assert routes == ["/v1/patients/{patient_id}/encounters"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_page_of_the_public_origin_is_the_gateways_own(
    provider: IdentityProvider, database_url: str, cast: Cast, transport: str
) -> None:
    provider.tokens["opaque"] = {"client_id": "app", "sub": "nurse-1", "brand": "loop", "scope": "admin:*"}
    verified = provider.settings(introspection=True, database_url=database_url)
    with_url = provider.settings(introspection=True, database_url=database_url, public_url=PUBLIC_URL)
    # A proxy that does not forward `Host`.
    fields = ("Host: 127.0.0.1:8000", "Origin: https://clinic.example")

    statuses = []
    for each in (with_url, verified):
        async with GatewayServer.serving(each) as serving:
            patient_id = await cast.patient()
            status, _ = await answer(serving.port, TRANSPORTS[transport], *fields, patient=patient_id, token="opaque")
            statuses.append(status)

    assert statuses[0] in {200, 201, 101}
    assert statuses[1] == 403


# Pages


async def test_the_public_path_without_its_slash_is_redirected(below: Service) -> None:
    redirected = await below.rest("GET", "/gateway", token=None, headers={"accept": CHROME})

    assert (redirected.status_code, redirected.headers["location"]) == (308, "/gateway/")


@needs_pages
@pytest.mark.parametrize("page", ["/", "/docs", "/graphql", "/board"])
async def test_what_a_page_loads_and_links_lies_below_the_path(below: Service, prefix: str, page: str) -> None:
    received = await below.rest("GET", prefix + page, token=None, headers={"accept": CHROME})

    assert received.status_code == 200
    addresses = {each for each in re.findall(r'(?:src|href)="([^"]*)"', received.text) if not each.startswith("data:")}
    assert addresses >= {"./", "board", "docs", "graphql"}
    for address in addresses:
        path = urlsplit(urljoin(f"{PUBLIC_URL}{page[1:]}", address)).path
        assert path.startswith("/gateway/")
        assert (await below.rest("GET", path, token=None, headers={"accept": CHROME})).status_code == 200


async def test_the_start_page_of_production_shows_the_public_paths(
    database_url: str, provider: IdentityProvider
) -> None:
    closed = provider.settings(introspection=True, database_url=database_url, public_url=PUBLIC_URL)

    async with Service.running(closed) as running:
        page = await running.rest("GET", "/gateway/", token=None, headers={"accept": CHROME})

    assert "<code>/gateway/graphql</code>" in page.text
    assert "<code>/gateway/v1/patients/{patient_id}/encounters</code>" in page.text


def test_the_first_lines_of_serve_name_the_public_url() -> None:
    lines = startup_banner(Settings(public_url="http://localhost/gateway"), 8000).splitlines()

    assert "Public   http://localhost/gateway/" in lines
    assert not any(line.startswith("Public") for line in startup_banner(Settings(), 8000).splitlines())


def test_a_public_path_cannot_hide_a_path_of_the_gateway() -> None:
    routes = create_app(Settings()).routes

    assert {route.path.split("/")[1] for route in routes} - {""} == OWN_PATHS  # type: ignore[attr-defined]
