"""Host names that development mode serves, and cross-site origins, on every transport."""

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest

from gateway.auth.development import DEVELOPMENT_BRANDS
from gateway.settings import Settings
from tests.cast import Cast
from tests.identity_provider import IdentityProvider
from tests.websocket_client import TIMEOUT_SECONDS, GatewayServer

QUERY = json.dumps({"query": "{ __typename }"})
SUBSCRIPTION = quote("subscription { encounterEvents { cursor } }")
VISIT = '{"brand_id": "loop", "encounter_type": "lab"}'
UPGRADE = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol: graphql-transport-ws",
]

Request = tuple[str, list[str], str]
"""Method and target, header lines, body."""

TRANSPORTS: dict[str, Request] = {
    "REST, reading": ("GET /v1/patients/{patient}/encounters", [], ""),
    "REST, recording": ("POST /v1/patients/{patient}/encounters", ["Content-Type: application/json"], VISIT),
    "GraphQL, POST": ("POST /graphql", ["Content-Type: application/json"], QUERY),
    "GraphQL, GET": (f"GET /graphql?query={quote('{ __typename }')}", [], ""),
    "server-sent events": (f"GET /graphql?query={SUBSCRIPTION}", ["Accept: text/event-stream"], ""),
    "WebSocket": ("GET /graphql", UPGRADE, ""),
}
SUCCESS = {200, 201, 101}

transports = pytest.mark.parametrize("transport", TRANSPORTS)


async def answer(
    port: int, request: Request, *fields: str, patient: str = "nobody", token: str = "dev", version: str = "1.1"
) -> tuple[int, str]:
    """Send a request; return the status, and the response with its body if that is short."""
    target, own_fields, body = request
    head = [f"{target.format(patient=patient)} HTTP/{version}", f"Authorization: Bearer {token}", *own_fields, *fields]
    if body:
        head.append(f"Content-Length: {len(body)}")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            writer.write(("\r\n".join(head) + "\r\n\r\n" + body).encode())
            received = await reader.readuntil(b"\r\n\r\n")
            if b"content-length: " in received:
                received += await reader.readexactly(int(received.split(b"content-length: ")[1].split(b"\r\n")[0]))
    finally:
        writer.close()
        await writer.wait_closed()
    return int(received.split()[1]), received.decode()


@pytest.fixture(scope="module")
async def development(database_url: str) -> AsyncIterator[GatewayServer]:
    """A gateway in development mode."""
    async with GatewayServer.serving(Settings(database_url=database_url)) as serving:
        yield serving


@pytest.fixture
async def verified(provider: IdentityProvider, database_url: str) -> AsyncIterator[GatewayServer]:
    """A gateway that verifies tokens; `opaque` is a token of a client whose page is at https://app.example."""
    provider.tokens["opaque"] = {"client_id": "app", "sub": "nurse-1", "brand": "loop", "scope": "admin:*"}
    settings = provider.settings(
        introspection=True, database_url=database_url, origins={"app": ("https://app.example",)}
    )
    async with GatewayServer.serving(settings) as serving:
        yield serving


FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example",
    "localhost.evil.example:{port}",
    "localhost@evil.example",
    "evil.example:80@localhost",
    "evil.localhost",
    "192.0.2.1",
    "[::2]:{port}",
    "0.0.0.0:{port}",
    "localhost, evil.example",
    "",
]


@transports
@pytest.mark.parametrize("host", FOREIGN_HOSTS)
async def test_development_mode_refuses_other_host_names(
    development: GatewayServer, cast: Cast, transport: str, host: str
) -> None:
    patient_id, name = await cast.patient(), host.format(port=development.port)

    status, received = await answer(
        development.port, TRANSPORTS[transport], f"Host: {name}", f"Origin: http://{name}", patient=patient_id
    )

    assert status == 403
    if transport != "WebSocket":
        body = json.loads(received.partition("\r\n\r\n")[2])
        assert (body["error"], body["recorded"]) == ("forbidden", "no")
        assert "localhost" in body["message"]
        assert "evil" not in received
        assert f"x-request-id: {body['request_id']}" in received
    assert await cast.rows(patient_id) == []


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/readyz", "/openapi.json", "/metrics", "/nowhere"])
async def test_a_page_is_refused_under_another_host_name(development: GatewayServer, path: str) -> None:
    assert (await answer(development.port, (f"GET {path}", [], ""), "Host: evil.example"))[0] == 403


