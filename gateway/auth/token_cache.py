"""Cache of verified and rejected tokens, by the hash of the token."""

import re
from collections import OrderedDict
from functools import partial
from hashlib import sha256
from typing import Generic, TypeVar

from gateway.auth.single_flight import SingleFlight
from gateway.auth.token_claims import MAX_TOKEN_CHARACTERS, Clock
from resolvers.access import Caller, Verify
from resolvers.errors import InvalidToken

# Visible ASCII, which a header field can carry. Any other text is rejected without verification.
TOKEN = re.compile(rf"[\x21-\x7e]{{1,{MAX_TOKEN_CHARACTERS}}}")


REJECTED_SECONDS = 5.0
"""Seconds for which a rejected token is not verified again."""


MAX_CACHED = 10_000
"""Size of each cache. Valid and rejected tokens are cached separately, so invalid tokens cannot evict valid ones."""


Value = TypeVar("Value")


class TokenCache:
    """Cache of a verifier's results. A token is verified again when its result has expired.

    The key is a hash of the token. An error of the verifier is not cached: the next caller verifies again.
    """

    def __init__(self, verifier: Verify, *, seconds: float, clock: Clock) -> None:
        self._verify = verifier
        self._seconds = seconds
        self._clock = clock
        self._valid: TtlCache[Caller] = TtlCache(MAX_CACHED)
        self._rejected: TtlCache[bool] = TtlCache(MAX_CACHED)
        self._single_flight: SingleFlight[bytes, Caller] = SingleFlight()

    async def verify(self, token: str) -> Caller:
        """Return the caller of a token. Raises `InvalidToken` or `TemporarilyUnavailable`."""
        if not TOKEN.fullmatch(token):
            raise InvalidToken
        digest = sha256(token.encode()).digest()
        now = self._clock.monotonic()
        caller = self._valid.get(digest, now)
        # Check the wall clock as well: the monotonic clock may not advance while the machine sleeps.
        if caller is not None and self._seconds_left(caller) > 0:
            return caller
        if self._rejected.get(digest, now):
            raise InvalidToken
        return await self._single_flight.run(digest, partial(self._ask, digest, token))

    async def _ask(self, digest: bytes, token: str) -> Caller:
        try:
            caller = await self._verify(token)
        except InvalidToken:
            self._valid.forget(digest)
            self._rejected.keep(digest, True, self._clock.monotonic() + REJECTED_SECONDS)
            raise
        self._valid.keep(digest, caller, self._clock.monotonic() + self._seconds_left(caller))
        return caller

    def _seconds_left(self, caller: Caller) -> float:
        """Return the seconds for which the result may be cached: up to the token's expiry, and at most `seconds`."""
        if caller.expires_at is None:
            return self._seconds
        return min(caller.expires_at.timestamp() - self._clock.time(), self._seconds)

    async def close(self) -> None:
        """Cancel the verifications in flight."""
        await self._single_flight.close()


class TtlCache(Generic[Value]):
    """LRU cache of `most` entries, each with an expiry time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[bytes, tuple[Value, float]] = OrderedDict()

    def get(self, key: bytes, now: float) -> Value | None:
        """Return the value, or None if it is absent or expired at `now`."""
        value, until = self._entries.get(key, (None, now))
        if value is None:
            return None
        if until <= now:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def forget(self, key: bytes) -> None:
        """Remove the entry if it exists."""
        self._entries.pop(key, None)

    def keep(self, key: bytes, value: Value, until: float) -> None:
        """Insert or replace an entry that expires at `until`, and evict the least recently used one if necessary."""
        self._entries[key] = (value, until)
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)
