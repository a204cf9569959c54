"""A thousand unauthenticated WebSockets: authenticated clients are served."""

import asyncio

import pytest

from tests.controlled_schema import CONTROL, TOKENS, controlled_gateway
from tests.sse_client import open_stream
from tests.websocket_client import GatewayServer

FLOOD = 1_000
WAIT = "subscription { wait }"
UPGRADE = (
    b"GET /graphql HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\nX-Forwarded-For: %b\r\n\r\n"
)


@pytest.fixture(autouse=True)
def _reset() -> None:
    CONTROL.__init__()  # type: ignore[misc]
    TOKENS.__init__()  # type: ignore[misc]
    TOKENS.give("dev")


async def flood(sockets: GatewayServer, address: str, opened: asyncio.Event, over: asyncio.Event) -> None:
    """Hold as many unauthenticated WebSockets open as the flood has, until it is over."""
    writers: list[asyncio.StreamWriter] = []
    for _ in range(FLOOD):
        reader, writer = await asyncio.open_connection("127.0.0.1", sockets.port)
        writers.append(writer)
        writer.write(UPGRADE % address.encode())
        assert b" 101 " in await reader.readline()
        if over.is_set():
            break
    opened.set()
    await over.wait()
    for writer in writers:
        writer.transport.abort()


async def test_unauthenticated_websockets_keep_out_no_websocket_and_no_stream(database_url: str) -> None:
    opened, over = asyncio.Event(), asyncio.Event()
    async with (
        controlled_gateway(database_url) as sockets,
        sockets.authenticated() as before,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(flood(sockets, "127.0.0.1", opened, over))
        await opened.wait()
        async with sockets.authenticated() as websocket:
            await websocket.ask("{ __typename }")
        async with open_stream(f"http://127.0.0.1:{sockets.port}", WAIT) as stream:
            assert stream.response.status_code == 200
            await stream.receive()
        await before.ask("{ __typename }")
        over.set()


async def test_a_flood_from_one_address_evicts_no_other_address(database_url: str) -> None:
    opened, over = asyncio.Event(), asyncio.Event()
    async with (
        controlled_gateway(database_url, sockets_unauthenticated_max=20) as sockets,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(flood(sockets, "192.0.2.1", opened, over))
        for _ in range(20):
            async with sockets.authenticated(headers={"X-Forwarded-For": "192.0.2.2"}) as websocket:
                await websocket.ask("{ __typename }")
        over.set()
