"""JSON Web Key Set of an issuer (RFC 7517), fetched on first use and again when its keys change.

A token may name any key id, so the rate of fetches is limited. A token is rejected for an unknown key only after the
keys were fetched for it. While the rate limit forbids a fetch, the caller gets 503.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import Key, import_key

from gateway.auth.identity_provider import Locate, Provider, provider_error
from gateway.auth.single_flight import SingleFlight
from gateway.auth.token_claims import Clock
from resolvers.errors import TemporarilyUnavailable

TOPIC = "key set"
MAX_SET_BYTES = 1024 * 1024
MAX_KEYS = 100
"""Keys in a set; importing a key blocks the event loop for about 100 µs."""

MAX_AGE_SECONDS = 600.0
"""Maximum cache age in seconds: a revoked key is accepted for at most this long."""

LOOKUP_PAUSE_SECONDS = 5.0
"""Minimum seconds between a response and a fetch for an unknown key id; also the delay until a new key is found."""

LOOKUP_PAUSE_WITHOUT_KEYS_SECONDS = 1.0
"""Minimum seconds between fetches while there are no keys; shorter, because no token can be verified."""

RETRY_SECONDS = 30.0
"""Minimum seconds between fetches of stale keys that failed; longer, because every caller waits for such a fetch."""

ALGORITHMS: Mapping[tuple[str | None, str | None], frozenset[str]] = {
    ("RSA", None): frozenset({"RS256"}),
    ("EC", "P-256"): frozenset({"ES256"}),
    # Two names for one algorithm. Source: RFC 9864.
    ("OKP", "Ed25519"): frozenset({"EdDSA", "Ed25519"}),
}
"""Accepted algorithms, by the type and curve of their keys."""

# All other members of a key, including private ones, are ignored.
_PUBLIC_MEMBERS = ("kty", "crv", "x", "y", "n", "e")


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """Public key for verifying signatures, with its key id and its algorithms."""

    key: Key
    kid: str | None
    algorithms: frozenset[str]


class KeySet:
    """Cached public keys of an issuer."""

    def __init__(self, provider: Provider, *, locate: Locate, clock: Clock) -> None:
        self._provider = provider
        self._locate = locate
        self._clock = clock
        self._keys: Sequence[PublishedKey] = ()
        self._fetched_at: float | None = None
        self._answered_at: float | None = None
        self._single_flight: SingleFlight[None, bool] = SingleFlight()

    async def matching_keys(self, algorithm: str, kid: str | None) -> list[Key]:
        """Return the keys with this id; without an id, the only key of the algorithm.

        The list is empty if the keys were fetched for this call and none matches. Raises `TemporarilyUnavailable` if
        none matches and the fetch failed, or was not made because the last one is too recent.
        """
        is_fresh = self._is_stale and await self._refresh(RETRY_SECONDS)
        keys = self._find(algorithm, kid)
        if not keys and not is_fresh:
            is_fresh = await self._refresh(LOOKUP_PAUSE_SECONDS)
            keys = self._find(algorithm, kid)
        if not keys and not is_fresh:
            raise TemporarilyUnavailable("The key of this token cannot be fetched at present; try again shortly.")
        return keys

    def _find(self, algorithm: str, kid: str | None) -> list[Key]:
        of_algorithm = [each for each in self._keys if algorithm in each.algorithms]
        if kid is None:
            return [each.key for each in of_algorithm] if len(of_algorithm) == 1 else []
        return [each.key for each in of_algorithm if each.kid == kid]

    @property
    def _is_stale(self) -> bool:
        return self._fetched_at is None or self._clock.monotonic() - self._fetched_at >= MAX_AGE_SECONDS

    async def _refresh(self, pause: float) -> bool:
        """Fetch the keys, or join a fetch in flight; return whether it succeeded. Otherwise the old keys stay in use.

        No fetch is made within `pause` seconds after the last one ended, successfully or not.
        """
        pause = pause if self._keys else LOOKUP_PAUSE_WITHOUT_KEYS_SECONDS
        if self._answered_at is not None and self._clock.monotonic() - self._answered_at < pause:
            return False
        return await self._single_flight.run(None, self._fetch)

    async def _fetch(self) -> bool:
        try:
            jwks = await self._provider.fetch(TOPIC, await self._locate(), max_bytes=MAX_SET_BYTES)
            self._keys = _usable(jwks.get("keys"))
            self._fetched_at = self._clock.monotonic()
        except TemporarilyUnavailable:
            return False
        finally:
            # Set after the response, so that callers during the fetch join it.
            self._answered_at = self._clock.monotonic()
        return True

    async def close(self) -> None:
        """Cancel a fetch in flight."""
        await self._single_flight.close()


def _usable(jwks: object) -> list[PublishedKey]:
    """Return the usable keys of a set and ignore all others (RFC 7517 section 5).

    Raises `TemporarilyUnavailable` for an invalid set, or one without a usable key.
    """
    if not isinstance(jwks, list):
        raise provider_error(TOPIC, "no list of keys")
    if len(jwks) > MAX_KEYS:
        raise provider_error(TOPIC, "too many keys")
    keys = [key for jwk in jwks if isinstance(jwk, dict) and (key := _published(jwk)) is not None]
    if not keys:
        raise provider_error(TOPIC, "no usable key")
    return keys


def _published(jwk: Mapping[str, Any]) -> PublishedKey | None:
    kty, crv, kid, alg = (jwk.get(name) for name in ("kty", "crv", "kid", "alg"))
    if not all(isinstance(value, str | None) for value in (kty, crv, kid, alg)):
        return None
    algorithms = ALGORITHMS.get((kty, None if kty == "RSA" else crv))
    if algorithms is None or alg not in {None, *algorithms} or not _for_signatures(jwk):
        return None
    try:
        with warnings.catch_warnings():
            # joserfc warns about keys that are too short; as errors, the warnings exclude these keys.
            warnings.simplefilter("error", SecurityWarning)
            key = import_key({name: jwk[name] for name in _PUBLIC_MEMBERS if name in jwk})
    except (JoseError, SecurityWarning, ValueError, TypeError, KeyError):
        return None
    return PublishedKey(key, kid, algorithms)


def _for_signatures(jwk: Mapping[str, Any]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return jwk.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
