"""What the server, the middleware and the doors store about a request in `scope["state"]` (ASGI)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from resolvers.access import Caller
from resolvers.context import Context, Credentials
from resolvers.rate_limits import Allowance
from resolvers.services import Services
from resolvers.sql import RelayDatabase


class NodeCount(NamedTuple):
    """Nodes of a cluster, the coordinator among them."""

    answering: int
    """Those that the coordinator reaches."""
    of: int

    @property
    def ok(self) -> bool:
        """Whether every node answers."""
        return self.answering == self.of


class RequestState(TypedDict):
    """The state of a request or a WebSocket. The process's own state comes first."""

    services: Services
    ping: Callable[[], Awaitable[None]]
    """Returns if the database accepts writes. Raises `TemporarilyUnavailable`."""
    nodes: Callable[[], NodeCount | None]
    """Returns how many nodes answer; None on one server, or while unknown."""
    relay: RelayDatabase
    started: float
    """Start of the process, in seconds of the monotonic clock."""
    draining: asyncio.Event
    """Set when the process begins to shut down."""

    head: dict[str, str]
    """Header fields by lower-case name; the lines of a field are joined. Source: RFC 9110, 5.3."""
    sends_json: bool
    """Whether the head announces an uncompressed JSON body in UTF-8."""
    request_id: str
    introduction: Credentials

    caller: NotRequired[Caller]
    context: NotRequired[Context]
    allowance: NotRequired[Allowance]
    handling: NotRequired[Literal["strict", "lenient"]]
    """The effective preference. Source: RFC 7240, 4.4."""
    ignored: NotRequired[list[str]]
    """Ignored names, which the answer lists."""
    operations: NotRequired[int]
    """Operations so far on this WebSocket."""
    status: NotRequired[int]
    """Status of the response, once it has started."""


def state_of(scope: Mapping[str, Any]) -> RequestState:
    """Return the state of an ASGI scope."""
    state: RequestState = scope["state"]
    return state
