"""The outermost middleware: limits of the head, cross-site requests, and headers for browsers."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from httpx2 import Response

from gateway.middleware.request_context import SECURITY_HEADERS
from gateway.settings import Settings, SettingsError
from tests.cast import Cast
from tests.doors import Service

ROOT = Path(__file__).parents[2]
VISIT = {"brand_id": "loop", "encounter_type": "lab"}
APP = "https://app.example"


@pytest.fixture(scope="module")
def port(database_url: str) -> Iterator[int]:
    """Run `gateway serve` with a head timeout of one second; yield its port."""
    settings = {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATABASE_UNSAFE": "true",
        "GATEWAY_PORT": "0",
        "GATEWAY_HEAD_SECONDS": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve"],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline().split("/v1/")[0].rsplit(":", 1)[1])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def answer(port: int, *sent: bytes) -> bytes:
    """Send bytes and return everything received until the gateway closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        try:
            for part in sent:
                client.sendall(part)
            while part := client.recv(65_536):
                received += part
        except ConnectionError:
            pass
    return received


@pytest.mark.parametrize("hosts", [b"", b"Host: one\r\nHost: two\r\n"])
def test_a_missing_or_repeated_host_is_400(port: int, hosts: bytes) -> None:
    received = answer(port, b"GET /healthz HTTP/1.1\r\n" + hosts + b"\r\n")

    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'"error":"bad_request"' in received
    # HTTP/1.0 needs no Host.
    assert answer(port, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_an_error_is_not_sent_as_the_answer_to_the_previous_request(port: int) -> None:
    received = answer(port, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n")

    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in received


@pytest.mark.parametrize(
    "half", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b"G", b"GET /healthz HTTP/1.1\r\nX: "]
)
def test_an_incomplete_head_is_408_after_the_configured_seconds(port: int, half: bytes) -> None:
    received = answer(port, half)

    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"error":"request_timeout"' in received
    assert b'"recorded":"no"' in received


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: x\r\n" * 101 + b"\r\n",
        b"GET /healthz?" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Endless: " + b"x" * 8_000_000,
    ],
    ids=["a long field", "many fields", "a long address", "an endless field"],
)
def test_a_too_large_head_is_431(port: int, head: bytes) -> None:
    received = answer(port, *(head[start : start + 16_384] for start in range(0, len(head), 16_384)))

    # A client that goes on sending may lose the answer to a TCP reset; then it reads the end of the stream.
    assert received == b"" or received.startswith(b"HTTP/1.1 431 ")


def test_invalid_http_is_refused_in_the_shape_of_other_errors(port: int) -> None:
    received = answer(port, b"\x16\x03\x01 patient\r\n\r\n")

    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'"error":"bad_request"' in received
    (request_id,) = re.findall(rb'"request_id":"([0-9a-f-]{36})"', received)
    assert b"x-request-id: " + request_id in received
    assert b"patient" not in received


def test_each_request_of_a_connection_has_its_own_timeout(port: int) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    assert answer(port, request, request, last).count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/graphql", "/v1/patients/nobody/encounters"])
async def test_every_answer_carries_the_headers_for_browsers(service: Service, path: str) -> None:
    response = await service.rest("GET", path, token=None)

    assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


@pytest.fixture
async def with_pages(database_url: str) -> AsyncIterator[Service]:
    """A service whose client `dev` has a page at APP."""
    async with Service.running(Settings(database_url=database_url, origins={"dev": (APP,)})) as service:
        yield service


async def test_an_unknown_origin_is_refused(service: Service, cast: Cast) -> None:
    path = f"/v1/patients/{await cast.patient()}/encounters"

    asked = await service.client.options(path, headers={"origin": APP, "access-control-request-method": "POST"})
    sent = await service.rest("POST", path, json=VISIT, headers={"origin": APP})

    assert "access-control-allow-origin" not in asked.headers
    assert (sent.status_code, sent.json()["error"]) == (403, "forbidden")


async def test_an_origin_may_call_only_for_its_client(with_pages: Service, cast: Cast) -> None:
    path = f"/v1/patients/{await cast.patient()}/encounters"
    theirs = f"/v1/patients/{await cast.patient('loopbio')}/encounters"

    sent = await with_pages.rest("POST", path, json=VISIT, headers={"origin": APP})
    for_another = await with_pages.rest(
        "POST", theirs, token="dev-loopbio", json=VISIT | {"brand_id": "loopbio"}, headers={"origin": APP}
    )

    assert sent.status_code == 201
    assert sent.headers["access-control-allow-origin"] == APP
    assert for_another.status_code == 403


