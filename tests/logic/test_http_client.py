"""The client of outgoing requests: it stores no cookies, follows no redirects, and never proxies loopback."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response

from gateway.auth.verifier import verifying
from gateway.events.delivery import DeliveryFailed
from gateway.events.webhooks import WebhookReceiver
from gateway.http_client import http_client, refuse_unusable_proxies
from gateway.settings import Settings, SettingsError, Webhook
from resolvers.outbox import Event
from tests.identity_provider import FakeClock, IdentityProvider, claims, jwt, signing_key
from tests.webhook_receiver import Delivery, ReceiverServer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOWHERE = "http://127.0.0.1:9"
"""The port `discard`, on which no process listens: every request through this proxy fails."""
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
EVENT = Event(
    id=uuid4(),
    position=1,
    event_type="patient_graph.encounter.recorded.v1",
    patient_id="p",
    brand_id="loop",
    payload='{"encounter_id": "e"}',
    created_at=datetime.now(UTC),
    published_at=datetime.now(UTC),
    kind="recorded",
    version=1,
    actor_id="client",
    provider_ids=[],
    encounter_types=["lab"],
)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def receiver() -> AsyncIterator[ReceiverServer]:
    async with ReceiverServer.running() as running:
        yield running


def webhook(url: str) -> WebhookReceiver:
    named = Webhook(name="crm", url=url, secrets=(SECRET,))
    return WebhookReceiver(named, source="/test", seconds=5)


def more_cookies(response: Response) -> Response:
    """Set cookies with new names, which together would soon exceed the size of a request."""
    for name in ("a", "b"):
        response.set_cookie(f"{name}{time.monotonic_ns()}", "x" * 2000, max_age=3600)
    return response


# Nothing of a response is stored


async def test_cookies_of_a_webhook_receiver_are_not_sent_back(receiver: ReceiverServer) -> None:
    async def answer(_delivery: Delivery) -> Response:
        return more_cookies(Response(status_code=204))

    receiver.answer = answer
    sink = webhook(receiver.url)
    for _ in range(50):
        await sink.deliver(EVENT)
    await sink.close()

    assert len(receiver.taken) == 50
    assert not any("cookie" in delivery.headers for delivery in receiver.tried)


async def test_cookies_of_the_identity_provider_are_not_sent_back(provider: IdentityProvider, clock: FakeClock) -> None:
    provider.answer = lambda: more_cookies(JSONResponse({"active": True, "client_id": "lab"}))

    async with verifying(provider.settings(introspection=True), clock) as verify:
        for number in range(50):
            assert (await verify(f"token-{number}")).client_id == "lab"

    assert (provider.introspections, provider.cookies) == (50, [])


async def test_cookies_of_the_key_set_are_not_sent_back(provider: IdentityProvider, clock: FakeClock) -> None:
    key = signing_key("ES256", "one")
    provider.answer = lambda: more_cookies(JSONResponse({"keys": [key.jwk]}))

    async with verifying(provider.settings(jwt=True), clock) as verify:
        for number in range(50):
            await verify(jwt(key, claims(clock.now, jti=str(number))))
            clock.advance(600)

    assert (provider.key_fetches, provider.cookies) == (50, [])


@pytest.mark.parametrize(
    "location", ["/other", "http://[", "//", "http://a:99999/", "http://\xff/", "/events", "", "x://y", "http://*.x/"]
)
async def test_redirects_are_not_followed(receiver: ReceiverServer, location: str) -> None:
    async def answer(_delivery: Delivery) -> Response:
        response = Response(status_code=307)
        response.raw_headers.append((b"location", location.encode("latin-1")))
        return response

    receiver.answer = answer
    sink = webhook(receiver.url)
    with pytest.raises(DeliveryFailed):
        await sink.deliver(EVENT)
    await sink.close()

    assert (len(receiver.tried), receiver.misdirected) == (1, 0)


async def test_authentication_challenges_are_not_answered(receiver: ReceiverServer) -> None:
    async def answer(_delivery: Delivery) -> Response:
        return Response(status_code=401, headers={"www-authenticate": 'Digest realm="r", nonce="n", qop="auth"'})

    receiver.answer = answer
    sink = webhook(receiver.url)
    for _ in range(2):
        with pytest.raises(DeliveryFailed):
            await sink.deliver(EVENT)
    await sink.close()

    assert not any("authorization" in delivery.headers for delivery in receiver.tried)


async def test_a_client_with_its_own_options_stores_no_cookies(receiver: ReceiverServer) -> None:
    async def answer(_delivery: Delivery) -> Response:
        return more_cookies(RedirectResponse("/other"))

    receiver.answer = answer
    async with http_client(over_tls=False, timeout=5, headers={"x-ours": "yes"}) as client:
        for _ in range(2):
            assert (await client.post(receiver.url)).status_code == 307

    assert [delivery.headers.get("cookie") for delivery in receiver.tried] == [None, None]
    assert receiver.misdirected == 0


# Proxies


LOOPBACK_URLS = [
    "http://127.0.0.1/",
    "http://127.9.8.7:8000/",
    "https://localhost/",
    "https://LOCALHOST:8443/",
    "https://idp.localhost/",
    "http://[::1]:9000/",
    "http://[::ffff:127.0.0.1]/",
]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("url", LOOPBACK_URLS)
async def test_loopback_is_never_reached_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    monkeypatch.setenv(variable, NOWHERE)

    async with http_client() as client:
        assert client._transport_for_url(httpx2.URL(url)) is client._transport


@pytest.mark.parametrize("url", ["https://idp.example/", "https://mylocalhost/", "https://128.0.0.1/"])
async def test_another_host_is_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ALL_PROXY", NOWHERE)

    async with http_client() as client:
        assert client._transport_for_url(httpx2.URL(url)) is not client._transport


async def test_a_provider_and_a_receiver_on_loopback_need_no_proxy(
    monkeypatch: pytest.MonkeyPatch, provider: IdentityProvider, receiver: ReceiverServer
) -> None:
    for name in VARIABLES[:3]:
        monkeypatch.setenv(name, NOWHERE)
        monkeypatch.setenv(name.upper(), NOWHERE)
    provider.tokens["opaque"] = {"client_id": "lab"}

    async with verifying(provider.settings(introspection=True)) as verify:
        assert (await verify("opaque")).client_id == "lab"
    sink = webhook(receiver.url)
    await sink.deliver(EVENT)
    await sink.close()

    assert len(receiver.taken) == 1


SENDING: dict[str, Any] = {"webhooks": (Webhook(name="crm", url="https://crm.test/", secrets=(SECRET,)),)}


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"])
@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("socks5://me:hunter2@proxy.test:1080", "socksio"),
        ("socks5h://proxy.test:1080", "socksio"),
        ("socks4://proxy.test", "must be"),
        ("ftp://me:hunter2@proxy.test", "must be"),
        ("http://proxy.test:hunter2", "must be"),
        ("http://[::1", "must be"),
        ("http://", "a host"),
        ("http://:3128", "a host"),
        ("http://proxy.test:99999", "a host"),
    ],
)
def test_an_unusable_proxy_is_refused_with_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str, message: str
) -> None:
    monkeypatch.setenv(variable, proxy)

    with pytest.raises(SettingsError, match=f"^{variable}: .*{message}[^\n]*$") as mistake:
        refuse_unusable_proxies(Settings(**SENDING))
    assert "hunter2" not in str(mistake.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"HTTPS_PROXY": "http://me:secret@proxy.test:3128"},
        {"HTTPS_PROXY": "proxy.test:3128"},
        {"ALL_PROXY": "https://proxy.test"},
        {"ALL_PROXY": ""},
        {"ALL_PROXY": "socks5://proxy.test", "all_proxy": "http://proxy.test"},
        {"ALL_PROXY": "socks5://proxy.test", "NO_PROXY": "x.test, *"},
        {"NO_PROXY": "[[,::::,10.0.0.0/99"},
    ],
    ids=str,
)
def test_a_usable_proxy_is_accepted(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for each in variables.items():
        monkeypatch.setenv(*each)

    refuse_unusable_proxies(Settings(**SENDING))
    http_client(over_tls=False)


def test_a_gateway_without_outgoing_requests_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy.test")

    refuse_unusable_proxies(Settings())
