"""Verification of bearer tokens. Each verification method is a module; the settings select one."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from gateway.auth.development import verify_development_token
from gateway.auth.identity_provider import Provider
from gateway.auth.token_cache import TokenCache
from gateway.auth.token_claims import Clock
from gateway.auth.token_introspection import Introspection
from gateway.settings import Settings
from resolvers.access import Caller, Verify

if TYPE_CHECKING:
    from gateway.auth.jwt import AccessTokens


@asynccontextmanager
async def verifying(settings: Settings, clock: Clock = time) -> AsyncIterator[Verify]:
    """Yield the token verifier that the settings select. Raises `SettingsError`."""
    if settings.development:
        yield verify_development_token
        return
    settings.refuse_half_a_verifier()
    async with AsyncExitStack() as closing:
        over_tls = any(url.scheme == "https" for url in (settings.introspection_url, settings.jwks_url) if url)
        provider = await closing.enter_async_context(
            Provider.reached(over_tls=over_tls, seconds=settings.identity_provider_seconds)
        )
        access_tokens = _access_tokens(settings, provider, clock)
        if access_tokens is not None:
            closing.push_async_callback(access_tokens.close)
        verifier = _choose_verifier(introspection_of(settings, provider, clock), access_tokens)
        memory = TokenCache(verifier, seconds=settings.token_cache_seconds, clock=clock)
        closing.push_async_callback(memory.close)
        yield memory.verify


def _choose_verifier(introspection: Introspection | None, access_tokens: "AccessTokens | None") -> Verify:
    """Return a function that sends each token to exactly one verifier.

    A JWT that names the configured issuer is verified by its signature, and never by introspection. Introspection
    verifies all other tokens: opaque ones, and JWTs of other issuers, which the provider may know.
    """
    if access_tokens is None:
        assert introspection is not None, "one of them is configured"
        return introspection.verify
    if introspection is None:
        return access_tokens.verify

    async def verify_by_issuer(token: str) -> Caller:
        verifier = access_tokens if access_tokens.has_our_issuer(token) else introspection
        return await verifier.verify(token)

    return verify_by_issuer


def introspection_of(settings: Settings, provider: Provider, clock: Clock) -> Introspection | None:
    """Return the introspection verifier, or None if the settings name no endpoint."""
    if settings.introspection_url is None:
        return None
    assert settings.introspection_client_id is not None
    assert settings.introspection_client_secret is not None
    # The introspection settings require the claim. The JWT settings apply too, but the claim is then optional in the
    # response (RFC 7662, 2.2).
    demanded = {"iss": settings.introspection_issuer, "aud": settings.introspection_audience}
    fallback = {"iss": settings.jwt_issuer, "aud": settings.jwt_audience}
    expected = {claim: demanded[claim] or fallback[claim] for claim in demanded}
    return Introspection(
        provider,
        url=str(settings.introspection_url),
        client_id=settings.introspection_client_id,
        client_secret=settings.introspection_client_secret.get_secret_value(),
        expected={claim: right for claim, right in expected.items() if right is not None},
        optional={claim for claim, right in demanded.items() if right is None},
        leeway=settings.token_leeway_seconds,
        clock=clock,
    )


def _access_tokens(settings: Settings, provider: Provider, clock: Clock) -> "AccessTokens | None":
    if settings.jwks_url is None:
        return None
    # Imported here: a gateway without JWTs need not load the libraries that verify them.
    from gateway.auth.jwks import KeySet
    from gateway.auth.jwt import AccessTokens

    assert settings.jwt_issuer is not None
    assert settings.jwt_audience is not None
    return AccessTokens(
        KeySet(provider, url=str(settings.jwks_url), clock=clock),
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        token_type=settings.jwt_type,
        brand_claim=settings.jwt_brand_claim,
        leeway=settings.token_leeway_seconds,
        clock=clock,
    )
