"""JWT access tokens (RFC 9068): valid claims, forgeries, and fetching of the issuer's key set."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.errors import UnsupportedAlgorithmError
from starlette.responses import JSONResponse, RedirectResponse, Response

from gateway.auth.jwt import REGISTRY
from gateway.auth.verifier import verifying
from resolvers.access import Caller, Verify
from resolvers.errors import GatewayError, InvalidToken, TemporarilyUnavailable
from tests.identity_provider import (
    AUDIENCE,
    ISSUER,
    TIMEOUT_SECONDS,
    FakeClock,
    IdentityProvider,
    claims,
    encoded,
    endless_response,
    jwt,
    signing_key,
)
from tests.logs import captured_logs

MACHINE = {"client_id": "lab", "scope": "write:encounters"}


@pytest.fixture
async def jwt_verifier(provider: IdentityProvider, clock: FakeClock) -> AsyncIterator[Verify]:
    """The verifier of a gateway that verifies by the provider's key set."""
    async with verifying(provider.settings(jwt=True, identity_provider_seconds=TIMEOUT_SECONDS), clock) as verify:
        yield verify


# Valid tokens

RSA, EC, ED = signing_key("RS256", "rsa"), signing_key("ES256", "ec"), signing_key("EdDSA", "ed")
STRANGER = signing_key("RS256", "stranger")


@pytest.fixture
def published(provider: IdentityProvider) -> None:
    """Publish one key of each type, and other entries that occur in key sets."""
    provider.keys = [
        {"kty": "AKP", "alg": "ML-DSA-44", "kid": "tomorrow", "pub": "AA"},
        {"kty": "oct", "kid": "shared", "k": encoded(b"a shared secret of thirty-two bytes")},
        "not a key",
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        signing_key("RS256", "encrypting").jwk | {"use": "enc"},
        signing_key("RS256", "short", 1024).jwk,
        RSA.jwk | {"use": "sig", "alg": "RS256"},
        EC.jwk | {"key_ops": ["verify"]},
        ED.jwk,
    ]


# A fixture's effect alone; not every test of keys needs it.
with_keys = pytest.mark.usefixtures("published")


@with_keys
@pytest.mark.parametrize(
    ("key", "header"),
    [
        (RSA, {}),
        (EC, {}),
        (ED, {}),
        (ED, {"alg": "Ed25519"}),
        (RSA, {"typ": "application/at+jwt"}),
        (RSA, {"typ": "AT+JWT"}),
        (RSA, {"unheard": ["of"], "x5t": "AA", "cty": "json"}),
    ],
    ids=str,
)
async def test_a_token_signed_by_a_published_key_names_its_caller(
    jwt_verifier: Verify, clock: FakeClock, key: Any, header: dict[str, Any]
) -> None:
    caller = await jwt_verifier(jwt(key, claims(clock.now), **header))

    assert caller == Caller(
        "app",
        frozenset({"write:encounters", "read:encounters"}),
        user_id="nurse-1",
        brand_id="loop",
        expires_at=datetime.fromtimestamp(clock.now + 300, UTC),
    )


@with_keys
@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["https://other.test", AUDIENCE]},
        {"exp": 1_799_999_941, "iat": None},
        {"nbf": 1_800_000_060},
        {"iat": 1_800_000_060},
        {"exp": 1_800_000_000.5},
        {"iat": None, "jti": None},
    ],
    ids=str,
)
async def test_valid_claims_are_accepted(jwt_verifier: Verify, clock: FakeClock, changes: dict[str, Any]) -> None:
    assert (await jwt_verifier(jwt(RSA, claims(clock.now, **changes)))).client_id == "app"


