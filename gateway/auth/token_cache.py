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

# Visible ASCII, as a header can carry it; nobody is asked about anything else.
TOKEN = re.compile(rf"[\x21-\x7e]{{1,{MAX_TOKEN_CHARACTERS}}}")


REJECTED_SECONDS = 5.0
"""How long a token that was found worthless is not asked about again."""


MAX_CACHED = 10_000
"""Good tokens that are remembered, and worthless ones: apart, so that a flood of these washes out none of those."""


Thing = TypeVar("Thing")


class TokenCache:
    """Verifies a token once for everyone who brings it, and again when that was too long ago.

    What is kept is a hash of the token. A judge who cannot answer leaves no trace: the next caller asks again.
    """

    def __init__(self, verifier: Verify, *, seconds: float, clock: Clock) -> None:
        self._verify = verifier
        self._seconds = seconds
        self._clock = clock
        self._valid: TtlCache[Caller] = TtlCache(MAX_CACHED)
        self._rejected: TtlCache[bool] = TtlCache(MAX_CACHED)
        self._single_flight: SingleFlight[bytes, Caller] = SingleFlight()

    async def verify(self, token: str) -> Caller:
        """Give whom a token stands for. Raises `InvalidToken` or `TemporarilyUnavailable`."""
        if not TOKEN.fullmatch(token):
            raise InvalidToken
        digest = sha256(token.encode()).digest()
        now = self._clock.monotonic()
        caller = self._valid.get(digest, now)
        # The other clock is asked too: a machine that slept does not count its sleep.
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
        """How long to believe that the caller is who they are: to the token's end, and never long."""
        if caller.expires_at is None:
            return self._seconds
        return min(caller.expires_at.timestamp() - self._clock.time(), self._seconds)

    async def close(self) -> None:
        """Call back whoever is being asked."""
        await self._single_flight.close()


class TtlCache(Generic[Thing]):
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
