"""The public keys that an issuer signs with (RFC 7517): fetched when first needed, and as its keys change.

A token may name any key id, so tokens cause fetches at a bounded rate. A token is refused for its key only when the
keys were fetched for it; while they may not be fetched again, its caller is asked to try again.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import Key, import_key

from gateway.auth.identity_provider import Provider, provider_error
from gateway.auth.single_flight import SingleFlight
from gateway.auth.token_claims import Clock
from resolvers.errors import TemporarilyUnavailable

TOPIC = "key set"
MAX_SET_BYTES = 1024 * 1024
MAX_KEYS = 100
"""Reading a key takes some 100 µs, in which nothing else is served."""

MAX_AGE_SECONDS = 600.0
"""How long a key that the issuer has taken back may go on."""

LOOKUP_PAUSE_SECONDS = 5.0
"""Seconds between an answer of the issuer and the next fetch for an unknown key id; a new key is found within them."""

LOOKUP_PAUSE_WITHOUT_KEYS_SECONDS = 1.0
"""The same while there is no key at all, and so nothing to serve."""

RETRY_SECONDS = 30.0
"""The same where the keys are past their age and the issuer did not answer: every caller waits for such a fetch."""

ALGORITHMS: Mapping[tuple[str | None, str | None], frozenset[str]] = {
    ("RSA", None): frozenset({"RS256"}),
    ("EC", "P-256"): frozenset({"ES256"}),
    # Two names of one algorithm. Source: RFC 9864.
    ("OKP", "Ed25519"): frozenset({"EdDSA", "Ed25519"}),
}
"""The algorithms that are accepted, by the type and curve of their keys."""

# Whatever else an issuer publishes, a private part included, is not for us.
_PUBLIC_MEMBERS = ("kty", "crv", "x", "y", "n", "e")


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """A key that signatures may be verified with, and by which algorithms."""

    key: Key
    kid: str | None
    algorithms: frozenset[str]


class KeySet:
    """An issuer's keys, as last seen."""

    def __init__(self, provider: Provider, *, url: str, clock: Clock) -> None:
        self._provider = provider
        self._url = url
        self._clock = clock
        self._keys: Sequence[PublishedKey] = ()
        self._fetched_at: float | None = None
        self._answered_at: float | None = None
        self._single_flight: SingleFlight[str, bool] = SingleFlight()

    async def matching_keys(self, algorithm: str, kid: str | None) -> list[Key]:
        """Return the keys that a signature may be of: those with this id or, where it names none, the only one.

        None match where the issuer, asked for this token, has none. Raises `TemporarilyUnavailable` where none match
        and the issuer does not answer, or was asked so lately that it is not asked again.
        """
        is_fresh = self._is_stale and await self._refresh(RETRY_SECONDS)
        keys = self._find(algorithm, kid)
        if not keys and not is_fresh:
            is_fresh = await self._refresh(LOOKUP_PAUSE_SECONDS)
            keys = self._find(algorithm, kid)
        if not keys and not is_fresh:
            raise TemporarilyUnavailable("The key of this token cannot be looked up just now; try again shortly.")
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
        """Fetch the keys, or wait for a fetch under way; return whether that succeeded. If not, the old ones go on.

        The issuer is not asked within `pause` seconds after it answered, or failed to.
        """
        pause = pause if self._keys else LOOKUP_PAUSE_WITHOUT_KEYS_SECONDS
        if self._answered_at is not None and self._clock.monotonic() - self._answered_at < pause:
            return False
        return await self._single_flight.run(self._url, self._fetch)

    async def _fetch(self) -> bool:
        try:
            self._keys = _usable((await self._provider.fetch(TOPIC, self._url, max_bytes=MAX_SET_BYTES)).get("keys"))
            self._fetched_at = self._clock.monotonic()
        except TemporarilyUnavailable:
            return False
        finally:
            # Not before: who comes while the answer is under way waits for it.
            self._answered_at = self._clock.monotonic()
        return True

    async def close(self) -> None:
        """Call back a fetch that is under way."""
        await self._single_flight.close()


def _usable(jwks: object) -> list[PublishedKey]:
    """Read the keys of a set and leave out those that are not for us (RFC 7517 section 5). There must be one."""
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
            # joserfc warns of keys that are too short: those are not used.
            warnings.simplefilter("error", SecurityWarning)
            key = import_key({name: jwk[name] for name in _PUBLIC_MEMBERS if name in jwk})
    except (JoseError, SecurityWarning, ValueError, TypeError, KeyError):
        return None
    return PublishedKey(key, kid, algorithms)


def _for_signatures(jwk: Mapping[str, Any]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return jwk.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