@with_keys
@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://issuer.test/"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": "https://other.test"},
        {"aud": ["https://other.test"]},
        {"aud": []},
        {"aud": {AUDIENCE: True}},
        {"aud": AUDIENCE + "/more"},
        {"aud": None},
        {"exp": 1_799_999_940},
        {"exp": None},
        {"exp": "1800000300"},
        {"exp": True},
        {"exp": 1e300},
        {"nbf": 1_800_000_061},
        {"nbf": "now"},
        {"iat": 1_800_000_061},
        {"iat": False},
        {"client_id": None, "sub": None},
        {"client_id": None},
        {"client_id": None, "brand": None},
        {"client_id": 5},
        {"sub": {"a": 1}},
        {"scope": 5},
        {"scope": ["admin:*", 5]},
        {"at_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng"},
        {"typ": "ID"},
        {"token_use": "id"},
        {"brand": 5},
        {"brand": ""},
        {"brand_id": "loopbio"},
        {"cnf": {"jkt": "a thumbprint"}},
    ],
    ids=str,
)
async def test_invalid_claims_are_refused(jwt_verifier: Verify, clock: FakeClock, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken):
        await jwt_verifier(jwt(RSA, claims(clock.now, **changes)))


def with_signature(token: str, signature: bytes) -> str:
    return token.rpartition(".")[0] + "." + encoded(signature)


def with_payload(token: str, **changes: Any) -> str:
    head, _, signature = token.split(".")
    return f"{head}.{encoded(json.dumps(claims(1.8e9) | changes).encode())}.{signature}"


def public_pem() -> bytes:
    pem: bytes = RSA.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def hmac_signed(secret: bytes, **header: Any) -> str:
    unsigned = jwt(RSA, claims(1.8e9), alg="HS256", **header).rpartition(".")[0]
    return with_signature(unsigned + ".", hmac.digest(secret, unsigned.encode(), sha256))


GOOD = jwt(RSA, claims(1.8e9))
GOOD_EC = jwt(EC, claims(1.8e9))

FORGERIES: dict[str, str] = {
    "none": with_signature(jwt(RSA, claims(1.8e9), alg="none"), b""),
    "none without a key id": with_signature(jwt(RSA, claims(1.8e9), alg="none", kid=None), b""),
    "None": with_signature(jwt(RSA, claims(1.8e9), alg="None"), b""),
    "none with a signature": jwt(RSA, claims(1.8e9), alg="none"),
    "HMAC with the public key": hmac_signed(public_pem()),
    "HMAC with the published JWK": hmac_signed(json.dumps(RSA.jwk).encode()),
    "HMAC with the published secret": hmac_signed(b"a shared secret of thirty-two bytes", kid="shared"),
    "no signature": with_signature(GOOD, b""),
    "the signature of another key": with_signature(GOOD, STRANGER.sign(b"x")),
    "an empty EC signature": with_signature(GOOD_EC, bytes(64)),
    "a DER signature": with_signature(GOOD_EC, b"\x30\x06\x02\x01\x01\x02\x01\x01"),
    "other scopes": with_payload(GOOD, scope="admin:*"),
    "another brand": with_payload(GOOD, brand="loopbio"),
    "an unknown key under a known id": jwt(STRANGER, claims(1.8e9), kid="rsa"),
    "an unknown key, embedded": jwt(STRANGER, claims(1.8e9), kid="rsa", jwk=STRANGER.jwk),
    "an unknown key by URL": jwt(STRANGER, claims(1.8e9), kid="rsa", jku="https://evil.test/jwks"),
    "an unknown certificate": jwt(STRANGER, claims(1.8e9), kid="rsa", x5u="https://evil.test/x", x5c=["AA"]),
    "an unknown key without an id": jwt(STRANGER, claims(1.8e9), kid=None),
    "the key id of a key of another type": jwt(RSA, claims(1.8e9), kid="ec"),
    "an encryption key": jwt(signing_key("RS256", "encrypting"), claims(1.8e9)),
    "a key that is too short": jwt(signing_key("RS256", "short", 1024), claims(1.8e9)),
    "an algorithm that is not configured": jwt(RSA, claims(1.8e9), alg="RS512"),
    "an algorithm that is a list": jwt(RSA, claims(1.8e9), alg=["RS256"]),
    "a key id that is a number": jwt(RSA, claims(1.8e9), kid=5),
    "a key id from SQL": jwt(RSA, claims(1.8e9), kid="' OR 1=1 --"),
    "an ID token": jwt(RSA, claims(1.8e9), typ="JWT"),
    "no type": jwt(RSA, claims(1.8e9), typ=None),
    "a type that is a list": jwt(RSA, claims(1.8e9), typ=["at+jwt"]),
    "a critical extension": jwt(RSA, claims(1.8e9), crit=["exp"], exp=1),
    "an unencoded payload": jwt(RSA, claims(1.8e9), crit=["b64"], b64=False),
    "an empty list of extensions": jwt(RSA, claims(1.8e9), crit=[]),
    "a repeated claim": jwt(RSA, json.dumps(claims(1.8e9))[:-1].encode() + b', "scope": "admin:*"}'),
    "claims that are a list": jwt(RSA, b"[]"),
    "claims that are not JSON": jwt(RSA, b"{"),
    "deeply nested claims": jwt(RSA, b"[" * 5_000),
    "a header that is a list": encoded(b'["alg"]') + GOOD[GOOD.index(".") :],
    "a deeply nested header": encoded(b"[" * 5_000) + GOOD[GOOD.index(".") :],
    "a header without an algorithm": jwt(RSA, claims(1.8e9), alg=None),
    "a token of five parts": GOOD + ".a.b",
    "two parts": GOOD.rpartition(".")[0],
    "three empty parts": "..",
    "padding": GOOD + "==",
    "standard base64": GOOD.replace("-", "+").replace("_", "/") + "+/",
    "an opaque token": "opaque",
    "a huge token": GOOD + "A" * 8192,
    "a huge header": jwt(RSA, claims(1.8e9), more="x" * 8192),
}