async def test_a_preflight_under_another_host_name_is_refused(database_url: str) -> None:
    settings = Settings(database_url=database_url, origins={"dev": ("https://app.example",)})
    fields = ["Origin: https://app.example", "Access-Control-Request-Method: POST"]

    async with GatewayServer.serving(settings) as serving:
        statuses = [
            (await answer(serving.port, ("OPTIONS /graphql", fields, ""), f"Host: {host}"))[0]
            for host in ("evil.example", "localhost")
        ]

    assert statuses == [403, 200]


@transports
@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1", "127.0.0.1:{port}", "[::1]", "[::1]:8000"])
async def test_development_mode_serves_the_names_of_loopback(
    development: GatewayServer, cast: Cast, transport: str, host: str
) -> None:
    name = host.format(port=development.port)

    status, _ = await answer(
        development.port,
        TRANSPORTS[transport],
        f"Host: {name}",
        f"Origin: http://{name}",
        patient=await cast.patient(),
    )

    assert status in SUCCESS


@transports
@pytest.mark.parametrize("host", ["gateway.clinic.example", "localhost"])
async def test_any_host_name_is_served_where_tokens_are_verified(
    verified: GatewayServer, cast: Cast, transport: str, host: str
) -> None:
    status, _ = await answer(
        verified.port, TRANSPORTS[transport], f"Host: {host}", patient=await cast.patient(), token="opaque"
    )

    assert status in SUCCESS


LOOPBACK_PAGES = [
    "http://localhost",
    "http://localhost:3000",
    "http://127.0.0.1:5173",
    "http://[::1]:8080",
]
OTHER_PAGES = [
    "null",
    "file://",
    "x://localhost",
    "https://localhost:3000",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example:3000",
    "http://evil.example/http://localhost:3000",
    "http://localhost:3000@evil.example",
    "http://evil-localhost:3000",
    "http://app.localhost:3000",
    "http://127.0.0.2:3000",
    "http://LOCALHOST:3000",
    "http://localhost:3000, http://localhost:3000",
]


@transports
@pytest.mark.parametrize("token", ["dev", "dev-loopbio"])
@pytest.mark.parametrize("origin", LOOPBACK_PAGES)
async def test_development_mode_serves_the_pages_of_loopback(
    development: GatewayServer, cast: Cast, transport: str, origin: str, token: str
) -> None:
    brand_id = DEVELOPMENT_BRANDS[token]
    target, own_fields, body = TRANSPORTS[transport]
    request = (target, own_fields, body.replace("loop", brand_id))

    status, received = await answer(
        development.port,
        request,
        "Host: localhost:8000",
        f"Origin: {origin}",
        patient=await cast.patient(brand_id),
        token=token,
    )

    assert status in SUCCESS
    assert transport == "WebSocket" or f"access-control-allow-origin: {origin}\r\n" in received


@pytest.mark.parametrize("path", ["/graphql", "/v1/patients/demo-patient/encounters"])
@pytest.mark.parametrize("origin", LOOPBACK_PAGES)
async def test_development_mode_allows_the_preflights_of_loopback(
    development: GatewayServer, path: str, origin: str
) -> None:
    fields = [f"Origin: {origin}", "Access-Control-Request-Method: POST"]
    asked = "Access-Control-Request-Headers: authorization,content-type,idempotency-key"

    status, received = await answer(development.port, (f"OPTIONS {path}", fields, ""), "Host: 127.0.0.1:8000", asked)

    assert status == 200
    assert f"access-control-allow-origin: {origin}\r\n" in received
    assert "vary: Origin" in received


