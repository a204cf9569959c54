"""The close codes of a WebSocket, and the close for each error of authentication."""

from typing import NamedTuple

from resolvers.errors import (
    Forbidden,
    GatewayError,
    InvalidToken,
    RateLimited,
    ServerError,
    TemporarilyUnavailable,
    Unauthenticated,
)
from schema.charging import MAX_SHORT_BYTES
from schema.transport.long_lived import TokenEnd

SUBPROTOCOL = "graphql-transport-ws"


class Close(NamedTuple):
    """The close code and the reason text of a socket. The reason has at most 123 bytes (RFC 6455, 5.5)."""

    code: int
    reason: str
    after_changes: bool = False
    """Whether running mutations are answered before the close. They are completed in any case."""


# The codes are chosen by the behaviour of `graphql-ws`, the client of the protocol's authors; other clients may differ.
# At 4400, 4401, 4406, 4409, 4429, 4500 and most of 1000 to 1999 it gives up and reports to the application. At 1001,
# 1012, 1013, 4403 and 4408 it reconnects, and requests a token from the application again. Therefore 4401 means that
# the client sent no token, and 4403 that it needs another one.
RESTARTING = Close(1012, "The gateway is restarting; connect again.", after_changes=True)
TOO_MANY_SOCKETS = Close(1013, "Too many sockets are open; try again later.")
EVICTED = Close(1013, "Too many unauthenticated sockets are open; try again later.")
TOO_SLOW = Close(1013, "The client did not read a message in time.")
BINARY = Close(4400, "A message must be text.")
NOT_ACKNOWLEDGED = Close(4401, "The first message must be connection_init.")
TOKEN_ENDED = {why: Close(4403, f"invalid_token: {why}.", after_changes=True) for why in TokenEnd}
TOO_LONG_BEFORE_SIGN_IN = Close(
    4400, f"Before connection_ack, a message may have at most {MAX_SHORT_BYTES:,} characters."
)
OTHER_SUBPROTOCOL = Close(4406, f"The only supported subprotocol is {SUBPROTOCOL}.")
NOT_INTRODUCED = Close(4408, "connection_init did not arrive in time.")
ID_IN_USE = Close(4409, "An operation with this id is running.")
INTRODUCED_TWICE = Close(4429, "connection_init must be sent once.")
OUR_FAULT = Close(4500, ServerError.code)
GONE = Close(1006, "")
"""The client has disconnected, so no close frame is sent."""


def close_for(error: GatewayError) -> Close:
    """Return the close for a socket whose caller failed to authenticate."""
    match error:
        case Unauthenticated():
            return Close(4401, error.code)
        case InvalidToken() | Forbidden():
            return Close(4403, error.code)
        case RateLimited() | TemporarilyUnavailable():
            return Close(1013, error.code)
        case _:
            return OUR_FAULT