@with_keys
@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forgery_is_refused(jwt_verifier: Verify, name: str) -> None:
    with captured_logs() as lines, pytest.raises(InvalidToken):
        await jwt_verifier(FORGERIES[name])

    assert FORGERIES[name] not in str(lines)


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def other_spellings(part: str) -> list[str]:
    """Return texts that a lenient decoder decodes to the same bytes."""
    unused_bits = {0: 0, 2: 4, 3: 2}[len(part) % 4]
    last = ALPHABET.index(part[-1])
    trailing = [part[:-1] + ALPHABET[last + bits] for bits in range(1, 2**unused_bits)]
    half = len(part) // 2
    padding = [part + "=" * count for count in range(1, 5)]
    foreign = [part[:half] + letter + part[half:] for letter in "!~+/=%"] + ["!" + part, part + "!", part + "~~"]
    return trailing + padding + foreign


def signed(key: Any, header: str, payload: str) -> str:
    return f"{header}.{payload}.{encoded(key.sign(f'{header}.{payload}'.encode()))}"


def respelled(key: Any, index: int) -> list[str]:
    """Return tokens whose part `index` has another spelling; the signature is of the spelt text."""
    token = next(
        each
        for each in (jwt(key, claims(1.8e9, jti="x" * length), more="x" * length) for length in range(4))
        if len(each.split(".")[index]) % 4 > 0
    )
    parts = token.split(".")
    every = [[*parts[:index], other, *parts[index + 1 :]] for other in other_spellings(parts[index])]
    return [".".join(each) if index == 2 else signed(key, *each[:2]) for each in every]


@with_keys
@pytest.mark.parametrize("part", [0, 1, 2], ids=["header", "payload", "signature"])
@pytest.mark.parametrize("key", [RSA, EC, ED], ids=str)
async def test_a_part_in_non_canonical_base64url_is_refused(jwt_verifier: Verify, key: Any, part: int) -> None:
    for token in respelled(key, part):
        with pytest.raises(InvalidToken):
            await jwt_verifier(token)


@pytest.mark.parametrize("name", ["none", "HS256", "RS512", "PS256", "ES384", "Ed448"])
def test_algorithms_that_are_not_configured_are_not_registered(name: str) -> None:
    with pytest.raises(UnsupportedAlgorithmError):
        REGISTRY.get_alg(name)


@with_keys
async def test_the_key_and_claims_of_the_forgeries_are_valid(jwt_verifier: Verify) -> None:
    assert (await jwt_verifier(GOOD)).client_id == (await jwt_verifier(GOOD_EC)).client_id == "app"


@with_keys
async def test_key_urls_in_a_header_are_not_fetched(provider: IdentityProvider, jwt_verifier: Verify) -> None:
    elsewhere = f"http://127.0.0.1:{provider.port}/jwks?elsewhere"

    caller = await jwt_verifier(jwt(RSA, claims(1.8e9), jku=elsewhere, x5u=elsewhere, jwk=STRANGER.jwk))

    assert caller.client_id == "app"
    assert provider.key_fetches == 1