async def test_a_preflight_is_refused_without_origins(provider: IdentityProvider, database_url: str) -> None:
    fields = ["Origin: http://localhost:3000", "Access-Control-Request-Method: POST"]

    async with GatewayServer.serving(provider.settings(introspection=True, database_url=database_url)) as serving:
        status, received = await answer(serving.port, ("OPTIONS /graphql", fields, ""), "Host: gateway.clinic.example")

    assert status == 400
    assert "access-control-allow-origin" not in received
    assert "Disallowed CORS origin. GATEWAY_ORIGINS lists" in received


@pytest.mark.parametrize("origin", OTHER_PAGES)
async def test_a_refused_preflight_names_the_settings(development: GatewayServer, origin: str) -> None:
    fields = [f"Origin: {origin}", "Access-Control-Request-Method: POST"]

    status, received = await answer(development.port, ("OPTIONS /graphql", fields, ""), "Host: localhost")

    assert status == 400
    assert "access-control-allow-origin" not in received
    assert received.endswith(
        "Disallowed CORS origin. GATEWAY_ORIGINS lists the origins of pages, GATEWAY_CORS_HEADERS more request headers."
    )


@transports
@pytest.mark.parametrize("origin", LOOPBACK_PAGES)
async def test_a_page_of_loopback_is_cross_site_where_tokens_are_verified(
    verified: GatewayServer, cast: Cast, transport: str, origin: str
) -> None:
    patient_id = await cast.patient()
    fields = [f"Origin: {origin}", "Access-Control-Request-Method: POST"]

    status, received = await answer(
        verified.port,
        TRANSPORTS[transport],
        "Host: gateway.clinic.example",
        f"Origin: {origin}",
        patient=patient_id,
        token="opaque",
    )
    preflight, _ = await answer(verified.port, ("OPTIONS /graphql", fields, ""), "Host: gateway.clinic.example")

    assert (status, preflight) == (403, 400)
    assert "access-control-allow-origin" not in received
    assert await cast.rows(patient_id) == []


@transports
@pytest.mark.parametrize("origin", OTHER_PAGES)
async def test_a_page_without_an_allowed_origin_is_cross_site(
    development: GatewayServer, cast: Cast, transport: str, origin: str
) -> None:
    patient_id = await cast.patient()

    status, received = await answer(
        development.port, TRANSPORTS[transport], "Host: localhost", f"Origin: {origin}", patient=patient_id
    )

    assert status == 403
    assert transport == "WebSocket" or ('"forbidden"' in received and "GATEWAY_ORIGINS" in received)
    assert "access-control-allow-origin" not in received
    assert await cast.rows(patient_id) == []


# HTTP/1.0 has no upgrade.
@pytest.mark.parametrize("transport", [each for each in TRANSPORTS if each != "WebSocket"])
@pytest.mark.parametrize("origin", OTHER_PAGES)
async def test_a_page_is_cross_site_without_a_host(
    development: GatewayServer, cast: Cast, transport: str, origin: str
) -> None:
    patient_id = await cast.patient()

    status, received = await answer(
        development.port, TRANSPORTS[transport], f"Origin: {origin}", patient=patient_id, version="1.0"
    )

    assert status == 403
    assert '"forbidden"' in received
    assert await cast.rows(patient_id) == []


@transports
@pytest.mark.parametrize("host", ["", "gateway.clinic.example"])
async def test_a_null_origin_is_cross_site_where_tokens_are_verified(
    verified: GatewayServer, cast: Cast, transport: str, host: str
) -> None:
    patient_id = await cast.patient()

    status, _ = await answer(
        verified.port, TRANSPORTS[transport], f"Host: {host}", "Origin: null", patient=patient_id, token="opaque"
    )

    assert status == 403
    assert await cast.rows(patient_id) == []


@transports
async def test_a_configured_null_origin_is_allowed(database_url: str, cast: Cast, transport: str) -> None:
    async with GatewayServer.serving(Settings(database_url=database_url, origins={"dev": ("null",)})) as serving:
        status, _ = await answer(
            serving.port, TRANSPORTS[transport], "Host: localhost", "Origin: null", patient=await cast.patient()
        )

    assert status in SUCCESS
