"""What the tests of the sockets share."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.controlled_schema import CONTROL, TOKENS, Control, Tokens, controlled_gateway
from tests.websocket_client import GatewayServer


@pytest.fixture
def control() -> Iterator[Control]:
    """A stage on which nothing has happened yet; whoever is held there is let go in the end."""
    CONTROL.__init__()  # type: ignore[misc]
    yield CONTROL
    CONTROL.gate.set()


@pytest.fixture
def tokens() -> Tokens:
    """Tokens of which there is one: `dev` may do everything."""
    TOKENS.__init__()  # type: ignore[misc]
    TOKENS.give("dev")
    return TOKENS


@pytest.fixture(scope="module")
async def impatient(database_url: str) -> AsyncIterator[GatewayServer]:
    async with controlled_gateway(
        database_url, socket_recheck_seconds=0.2, socket_init_seconds=0.5, socket_send_seconds=0.5
    ) as serving:
        yield serving


@pytest.fixture
def sockets(impatient: GatewayServer, control: Control, tokens: Tokens) -> GatewayServer:
    """A gateway whose patience is short."""
    return impatient