async def test_a_token_without_a_key_id_is_verified_with_the_only_key(
    provider: IdentityProvider, jwt_verifier: Verify
) -> None:
    provider.keys = [signing_key("ES256").jwk, RSA.jwk | {"use": "enc"}]

    assert (await jwt_verifier(jwt(signing_key("ES256"), claims(1.8e9), kid=None))).client_id == "app"


async def test_a_token_without_a_key_id_is_refused_if_there_are_two_keys(
    provider: IdentityProvider, jwt_verifier: Verify
) -> None:
    provider.keys = [RSA.jwk, STRANGER.jwk]

    with pytest.raises(InvalidToken):
        await jwt_verifier(jwt(RSA, claims(1.8e9), kid=None))


async def test_two_keys_may_share_an_id(provider: IdentityProvider, jwt_verifier: Verify) -> None:
    provider.keys = [STRANGER.jwk | {"kid": "rsa"}, EC.jwk | {"kid": "rsa"}, RSA.jwk]

    assert (await jwt_verifier(GOOD)).client_id == "app"


@pytest.mark.parametrize("published_for", [{"alg": "RS512"}, {"key_ops": ["encrypt"]}, {"use": "enc"}, {"key_ops": 5}])
async def test_a_key_is_used_only_for_its_published_purpose(
    provider: IdentityProvider, jwt_verifier: Verify, published_for: dict[str, Any]
) -> None:
    provider.keys = [RSA.jwk | published_for, EC.jwk]

    with pytest.raises(InvalidToken):
        await jwt_verifier(GOOD)


@pytest.mark.parametrize(
    ("settings", "changes", "header"),
    [
        ({"jwt_type": "JWT"}, {}, {"typ": "jwt"}),
        ({"jwt_brand_claim": "https://issuer.test/brand"}, {"brand": None, "https://issuer.test/brand": "loop"}, {}),
        ({"jwt_brand_claim": "tenant"}, {"brand": "loopbio", "tenant": "loop"}, {}),
        ({"token_leeway_seconds": 0}, {"exp": 1_800_000_001}, {}),
    ],
)
async def test_an_issuer_with_different_claims_can_be_configured(
    provider: IdentityProvider,
    clock: FakeClock,
    settings: dict[str, Any],
    changes: dict[str, Any],
    header: dict[str, Any],
) -> None:
    provider.keys = [RSA.jwk]
    token = jwt(RSA, claims(clock.now, **changes), **header)

    async with verifying(provider.settings(jwt=True, **settings), clock) as verify:
        assert (await verify(token)).brand_id == "loop"


async def test_without_leeway_a_token_expires_exactly_at_exp(provider: IdentityProvider, clock: FakeClock) -> None:
    provider.keys = [RSA.jwk]

    async with verifying(provider.settings(jwt=True, token_leeway_seconds=0), clock) as verify:
        with pytest.raises(InvalidToken):
            await verify(jwt(RSA, claims(clock.now, exp=int(clock.now))))


# The key set


@with_keys
async def test_the_key_set_is_fetched_once_when_first_needed(provider: IdentityProvider, jwt_verifier: Verify) -> None:
    assert provider.key_fetches == 0

    await asyncio.gather(*(jwt_verifier(jwt(RSA, claims(1.8e9, jti=str(number)))) for number in range(200)))

    assert provider.key_fetches == 1


@with_keys
async def test_unknown_key_ids_cause_a_fetch_every_five_seconds_at_most(
    provider: IdentityProvider, jwt_verifier: Verify, clock: FakeClock
) -> None:
    async def refused(jti: str, error: type[GatewayError]) -> int:
        with pytest.raises(error):
            await jwt_verifier(jwt(STRANGER, claims(clock.now, jti=jti)))
        return provider.key_fetches

    await jwt_verifier(GOOD)
    # A token is refused only after a fetch of the key set.
    assert [await refused(jti, TemporarilyUnavailable) for jti in "ab"] == [1, 1]
    clock.advance(4.75)
    assert await refused("c", TemporarilyUnavailable) == 1
    clock.advance(0.25)
    assert await refused("d", InvalidToken) == 2
    assert await refused("e", TemporarilyUnavailable) == 2

    provider.keys.append(STRANGER.jwk)
    clock.advance(5)
    assert (await jwt_verifier(jwt(STRANGER, claims(clock.now)))).client_id == "app"
    assert provider.key_fetches == 3


