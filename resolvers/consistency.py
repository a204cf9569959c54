"""Reads from replicas: how recent they must be, and the marker that an answer to a change carries.

A marker is a position in the primary's write-ahead log, after the change. A read that brings it is answered from a
server that has come that far. The process supplies the replicas (`Replicas`); without them no answer has a marker.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from resolvers.errors import GatewayError, InvalidInput, Violation
from resolvers.feed_cursors import FeedCursors
from resolvers.paging import digest_of
from resolvers.sql import Database

HEADER = "X-Consistency"

# One block: the position, the timeline, a check, and a salt. Without the salt, equal markers would tell a client that
# no other brand has written between them.
POSITION_BYTES, TIMELINE_BYTES, CHECK_BYTES, SALT_BYTES = 7, 2, 4, 3
_CHECK = digest_of("consistency")[:CHECK_BYTES]


class Marker(NamedTuple):
    """A position in the log of a server."""

    timeline: int
    """The timeline of the log; each promotion of a standby begins a new one, from 1. Modulo 65,536."""
    position: int
    """Bytes from the start of the log."""


UNKNOWN = Marker(0, 0)
"""The marker if the position could not be read. No timeline is 0, so only the primary answers a read that brings it."""


class Reads(Protocol):
    """Where one request reads: on one replica that is recent enough, or else on the primary."""

    @property
    def requests(self) -> Database:
        """The connections of requests."""

    @property
    def worklists(self) -> Database:
        """The connections of worklists."""


class Replicas(Protocol):
    """The replicas of the process."""

    def reads(self, consistency: "Consistency") -> Reads:
        """Return where a request reads."""

    async def position(self, client_id: str) -> Marker:
        """Return the primary's current position, and remember it for later reads of the client. Never raises."""


class Consistency:
    """The consistency of one request: what it needs of a replica, and whether it changes anything.

    Args:
        replicas: None without replicas; the request then only has its marker checked.
        client_id: The client, whose later reads see this request's change without a marker.
        cursors: Returns the codec under the key of the database.
        sent: The marker in the request's header.
    """

    def __init__(
        self,
        replicas: Replicas | None,
        client_id: str,
        cursors: Callable[[], Awaitable[FeedCursors]],
        sent: str | None,
    ) -> None:
        self.client_id = client_id
        self.needed: list[Marker] = []
        """The markers that the request brought, once `require` has read them."""
        self._replicas = replicas
        self._cursors = cursors
        self._sent = sent
        self._changes = False
        self._marker: str | None = None
        self._reads: Reads | None = None

    def of_operation(self) -> "Consistency":
        """Return the consistency of a further operation on the same connection."""
        return Consistency(self._replicas, self.client_id, self._cursors, self._sent)

    async def require(self, extension: str | None = None) -> None:
        """Read the markers of the request: the header's, and the one in its `extensions`.

        Raises `InvalidInput` for a text that is not a marker, or `TemporarilyUnavailable`.
        """
        if self._sent is not None:
            self.needed.append(await self._read(self._sent, "/x_consistency"))
            self._sent = None
        if extension is not None:
            self.needed.append(await self._read(extension, "/extensions/consistency"))

    async def _read(self, text: str, pointer: str) -> Marker:
        marker = read_marker(text, await self._cursors())
        if marker is None:
            message = "must be a marker that this gateway returned, unchanged"
            raise InvalidInput([Violation(pointer, "consistency", message)])
        return marker

    def begin_change(self) -> None:
        """Read from the primary from now on, and give the answer a marker."""
        self._changes = True
        self._marker = None

    @property
    def reads(self) -> Reads | None:
        """Where the request reads; None for the primary."""
        if self._replicas is None or self._changes:
            return None
        if self._reads is None:
            self._reads = self._replicas.reads(self)
        return self._reads

    async def marker(self) -> str | None:
        """Return the marker of the answer; None if the request changes nothing. Never raises."""
        if not self._changes:
            return None
        if self._marker is None:
            self._marker = await self.current()
        return self._marker

    async def current(self) -> str | None:
        """Return a marker of all that is committed by now; None without replicas. Never raises."""
        if self._replicas is None:
            return None
        marker = await self._replicas.position(self.client_id)
        try:
            return write_marker(marker, await self._cursors())
        except GatewayError:
            return None  # the process has not yet read its key, and the database is away since


def write_marker(marker: Marker, cursors: FeedCursors) -> str:
    """Return the opaque text of a marker. A position would tell a client how much the other brands write."""
    return cursors.seal(
        marker.position.to_bytes(POSITION_BYTES)
        + (marker.timeline % 2 ** (8 * TIMELINE_BYTES)).to_bytes(TIMELINE_BYTES)
        + _CHECK
        + secrets.token_bytes(SALT_BYTES)
    )


def read_marker(text: str, cursors: FeedCursors) -> Marker | None:
    """Return the marker of a text; None if it is not one. One from before a restore of the database is `UNKNOWN`."""
    for number, block in enumerate(cursors.unseal(text)):
        position, rest = block[:POSITION_BYTES], block[POSITION_BYTES:]
        timeline, check = rest[:TIMELINE_BYTES], rest[TIMELINE_BYTES:-SALT_BYTES]
        if check == _CHECK:
            return UNKNOWN if number else Marker(int.from_bytes(timeline), int.from_bytes(position))
    return None


def newest(markers: Sequence[Marker], timeline: int) -> int | None:
    """Return the position that covers all markers; None if one is of another timeline than this."""
    if any(marker.timeline != timeline for marker in markers):
        return None
    return max((marker.position for marker in markers), default=0)
