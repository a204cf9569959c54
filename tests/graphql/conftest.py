"""Fixtures of the WebSocket and event-stream tests."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.controlled_schema import CONTROL, TOKENS, Control, Tokens, controlled_gateway
from tests.websocket_client import GatewayServer


@pytest.fixture
def control() -> Iterator[Control]:
    """The state of the controlled schema, reset; operations that it holds are released after the test."""
    CONTROL.__init__()  # type: ignore[misc]
    yield CONTROL
    CONTROL.gate.set()


@pytest.fixture
def tokens() -> Tokens:
    """The known tokens, reset to one: `dev`, which has every permission."""
    TOKENS.__init__()  # type: ignore[misc]
    TOKENS.give("dev")
    return TOKENS


@pytest.fixture(scope="module")
async def short_timeouts(database_url: str) -> AsyncIterator[GatewayServer]:
    async with controlled_gateway(database_url, socket_recheck_seconds=0.2, socket_send_seconds=0.5) as serving:
        yield serving


@pytest.fixture
def sockets(short_timeouts: GatewayServer, control: Control, tokens: Tokens) -> GatewayServer:
    """A gateway with short timeouts."""
    return short_timeouts