@with_keys
async def test_a_token_without_a_key_id_is_not_refused_before_a_fetch(
    provider: IdentityProvider, jwt_verifier: Verify, clock: FakeClock
) -> None:
    token = jwt(signing_key("RS256"), claims(clock.now), kid=None)
    provider.keys.append(STRANGER.jwk)
    await jwt_verifier(GOOD)
    with pytest.raises(TemporarilyUnavailable):
        await jwt_verifier(token)

    provider.keys = [signing_key("RS256").jwk]
    clock.advance(5)

    assert (await jwt_verifier(token)).client_id == "app"


@with_keys
async def test_known_keys_wait_for_a_silent_issuer_every_half_minute(
    provider: IdentityProvider, jwt_verifier: Verify, clock: FakeClock
) -> None:
    await jwt_verifier(GOOD)
    provider.answer = NO_KEY_SETS["an error"]
    clock.advance(600)

    fetches = []
    for number in range(13):
        await jwt_verifier(jwt(RSA, claims(clock.now, jti=str(number))))
        fetches.append(provider.key_fetches)
        clock.advance(5)

    assert fetches == [2] * 6 + [3] * 6 + [4]


@with_keys
async def test_requests_during_a_key_set_fetch_wait_for_it(
    provider: IdentityProvider, jwt_verifier: Verify, clock: FakeClock
) -> None:
    await jwt_verifier(GOOD)
    clock.advance(600)
    provider.may_answer.clear()
    waiting = []
    for number in range(3):
        waiting.append(asyncio.ensure_future(jwt_verifier(jwt(RSA, claims(clock.now, jti=str(number))))))
        await asyncio.sleep(0)
    provider.may_answer.set()

    assert len(await asyncio.gather(*waiting)) == 3
    assert provider.key_fetches == 2


@with_keys
async def test_many_tokens_with_unknown_key_ids_share_one_fetch(
    provider: IdentityProvider, jwt_verifier: Verify, clock: FakeClock
) -> None:
    await jwt_verifier(GOOD)
    clock.advance(30)
    provider.keys.append(STRANGER.jwk)

    callers = await asyncio.gather(*(jwt_verifier(jwt(STRANGER, claims(1.8e9, jti=str(n)))) for n in range(100)))

    assert len(callers) == 100
    assert provider.key_fetches == 2


@with_keys
async def test_a_withdrawn_key_is_refused_after_ten_minutes(
    provider: IdentityProvider, jwt_verifier: Verify, clock: FakeClock
) -> None:
    await jwt_verifier(GOOD)
    provider.keys.remove(RSA.jwk | {"use": "sig", "alg": "RS256"})

    clock.advance(599)
    await jwt_verifier(jwt(RSA, claims(clock.now)))
    clock.advance(1)

    with pytest.raises(InvalidToken):
        await jwt_verifier(jwt(RSA, claims(clock.now, jti="two")))


NO_KEY_SETS: dict[str, Callable[[], Response]] = {
    "an error": lambda: Response(status_code=500),
    "a redirect": lambda: RedirectResponse("/jwks?elsewhere", 302),
    "an HTML page": lambda: Response(b"<html>"),
    "a list": lambda: JSONResponse([]),
    "no keys": lambda: JSONResponse({}),
    "keys that are not a list": lambda: JSONResponse({"keys": {}}),
    "an empty list": lambda: JSONResponse({"keys": []}),
    "a symmetric key": lambda: JSONResponse({"keys": [{"kty": "oct", "k": "AAAA"}]}),
    "invalid keys": lambda: JSONResponse({"keys": [None, 5, "x", [], {}, {"kty": "RSA"}, {"kty": ["RSA"]}]}),
    "keys that are none": lambda: JSONResponse(
        {"keys": [EC.jwk | {"x": EC.jwk["y"]}, ED.jwk | {"x": "AA"}, RSA.jwk | {"e": "AA"}, {"kty": "EC", "crv": 5}]}
    ),
    "too many bytes": lambda: JSONResponse({"keys": [RSA.jwk], "more": "x" * 1024 * 1024}),
    "too many keys": lambda: JSONResponse({"keys": [RSA.jwk] * 101}),
    "an endless response": endless_response,
}


