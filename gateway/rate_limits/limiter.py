"""Rate limits: requests of a client per minute, and attempts of an address before the client is authenticated."""

import time
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address, IPv6Network, ip_address
from math import ceil
from typing import Self

from gateway.rate_limits.sliding_window import Clock, InMemorySlidingWindow, TokenBucket, Window
from gateway.settings import Settings
from resolvers.access import Caller, Verify
from resolvers.errors import InvalidToken, RateLimited
from resolvers.rate_limits import Allowance, Kind

WINDOW_SECONDS = 60
MAX_PROVEN_TOKENS = 10_000
PARSING_AT_ONCE_SECONDS = 5
"""Burst of CPU time for parsing, in seconds of refill; for a client whose documents are all new to the gateway."""
BYTES_AT_ONCE_SECONDS = 5
"""Burst of answer bytes, in seconds of refill."""
UNCOUNTED_BYTES = 64 * 1024
"""Bytes of each answer that are not counted; the limit on the number of requests bounds them."""
UNCOUNTED_SECONDS = 0.001
"""Seconds of CPU time of each request that are not counted; the limit on the number of requests bounds them.

Most requests take less.
"""


class RateLimits:
    """Counters of the requests of each client, for both doors together, and of the attempts of each address.

    An address is only charged for tokens that have not been verified before. Each process counts addresses separately.
    So a hospital behind one address is not blocked by a neighbour's guesses, or by a device with an old token. Verified
    tokens pass, and only unknown tokens have to wait. The count per address is coarse, because concurrent guesses are
    counted when they fail.

    Args:
        limits: Units of each kind that a client may use in a window. 0: no limit.
        window: Counter of the clients' units.
        address_limit: Unverified tokens that an address may try in a window. 0: no limit.
        failure_limit: Rejected tokens of an address in a window, after which its unverified tokens must wait. 0: no
            limit.
        parsing_ms: Milliseconds of CPU time for parsing that a client may use in a window. 0: no limit.
        answer_bytes: Bytes of responses that a client may use in a window. 0: no limit.
        seconds: Length of the window.
        clock: Monotonic clock in seconds.

    """

    def __init__(
        self,
        limits: Mapping[Kind, int],
        window: Window,
        *,
        address_limit: int,
        failure_limit: int,
        parsing_ms: int,
        answer_bytes: int,
        seconds: int,
        clock: Clock = time.monotonic,
    ) -> None:
        self._limits = limits
        self._window = window
        self._address_limit = address_limit
        self._failure_limit = failure_limit
        self._seconds = seconds
        per_second = parsing_ms / 1_000 / seconds
        self._parsing = TokenBucket(per_second, per_second * PARSING_AT_ONCE_SECONDS, clock) if parsing_ms else None
        per_second = answer_bytes / seconds
        self._answers = TokenBucket(per_second, per_second * BYTES_AT_ONCE_SECONDS, clock) if answer_bytes else None
        self._tried = InMemorySlidingWindow(seconds, clock)
        self._failed = InMemorySlidingWindow(seconds, clock)
        self._proven: dict[bytes, None] = {}  # hashes of verified tokens, oldest first

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the rate limits that the settings configure."""
        window: Window = InMemorySlidingWindow(WINDOW_SECONDS)
        if settings.rate_limit_url:
            # Imported here: its libraries are an optional dependency.
            from gateway.rate_limits.redis_window import RedisSlidingWindow

            window = RedisSlidingWindow(settings.rate_limit_url.get_secret_value(), WINDOW_SECONDS)
        return cls(
            {Kind.READS: settings.rate_reads_per_minute, Kind.WRITES: settings.rate_writes_per_minute},
            window,
            address_limit=settings.rate_address_per_minute,
            failure_limit=settings.rate_failed_sign_ins_per_minute,
            parsing_ms=settings.rate_parsing_ms_per_minute,
            answer_bytes=settings.rate_answer_bytes_per_minute,
            seconds=WINDOW_SECONDS,
        )

    async def close(self) -> None:
        """Close the window of the clients."""
        await self._window.close()

    async def spend(self, client_id: str, kind: Kind, units: int = 1) -> Allowance:
        """Count a request and return the client's allowance. A request above the limit is not granted or counted."""
        limit = self._limits[kind]
        if kind is Kind.READS and self._answers and (wait := self._answers.wait_seconds(client_id)):
            return Allowance(kind, limit, self._seconds, remaining=0, more_in_seconds=wait, granted=False)
        if limit == 0:
            return Allowance(kind, 0, self._seconds, remaining=0, more_in_seconds=0)
        taken = await self._window.take(f"{kind}/{client_id}", limit, units)
        return Allowance(kind, limit, self._seconds, taken.remaining, taken.more_in_seconds, taken.granted)

    async def release(self, client_id: str, kind: Kind, units: int = 1) -> None:
        """Return granted units to the client's allowance."""
        if limit := self._limits[kind]:
            await self._window.release(f"{kind}/{client_id}", limit, units)

    def note_answer(self, client_id: str, count: int) -> None:
        """Count the bytes of a client's answer, and of the rows that it was built from."""
        if self._answers and count > UNCOUNTED_BYTES:
            self._answers.use(client_id, count - UNCOUNTED_BYTES)

    def note_parsing(self, client_id: str, seconds: float) -> None:
        """Count the CPU time of parsing and validating a client's request."""
        if self._parsing and seconds > UNCOUNTED_SECONDS:
            self._parsing.use(client_id, seconds - UNCOUNTED_SECONDS)

    def parsing_wait(self, client_id: str) -> float:
        """Return the seconds until another document of the client may be parsed; 0 if one may be parsed now."""
        return self._parsing.wait_seconds(client_id) if self._parsing else 0

    async def verified(self, token: str, address: str | None, verify: Verify) -> Caller:
        """Verify a token and return its caller.

        Raises `RateLimited` if the address has exceeded its attempts or failures, and the exceptions of `verify`.
        """
        network = network_of(address)
        if network is None:
            return await verify(token)
        proof = sha256(token.encode()).digest()
        if proof not in self._proven:
            await self._try_from(network)
        try:
            caller = await verify(token)
        except InvalidToken:
            self._proven.pop(proof, None)
            await self._failed.take(network, self._failure_limit, 1)
            raise
        self._proven[proof] = None
        if len(self._proven) > MAX_PROVEN_TOKENS:
            del self._proven[next(iter(self._proven))]
        return caller

    async def _try_from(self, network: str) -> None:
        if self._failure_limit and (seconds := self._failed.wait_seconds(network, self._failure_limit)):
            raise RateLimited(seconds)
        if self._address_limit:
            taken = await self._tried.take(network, self._address_limit, 1)
            if not taken.granted:
                raise RateLimited(taken.more_in_seconds)


