"""Verification of JWT access tokens (RFC 9068, and those of `token_profiles`) with the keys of their issuer.

joserfc does the cryptography. A token does not choose how it is verified: its algorithm must be in `ACCEPTED` and fit
the key. Keys come only from the configured set; `jku`, `jwk`, `x5c` and `x5u` are ignored.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jws import CompactSignature, JWSRegistry

from gateway.auth.jwks import ALGORITHMS, KeySet
from gateway.auth.token_claims import (
    MAX_TOKEN_CHARACTERS,
    ClaimNames,
    Clock,
    UnreadableClaimsError,
    caller_of,
    instant,
    invalid_token,
    refuse_another_services,
    refuse_outside_its_time,
)
from gateway.auth.token_profiles import Claims, marks_access_token, with_cognito_audience
from resolvers import json_text
from resolvers.access import Caller
from resolvers.errors import MalformedBody

ACCEPTED = frozenset().union(*ALGORITHMS.values())

RFC_9068_TYPE = "at+jwt"


class _Registry(JWSRegistry):
    """joserfc registry that is limited to `ACCEPTED`. The token's length was checked before."""

    max_header_length = max_payload_length = max_signature_length = MAX_TOKEN_CHARACTERS

    def get_alg(self, name: str) -> Any:
        """Return an algorithm. joserfc's own method would warn for each token that names EdDSA."""
        if name not in ACCEPTED:
            raise UnsupportedAlgorithmError
        return self.algorithms[name]


# Unknown header members are ignored. Source: RFC 7515 section 4.
REGISTRY = _Registry(strict_check_header=False)


class Opened(NamedTuple):
    """A parsed token whose signature is not verified yet."""

    signature: CompactSignature
    claims: Claims

    @property
    def header(self) -> Mapping[str, Any]:
        """The protected header."""
        return self.signature.protected


def opened(token: str) -> Opened | None:
    """Parse a token without verifying it. Return None if it is not a JWT."""
    try:
        signature = jws.extract_compact(token.encode(), registry=REGISTRY)
        claims = json_text.read(signature.payload)
    except (JoseError, MalformedBody, ValueError, RecursionError):
        return None
    if not isinstance(signature.protected, dict) or not isinstance(claims, dict):
        return None
    return Opened(signature, claims)


class AccessTokens:
    """Verifier of the JWT access tokens of one issuer.

    Args:
        keys: Public keys of the issuer.
        issuer: Required `iss`.
        audience: Name of this gateway, which `aud` must equal or contain.
        token_type: Required `typ`, with or without the prefix `application/`. None: that of RFC 9068.
        recognizes_providers: Whether the access tokens of `token_profiles` are accepted too, if `token_type` is None.
        names: Names of the claims that describe the caller.
        leeway: Seconds by which the issuer's clock may differ.
        clock: Clock in seconds.

    """

    def __init__(
        self,
        keys: KeySet,
        *,
        issuer: str,
        audience: str,
        token_type: str | None,
        recognizes_providers: bool,
        names: ClaimNames,
        leeway: float,
        clock: Clock,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._expected = {"iss": issuer, "aud": audience}
        self._type = _media_type(token_type or RFC_9068_TYPE)
        self._recognizes_providers = recognizes_providers and token_type is None
        self._names = names
        self._leeway = leeway
        self._clock = clock

    def has_our_issuer(self, token: str) -> bool:
        """Whether the `iss` of the token is the configured issuer. The claim is not verified."""
        read = opened(token)
        return read is not None and read.claims.get("iss") == self._issuer

    async def verify(self, token: str) -> Caller:
        """Return the caller of the token. Raises `InvalidToken` or `TemporarilyUnavailable`."""
        read = opened(token)
        if read is None:
            raise invalid_token("not a JWT")
        self._refuse_type(read)
        await self._verify_signature(read)
        claims = with_cognito_audience(read.claims, self._audience) if self._recognizes_providers else read.claims
        try:
            self._refuse_claims(claims)
            return caller_of(claims, self._names)
        except UnreadableClaimsError as error:
            raise invalid_token(f"unreadable: {error}") from None

    def _refuse_type(self, read: Opened) -> None:
        token_type = read.header.get("typ", "")
        if not isinstance(token_type, str):
            raise invalid_token("typ")
        if _media_type(token_type) != self._type and not (
            # Okta and Cognito set no `typ`.
            self._recognizes_providers and _media_type(token_type) in {"", "jwt"} and marks_access_token(read.claims)
        ):
            raise invalid_token("typ")
        # `crit` lists extensions that the verifier must support, and none is supported. Source: RFC 7515, 4.1.11.
        if "crit" in read.header:
            raise invalid_token("crit")

    async def _verify_signature(self, read: Opened) -> None:
        algorithm, kid = read.header["alg"], read.header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ACCEPTED:
            raise invalid_token("alg")
        if not isinstance(kid, str | None):
            raise invalid_token("kid")
        keys = await self._keys.matching_keys(algorithm, kid)
        if not keys:
            raise invalid_token("no such key")
        try:
            is_valid = any(jws.validate_compact(read.signature, key, registry=REGISTRY) for key in keys)
        except JoseError as error:
            raise invalid_token(type(error).__name__) from None
        if not is_valid:
            raise invalid_token("signature")

    def _refuse_claims(self, claims: Claims) -> None:
        refuse_another_services(claims, self._expected)
        if instant(claims, "exp") is None:
            raise invalid_token("no exp")
        now = self._clock.time()
        refuse_outside_its_time(claims, now=now, leeway=self._leeway)
        issued_at = instant(claims, "iat")
        if issued_at is not None and issued_at > now + self._leeway:
            raise invalid_token("issued in the future")

    async def close(self) -> None:
        """Cancel a fetch of keys in flight."""
        await self._keys.close()


def _media_type(typ: str) -> str:
    # The prefix is optional, and media types are case-insensitive. Source: RFC 7515 section 4.1.9.
    return typ.lower().removeprefix("application/")
