"""A bearer token becomes a Caller. Each way of verifying has a file; which one serves is the settings' word."""

import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Generic, TypeVar

from gateway.claims import MAX_TOKEN_CHARACTERS, Clock
from gateway.introspection import Introspection
from gateway.provider import Flights, Provider
from gateway.settings import Settings
from resolvers.access import Caller, Verify
from resolvers.errors import InvalidToken

if TYPE_CHECKING:
    from gateway.jwt import AccessTokens

# The tokens of development mode, published in the contract: worthless wherever a verifier is configured.
DEVELOPMENT_BRANDS = {"dev": "loop", "dev-loopbio": "loopbio"}
DEVELOPMENT_PATIENTS = {"demo-patient": "loop", "demo-patient-loopbio": "loopbio"}

# Visible ASCII, as a header can carry it; nobody is asked about anything else.
TOKEN = re.compile(rf"[\x21-\x7e]{{1,{MAX_TOKEN_CHARACTERS}}}")

WORTHLESS_SECONDS = 5.0
"""How long a token that was found worthless is not asked about again."""

MAX_REMEMBERED = 10_000
"""Good tokens that are remembered, and worthless ones: apart, so that a flood of these washes out none of those."""

Thing = TypeVar("Thing")


async def verify_development_token(token: str) -> Caller:
    """Give the caller of a development token. Raises `InvalidToken`."""
    brand_id = DEVELOPMENT_BRANDS.get(token)
    if brand_id is None:
        raise InvalidToken
    return Caller(client_id=token, brand_id=brand_id, scopes=frozenset({"admin:patient_graph"}))


@asynccontextmanager
async def verifying(settings: Settings, clock: Clock = time) -> AsyncIterator[Verify]:
    """Lend the way of verifying tokens that the settings say. Raises `SettingsError`."""
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
        judge = _judge(introspection_of(settings, provider, clock), access_tokens)
        memory = Memory(judge, seconds=settings.token_cache_seconds, clock=clock)
        closing.push_async_callback(memory.close)
        yield memory.verify


def _judge(introspection: Introspection | None, access_tokens: "AccessTokens | None") -> Verify:
    """Decide who verifies a token, so that each has one judge.

    What says that it is a JWT of our issuer must prove it by its signature, and is not sent on if it cannot.
    Introspection judges everything else: opaque tokens, and the JWTs of other issuers, which our provider may know.
    """
    if access_tokens is None:
        assert introspection is not None, "one of them is configured"
        return introspection.verify
    if introspection is None:
        return access_tokens.verify

    async def judged(token: str) -> Caller:
        judge = access_tokens if access_tokens.claims_to_be_ours(token) else introspection
        return await judge.verify(token)

    return judged


def introspection_of(settings: Settings, provider: Provider, clock: Clock) -> Introspection | None:
    """Return the verifier of tokens by introspection, or None where the settings name no endpoint."""
    if settings.introspection_url is None:
        return None
    assert settings.introspection_client_id is not None
    assert settings.introspection_client_secret is not None
    # Settings of its own demand the claim. Those of JWTs hold here too, but the claim is optional (RFC 7662, 2.2).
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
    # Imported here: whoever has no JWTs need not wait for what verifies them.
    from gateway.jwks import KeySet
    from gateway.jwt import AccessTokens

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


class Memory:
    """Verifies a token once for everyone who brings it, and again when that was too long ago.

    What is kept is a hash of the token. A judge who cannot answer leaves no trace: the next caller asks again.
    """

    def __init__(self, judge: Verify, *, seconds: float, clock: Clock) -> None:
        self._judge = judge
        self._seconds = seconds
        self._clock = clock
        self._good: Kept[Caller] = Kept(MAX_REMEMBERED)
        self._worthless: Kept[bool] = Kept(MAX_REMEMBERED)
        self._flights: Flights[bytes, Caller] = Flights()

    async def verify(self, token: str) -> Caller:
        """Give whom a token stands for. Raises `InvalidToken` or `TemporarilyUnavailable`."""
        if not TOKEN.fullmatch(token):
            raise InvalidToken
        digest = sha256(token.encode()).digest()
        now = self._clock.monotonic()
        caller = self._good.get(digest, now)
        # The other clock is asked too: a machine that slept does not count its sleep.
        if caller is not None and self._seconds_left(caller) > 0:
            return caller
        if self._worthless.get(digest, now):
            raise InvalidToken
        return await self._flights.join(digest, partial(self._ask, digest, token))

    async def _ask(self, digest: bytes, token: str) -> Caller:
        try:
            caller = await self._judge(token)
        except InvalidToken:
            self._good.forget(digest)
            self._worthless.keep(digest, True, self._clock.monotonic() + WORTHLESS_SECONDS)
            raise
        self._good.keep(digest, caller, self._clock.monotonic() + self._seconds_left(caller))
        return caller

    def _seconds_left(self, caller: Caller) -> float:
        """How long to believe that the caller is who they are: to the token's end, and never long."""
        if caller.expires_at is None:
            return self._seconds
        return min(caller.expires_at.timestamp() - self._clock.time(), self._seconds)

    async def close(self) -> None:
        """Call back whoever is being asked."""
        await self._flights.close()


class Kept(Generic[Thing]):
    """Things that are each kept until a time; when there are too many, the one longest unused goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._things: OrderedDict[bytes, tuple[Thing, float]] = OrderedDict()

    def get(self, key: bytes, now: float) -> Thing | None:
        """Give the thing while it is kept."""
        thing, until = self._things.get(key, (None, now))
        if thing is None:
            return None
        if until <= now:
            del self._things[key]
            return None
        self._things.move_to_end(key)
        return thing

    def forget(self, key: bytes) -> None:
        """Keep the thing no longer."""
        self._things.pop(key, None)

    def keep(self, key: bytes, thing: Thing, until: float) -> None:
        """Keep a thing until a time."""
        self._things[key] = (thing, until)
        self._things.move_to_end(key)
        if len(self._things) > self._most:
            self._things.popitem(last=False)