@lru_cache(4096)
def network_of(address: str | None) -> str | None:
    """Return the network of one caller: the IPv4 address, or the /64 prefix of the IPv6 address.

    Return None for loopback and for a socket without addresses. The caller is then a developer, or a proxy that does
    not forward client addresses; a limit would block all callers behind the proxy together.
    """
    try:
        ip = ip_address((address or "").partition("%")[0])
    except ValueError:
        return None
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_loopback:
        return None
    return str(IPv6Network((ip, 64), strict=False)) if isinstance(ip, IPv6Address) else str(ip)


def headers_of(allowance: Allowance) -> list[tuple[bytes, bytes]]:
    """Return the response headers for an allowance: `X-RateLimit-*` for older clients, and those of the IETF draft.

    `X-RateLimit-Reset` is in seconds since 1970. The window slides: at the reset more units are available than now, but
    not all of them. Source: draft-ietf-httpapi-ratelimit-headers-10.
    """
    reset_at = ceil(time.time() + allowance.more_in_seconds)
    left = f'"{allowance.kind}";r={allowance.remaining};t={ceil(allowance.more_in_seconds)}'
    policy = f'"{allowance.kind}";q={allowance.limit};w={allowance.window_seconds}'
    return [
        (b"x-ratelimit-remaining", b"%d" % allowance.remaining),
        (b"x-ratelimit-reset", b"%d" % reset_at),
        (b"ratelimit-policy", policy.encode()),
        (b"ratelimit", left.encode()),
    ]