@pytest.mark.parametrize("answer", NO_KEY_SETS)
async def test_without_a_usable_key_set_requests_get_503_and_no_token_is_refused(
    provider: IdentityProvider, jwt_verifier: Verify, clock: FakeClock, answer: str
) -> None:
    provider.keys = [RSA.jwk]
    provider.answer = NO_KEY_SETS[answer]

    for _ in range(2):  # the second is refused without another fetch
        with pytest.raises(TemporarilyUnavailable):
            await jwt_verifier(GOOD)
    assert provider.key_fetches == 1

    provider.answer = None
    clock.advance(1)
    assert (await jwt_verifier(GOOD)).client_id == "app"


@with_keys
@pytest.mark.parametrize("trouble", ["an error", "an empty list", "too many keys", "an endless response"])
async def test_old_keys_are_used_while_a_fetch_fails(
    provider: IdentityProvider, jwt_verifier: Verify, clock: FakeClock, trouble: str
) -> None:
    await jwt_verifier(GOOD)
    provider.answer = NO_KEY_SETS[trouble]
    clock.advance(3600)

    for jti in ("two", "three"):
        assert (await jwt_verifier(jwt(RSA, claims(clock.now, jti=jti)))).client_id == "app"
        with pytest.raises(TemporarilyUnavailable):
            await jwt_verifier(jwt(STRANGER, claims(clock.now, jti=jti)))
    assert provider.key_fetches == 2

    provider.answer = None
    clock.advance(30)
    with pytest.raises(InvalidToken):
        await jwt_verifier(jwt(STRANGER, claims(clock.now, jti="four")))


@with_keys
async def test_a_verified_token_is_cached_for_a_minute_but_not_after_its_expiry(
    provider: IdentityProvider, jwt_verifier: Verify, clock: FakeClock
) -> None:
    token = jwt(RSA, claims(clock.now, exp=int(clock.now) + 10))
    await jwt_verifier(token)

    clock.advance(69.75)
    assert (await jwt_verifier(token)).client_id == "app"
    clock.advance(0.25)
    with pytest.raises(InvalidToken):
        await jwt_verifier(token)


# Both verifiers configured: each token is verified by one of them


@pytest.fixture
async def both(provider: IdentityProvider, published: None, clock: FakeClock) -> AsyncIterator[Verify]:
    async with verifying(provider.settings(introspection=True, jwt=True), clock) as verify:
        yield verify


async def test_opaque_and_foreign_tokens_are_introspected(provider: IdentityProvider, both: Verify) -> None:
    foreign = jwt(STRANGER, claims(1.8e9, iss="https://partner.test"))
    provider.tokens |= {"opaque": MACHINE, foreign: MACHINE | {"client_id": "partner"}}

    assert [(await both("opaque")).client_id, (await both(foreign)).client_id] == ["lab", "partner"]
    assert (provider.introspections, provider.key_fetches) == (2, 0)


async def test_a_token_of_the_issuer_is_not_introspected(provider: IdentityProvider, both: Verify) -> None:
    assert (await both(GOOD)).client_id == "app"
    assert provider.introspections == 0


async def test_a_respelled_token_of_the_issuer_is_not_introspected(provider: IdentityProvider, both: Verify) -> None:
    for token in respelled(RSA, 2):
        provider.tokens[token] = MACHINE
        with pytest.raises(InvalidToken):
            await both(token)
    assert provider.introspections == 0


@pytest.mark.parametrize("name", ["none", "other scopes", "an ID token", "HMAC with the public key"])
async def test_a_forgery_in_the_issuers_name_is_not_introspected(
    provider: IdentityProvider, both: Verify, name: str
) -> None:
    provider.tokens[FORGERIES[name]] = MACHINE

    with pytest.raises(InvalidToken):
        await both(FORGERIES[name])
    assert provider.introspections == 0
