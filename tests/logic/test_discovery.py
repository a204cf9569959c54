"""Discovery of an issuer's endpoints: where they are read, which are accepted, and an issuer that is unavailable."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response

from gateway.auth.verifier import verifying
from gateway.preflight import ask_provider
from gateway.settings import Settings
from resolvers.access import Verify
from resolvers.errors import InvalidToken, TemporarilyUnavailable
from tests.identity_provider import (
    AUDIENCE,
    CLIENT_ID,
    CLIENT_SECRET,
    TIMEOUT_SECONDS,
    FakeClock,
    IdentityProvider,
    claims,
    endless_response,
    jwt,
    signing_key,
)
from tests.logs import captured_logs

KEY = signing_key("ES256", "one")
MACHINE = {"client_id": "lab", "scope": "write:encounters"}
CREDENTIALS = {"introspection_client_id": CLIENT_ID, "introspection_client_secret": CLIENT_SECRET}


def settings_of(provider: IdentityProvider, **more: Any) -> Settings:
    provider.keys = [KEY.jwk]
    members = {"oidc_issuer": provider.issuer, "jwt_audience": AUDIENCE, "identity_provider_seconds": TIMEOUT_SECONDS}
    return Settings(**members | more)


@asynccontextmanager
async def discovering(provider: IdentityProvider, clock: FakeClock, **more: Any) -> AsyncIterator[Verify]:
    async with verifying(settings_of(provider, **more), clock) as verify:
        yield verify


def token(provider: IdentityProvider, clock: FakeClock, **changes: Any) -> str:
    return jwt(KEY, claims(clock.now, **{"iss": provider.issuer, **changes}))


async def test_the_issuer_alone_finds_the_keys(provider: IdentityProvider, clock: FakeClock) -> None:
    async with discovering(provider, clock) as verify:
        callers = await asyncio.gather(*(verify(token(provider, clock, jti=str(number))) for number in range(50)))

    assert {caller.client_id for caller in callers} == {"app"}
    assert (provider.discoveries, provider.key_fetches) == (["/.well-known/openid-configuration"], 1)


async def test_nothing_is_fetched_before_the_first_token(provider: IdentityProvider, clock: FakeClock) -> None:
    async with discovering(provider, clock):
        pass

    assert provider.discoveries == []


async def test_with_credentials_opaque_tokens_are_introspected(provider: IdentityProvider, clock: FakeClock) -> None:
    provider.tokens["opaque"] = MACHINE

    async with discovering(provider, clock, **CREDENTIALS) as verify:
        clients = [(await verify(each)).client_id for each in ("opaque", token(provider, clock))]

    assert clients == ["lab", "app"]
    assert (len(provider.discoveries), provider.introspections) == (1, 1)


async def test_an_introspected_token_of_another_issuer_is_refused(provider: IdentityProvider, clock: FakeClock) -> None:
    provider.tokens["opaque"] = MACHINE | {"iss": "https://other.test"}

    async with discovering(provider, clock, **CREDENTIALS) as verify:
        with pytest.raises(InvalidToken):
            await verify("opaque")


@pytest.mark.parametrize(
    ("suffix", "metadata_path"),
    [
        ("/", "/.well-known/openid-configuration"),
        ("/realms/clinic", "/realms/clinic/.well-known/openid-configuration"),
        ("/realms/clinic/", "/realms/clinic/.well-known/openid-configuration"),
        ("", "/.well-known/oauth-authorization-server"),
        ("/realms/clinic", "/.well-known/oauth-authorization-server/realms/clinic"),
    ],
)
async def test_the_metadata_is_at_a_path_of_either_standard(
    provider: IdentityProvider, clock: FakeClock, suffix: str, metadata_path: str
) -> None:
    issuer = provider.issuer + suffix
    provider.metadata_path = metadata_path
    provider.metadata = {"issuer": issuer}

    async with discovering(provider, clock, oidc_issuer=issuer) as verify:
        assert (await verify(token(provider, clock, iss=issuer))).client_id == "app"

    assert provider.discoveries[-1] == metadata_path


async def test_settings_replace_what_is_discovered(provider: IdentityProvider, clock: FakeClock) -> None:
    provider.metadata = {"jwks_uri": f"{provider.issuer}/nowhere", "introspection_endpoint": None}
    provider.tokens["opaque"] = MACHINE
    explicit = {
        "jwks_url": f"{provider.issuer}/jwks",
        "jwt_issuer": "https://issuer.test",
        "introspection_url": f"{provider.issuer}/introspect",
    }

    async with discovering(provider, clock, **CREDENTIALS | explicit) as verify:
        assert (await verify("opaque")).client_id == "lab"
        assert (await verify(token(provider, clock, iss="https://issuer.test"))).client_id == "app"
        with pytest.raises(InvalidToken):
            await verify(token(provider, clock))

    assert provider.discoveries == []


# Unusable metadata: the caller gets 503, and no token is refused

UNUSABLE: dict[str, dict[str, Any]] = {
    "another issuer": {"issuer": "https://other.test"},
    "a final slash more": {"issuer": "{issuer}/"},
    "a template, as of Entra ID for all tenants": {"issuer": "{issuer}/{tenantid}/v2.0"},
    "no issuer": {"issuer": None},
    "an issuer that is a list": {"issuer": ["{issuer}"]},
    "no keys": {"jwks_uri": None},
    "keys without TLS": {"jwks_uri": "http://other.test/jwks"},
    "keys in a file": {"jwks_uri": "file:///etc/passwd"},
    "keys with a password": {"jwks_uri": "https://a:b@other.test/jwks"},
    "a path": {"jwks_uri": "/jwks"},
    "a number": {"jwks_uri": 5},
    "an introspection endpoint without TLS": {"introspection_endpoint": "http://other.test/introspect"},
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_unusable_metadata_is_503(provider: IdentityProvider, clock: FakeClock, name: str) -> None:
    provider.metadata = {
        member: value.replace("{issuer}", provider.issuer) if isinstance(value, str) else value
        for member, value in UNUSABLE[name].items()
    }

    async with discovering(provider, clock) as verify:
        with captured_logs() as lines, pytest.raises(TemporarilyUnavailable):
            await verify(token(provider, clock))

        assert provider.key_fetches == 0
        assert [line["topic"] for line in lines] == ["discovery"]
        assert "other.test" not in str(lines)


NO_METADATA: dict[str, Callable[[], Response]] = {
    "an error": lambda: Response(status_code=500),
    "not found": lambda: Response(status_code=404),
    "a redirect": lambda: RedirectResponse("/elsewhere/.well-known/openid-configuration", 302),
    "an HTML page": lambda: Response(b"<html>"),
    "a list": lambda: JSONResponse([]),
    "too many bytes": lambda: JSONResponse({"more": "x" * 65_536}),
    "an endless response": endless_response,
}


@pytest.mark.parametrize("name", NO_METADATA)
async def test_without_metadata_tokens_get_503_until_it_can_be_fetched(
    provider: IdentityProvider, clock: FakeClock, name: str
) -> None:
    provider.answer = NO_METADATA[name]

    async with discovering(provider, clock) as verify:
        for _ in range(2):  # the second is refused without another request
            with pytest.raises(TemporarilyUnavailable):
                await verify(token(provider, clock))
        requests = len(provider.discoveries)
        assert requests == (2 if name == "not found" else 1)

        provider.answer = None
        clock.advance(1)
        assert (await verify(token(provider, clock))).client_id == "app"
    assert len(provider.discoveries) == requests + 1


@pytest.mark.parametrize("fault", ["down", "slow"])
async def test_an_unreachable_issuer_is_503_until_it_is_reachable(
    provider: IdentityProvider, clock: FakeClock, fault: str
) -> None:
    provider.tokens["opaque"] = MACHINE
    async with discovering(provider, clock, **CREDENTIALS) as verify:
        async with provider.with_fault(fault), asyncio.timeout(5 * TIMEOUT_SECONDS):
            for each in ("opaque", token(provider, clock)):
                with pytest.raises(TemporarilyUnavailable):
                    await verify(each)

        clock.advance(1)
        assert (await verify("opaque")).client_id == "lab"
        assert (await verify(token(provider, clock))).client_id == "app"


async def test_metadata_is_fetched_again_every_hour_and_used_while_that_fails(
    provider: IdentityProvider, clock: FakeClock
) -> None:
    async with discovering(provider, clock) as verify:
        fetches = []
        for seconds, metadata in ((0, {}), (3599, {}), (1, {"issuer": None}), (599, {"issuer": None}), (601, {})):
            clock.advance(seconds)
            provider.metadata = metadata
            assert (await verify(token(provider, clock, jti=str(seconds)))).client_id == "app"
            fetches.append(len(provider.discoveries))

    assert fetches == [1, 1, 1, 2, 3]


async def test_closing_cancels_a_discovery_in_flight(provider: IdentityProvider, clock: FakeClock) -> None:
    provider.may_answer.clear()
    async with discovering(provider, clock, identity_provider_seconds=30) as verify:
        waiting = asyncio.ensure_future(verify(token(provider, clock)))
        await provider.asked.wait()

    assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)


# The check before serving


async def test_the_check_reports_the_discovered_endpoints(provider: IdentityProvider) -> None:
    outages, discovered = await ask_provider(settings_of(provider, **CREDENTIALS))

    assert outages == []
    assert discovered == [
        f"The key set was discovered: {provider.issuer}/jwks",
        f"The introspection endpoint was discovered: {provider.issuer}/introspect",
    ]


async def test_the_check_reports_endpoints_that_are_not_published(provider: IdentityProvider) -> None:
    provider.metadata = {"introspection_endpoint": None}

    outages, discovered = await ask_provider(settings_of(provider, **CREDENTIALS))

    assert [each.partition(":")[0] for each in outages] == ["GATEWAY_OIDC_ISSUER (introspection)"]
    assert discovered == [f"The key set was discovered: {provider.issuer}/jwks"]


async def test_the_check_reports_an_issuer_that_does_not_answer(provider: IdentityProvider) -> None:
    provider.answer = lambda: Response(status_code=500)

    outages, discovered = await ask_provider(settings_of(provider))

    assert [each.partition(":")[0] for each in outages] == ["GATEWAY_OIDC_ISSUER"]
    assert discovered == []