SENT_BY_PAGES = [
    "authorization, content-type, idempotency-key",
    "accept,authorization,last-event-id",
    "if-none-match",
    "prefer",
    "x-brand-id,x-request-id",
    "traceparent",
    "traceparent,tracestate",
    "baggage,traceparent",
    "apollographql-client-name,apollographql-client-version",
    "authorization,content-type,x-apollo-operation-name",
    "Authorization, TraceParent",
]


async def preflight(service: Service, path: str, headers: str, *, method: str = "POST", origin: str = APP) -> Response:
    return await service.client.options(
        path,
        headers={
            "origin": origin,
            "access-control-request-method": method,
            "access-control-request-headers": headers,
        },
    )


@pytest.mark.parametrize(
    ("path", "method"), [("/graphql", "POST"), ("/graphql", "GET"), ("/v1/patients/p/encounters", "POST")]
)
@pytest.mark.parametrize("headers", SENT_BY_PAGES)
async def test_a_preflight_answers_the_allowed_headers(
    with_pages: Service, path: str, method: str, headers: str
) -> None:
    response = await preflight(with_pages, path, headers, method=method)

    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == APP
    allowed = {name.strip().lower() for name in response.headers["access-control-allow-headers"].split(",")}
    assert {name.strip().lower() for name in headers.split(",")} <= allowed
    assert "*" not in allowed
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize("headers", ["x-tenant", "traceparent,x-tenant", "cookie", "*"])
async def test_other_headers_are_refused_in_a_preflight(with_pages: Service, headers: str) -> None:
    response = await preflight(with_pages, "/graphql", headers)

    assert response.status_code == 400
    assert "x-tenant" not in response.headers["access-control-allow-headers"]


async def test_a_preflight_of_an_unknown_origin_allows_no_header(with_pages: Service) -> None:
    response = await preflight(with_pages, "/graphql", "traceparent", origin="https://evil.example")

    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers


async def test_a_setting_adds_allowed_headers(database_url: str) -> None:
    settings = Settings(database_url=database_url, origins={"dev": (APP,)}, cors_headers=("X-Tenant", "sentry-trace"))
    async with Service.running(settings) as service:
        response = await preflight(service, "/graphql", "traceparent,x-tenant,sentry-trace")

    assert response.status_code == 200


@pytest.mark.parametrize(
    "names", ['["*"]', '["X Tenant"]', '["X-Tenant,X-Other"]', '[""]', '["X:"]', '"x"', "x", "[1]"]
)
def test_an_invalid_header_name_in_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv("GATEWAY_CORS_HEADERS", names)

    with pytest.raises(SettingsError, match=r"^GATEWAY_CORS_HEADERS: "):
        Settings.from_environment()


async def test_a_page_may_read_the_response_headers(with_pages: Service, cast: Cast) -> None:
    path = f"/v1/patients/{await cast.patient()}/encounters"

    sent = await with_pages.rest("POST", path, json=VISIT, headers={"origin": APP, "idempotency-key": "one"})

    exposed = {name.strip().lower() for name in sent.headers["access-control-expose-headers"].split(",")}
    every_page = {
        "cache-control",
        "content-length",
        "content-type",
    }  # Source: Fetch, "CORS-safelisted response-header name".
    for_browsers = {*SECURITY_HEADERS, "vary", "access-control-allow-origin", "access-control-expose-headers"}
    assert sent.status_code == 201
    assert set(sent.headers) - every_page - for_browsers <= exposed
    assert {"x-ignored", "retry-after", "allow", "etag", "www-authenticate"} <= exposed


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
@pytest.mark.parametrize("path", ["/graphql", "/v1/patients/demo-patient/encounters"])
async def test_a_request_that_a_cross_site_form_can_send_is_refused(
    service: Service, path: str, media_type: str
) -> None:
    # A browser adds no bearer token by itself, so such a request has none; with one it is refused too.
    without, with_token = [
        await service.rest("POST", path, token=token, content=b"{}", headers={"content-type": media_type})
        for token in (None, "dev")
    ]

    assert (without.status_code, with_token.status_code) == (401, 415)
