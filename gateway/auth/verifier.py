"""Verification of bearer tokens. Each verification method is a module; the settings select one."""

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from pydantic import AnyHttpUrl

from gateway.auth.development import verify_development_token
from gateway.auth.discovery import Discovery
from gateway.auth.identity_provider import Locate, Provider
from gateway.auth.token_cache import TokenCache
from gateway.auth.token_claims import BRAND, CLIENT, ClaimNames, Clock
from gateway.auth.token_introspection import Introspection
from gateway.settings import Settings
from resolvers.access import Caller, Verify

if TYPE_CHECKING:
    from gateway.auth.jwks import KeySet
    from gateway.auth.jwt import AccessTokens


@asynccontextmanager
async def verifying(settings: Settings, clock: Clock = time) -> AsyncIterator[Verify]:
    """Yield the token verifier that the settings select. Raises `SettingsError`."""
    if settings.development:
        yield verify_development_token
        return
    settings.refuse_half_a_verifier()
    async with AsyncExitStack() as closing:
        provider = await closing.enter_async_context(reaching_provider(settings))
        discovery = discovery_of(settings, provider, clock)
        if discovery is not None:
            closing.push_async_callback(discovery.close)
        access_tokens = _access_tokens(settings, provider, discovery, clock)
        if access_tokens is not None:
            closing.push_async_callback(access_tokens.close)
        verifier = _choose_verifier(introspection_of(settings, provider, discovery, clock), access_tokens)
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


def reaching_provider(settings: Settings) -> AbstractAsyncContextManager[Provider]:
    """Return a context that yields the client of the identity provider."""
    # Discovered endpoints may use TLS even if the issuer is on this machine.
    over_tls = settings.oidc_issuer is not None or any(
        url.scheme == "https" for url in (settings.introspection_url, settings.jwks_url) if url
    )
    return Provider.reached(over_tls=over_tls, seconds=settings.identity_provider_seconds)


def discovery_of(settings: Settings, provider: Provider, clock: Clock) -> Discovery | None:
    """Return the discovery of endpoints, or None if the settings name no issuer for it."""
    if settings.oidc_issuer is None:
        return None
    return Discovery(provider, issuer=settings.oidc_issuer, clock=clock)


def introspection_of(
    settings: Settings, provider: Provider, discovery: Discovery | None, clock: Clock
) -> Introspection | None:
    """Return the introspection verifier, or None if the settings do not configure it."""
    if not settings.introspects:
        return None
    assert settings.introspection_client_id is not None
    assert settings.introspection_client_secret is not None
    # The introspection settings require the claim. The JWT settings apply too, but the claim is then optional in the
    # response (RFC 7662, 2.2).
    demanded = {"iss": settings.introspection_issuer, "aud": settings.introspection_audience}
    fallback = {"iss": settings.issuer, "aud": settings.jwt_audience}
    expected = {claim: demanded[claim] or fallback[claim] for claim in demanded}
    return Introspection(
        provider,
        locate=_locate(settings.introspection_url, None if discovery is None else discovery.introspection_url),
        client_id=settings.introspection_client_id,
        client_secret=settings.introspection_client_secret.get_secret_value(),
        expected={claim: right for claim, right in expected.items() if right is not None},
        optional={claim for claim, right in demanded.items() if right is None},
        names=_claim_names(settings, brand=settings.claim_brand),
        leeway=settings.token_leeway_seconds,
        clock=clock,
    )


def key_set_of(settings: Settings, provider: Provider, discovery: Discovery | None, clock: Clock) -> "KeySet | None":
    """Return the keys that verify JWTs, or None if the settings do not configure them."""
    if not settings.verifies_jwts:
        return None
    # Imported here: a gateway without JWTs need not load the libraries that verify them.
    from gateway.auth.jwks import KeySet

    return KeySet(
        provider, locate=_locate(settings.jwks_url, None if discovery is None else discovery.jwks_url), clock=clock
    )


def _access_tokens(
    settings: Settings, provider: Provider, discovery: Discovery | None, clock: Clock
) -> "AccessTokens | None":
    keys = key_set_of(settings, provider, discovery, clock)
    if keys is None:
        return None
    from gateway.auth.jwt import AccessTokens

    assert settings.issuer is not None
    assert settings.jwt_audience is not None
    return AccessTokens(
        keys,
        issuer=settings.issuer,
        audience=settings.jwt_audience,
        token_type=settings.jwt_type,
        recognizes_providers=settings.oidc_issuer is not None,
        names=_claim_names(settings, brand=settings.jwt_brand_claim or settings.claim_brand),
        leeway=settings.token_leeway_seconds,
        clock=clock,
    )


def _locate(url: AnyHttpUrl | None, discovered: Locate | None) -> Locate:
    """Return a function that returns the configured URL, or else the discovered one."""
    if url is None:
        assert discovered is not None, "one of them is configured"
        return discovered

    async def configured() -> str:
        return str(url)

    return configured


def _claim_names(settings: Settings, *, brand: str | None) -> ClaimNames:
    return ClaimNames(
        brand=BRAND if brand is None else (brand,),
        client=CLIENT if settings.claim_client is None else (settings.claim_client,),
        scopes=None if settings.claim_scopes is None else (settings.claim_scopes,),
        user=settings.claim_user or "sub",
    )
