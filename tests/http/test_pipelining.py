"""Pipelined requests behind one that is still running, and clients that read slowly."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from gateway.protocols.http import LimitedHttpProtocol
from tests.controlled_schema import CONTROL, TOKENS, Control, Tokens, controlled_gateway
from tests.logs import captured_logs
from tests.waiting import wait_until
from tests.websocket_client import TIMEOUT_SECONDS, GatewayServer

HOLD = "mutation { hold }"
WAIT = "subscription { wait }"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPGRADE = (
    b"GET /graphql HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
)
RECEIVE_BYTES = 64 * 1024
"""The client's receive buffer, in bytes: small, so that the gateway soon notices unread data."""
PING = b'\x81\x90\x00\x00\x00\x00{"type": "ping"}'


@pytest.fixture
def control() -> Control:
    CONTROL.__init__()  # type: ignore[misc]
    return CONTROL


@pytest.fixture
def tokens() -> Tokens:
    TOKENS.__init__()  # type: ignore[misc]
    TOKENS.give("dev")
    return TOKENS


@pytest.fixture(scope="module")
async def sockets(database_url: str) -> AsyncIterator[GatewayServer]:
    async with controlled_gateway(
        database_url, sockets_max=1, stream_heartbeat_seconds=60, max_answer_bytes=64_000_000
    ) as serving:
        yield serving


@pytest.fixture
def impatient(sockets: GatewayServer, tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> GatewayServer:
    """A gateway with a head timeout of a tenth of a second."""
    monkeypatch.setattr(LimitedHttpProtocol, "head_seconds", 0.1)
    return sockets


def asked(query: str, accept: str = "application/json") -> bytes:
    body = json.dumps({"query": query}).encode()
    return (
        b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev\r\nContent-Type: application/json\r\n"
        b"Accept: %b\r\nContent-Length: %d\r\n\r\n%b" % (accept.encode(), len(body), body)
    )


STREAM = asked(WAIT, "text/event-stream")


@asynccontextmanager
async def connected(
    sockets: GatewayServer, **options: Any
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    client.connect(("127.0.0.1", sockets.port))
    reader, writer = await asyncio.open_connection(sock=client, **options)
    try:
        async with asyncio.timeout(3 * TIMEOUT_SECONDS):
            yield reader, writer
    finally:
        writer.transport.abort()


async def nothing_received(reader: asyncio.StreamReader, seconds: float = 0.3) -> bool:
    """Whether nothing is received for `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize(
    "behind",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\r\n",
        b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000,
        b"GET /healthz HTTP/1.1\r\nHo",
        UPGRADE,
        HEALTH,
    ],
    ids=["no host", "not HTTP", "an invalid chunk", "a large head", "half a head", "an upgrade", "a request"],
)
@pytest.mark.parametrize("together", [True, False], ids=["in one segment", "later"])
async def test_no_byte_precedes_the_answer_to_an_earlier_request(
    impatient: GatewayServer, control: Control, behind: bytes, together: bool
) -> None:
    sockets = impatient
    async with connected(sockets) as (reader, writer):
        writer.write(asked(HOLD) + behind if together else asked(HOLD))
        await control.entered.wait()
        if not together:
            writer.write(behind)
        assert await nothing_received(reader)
        control.gate.set()

        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert json.loads(await reader.readuntil(b"}}")) == {"data": {"hold": "done"}}
    assert control.done == ["hold"]


async def test_an_upgrade_after_a_request_begins_after_its_answer(
    sockets: GatewayServer, control: Control, tokens: Tokens
) -> None:
    async with connected(sockets) as (reader, writer):
        # The client's first message is in the same segment.
        writer.write(asked(HOLD) + UPGRADE + PING)
        await control.entered.wait()
        control.gate.set()
        await reader.readuntil(b"}}")

        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert b"pong" in await reader.readuntil(b"}")


async def test_the_timeout_of_a_pipelined_head_begins_after_the_previous_answer(
    sockets: GatewayServer, control: Control, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedHttpProtocol, "head_seconds", 0.5)
    async with connected(sockets) as (reader, writer):
        writer.write(asked(HOLD) + HEALTH[:10])
        await control.entered.wait()
        assert await nothing_received(reader, 1)
        control.gate.set()
        await reader.readuntil(b"}}")
        writer.write(HEALTH[10:])

        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        await reader.readuntil(b"}")
        writer.write(HEALTH[:10])
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "behind",
    [HEALTH, HEALTH * 20_000, STREAM, UPGRADE, HEALTH[:10]],
    ids=["a request", "very many", "a stream", "an upgrade", "half a head"],
)
@pytest.mark.parametrize("together", [True, False], ids=["in one segment", "later"])
async def test_a_closed_stream_frees_its_slot_despite_pipelined_requests(
    sockets: GatewayServer, control: Control, tokens: Tokens, behind: bytes, together: bool
) -> None:
    with captured_logs() as lines:
        async with connected(sockets) as (reader, writer):
            writer.write(STREAM + behind if together else STREAM)
            assert b"begun" in await reader.readuntil(b"begun")
            if not together:
                writer.write(behind)
                await writer.drain()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        await wait_until(lambda: control.done == ["wait"], TIMEOUT_SECONDS)
        async with connected(sockets) as (reader, writer):
            writer.write(STREAM)
            assert b" 200 " in await reader.readline()
        await wait_until(lambda: control.done == ["wait", "wait"], TIMEOUT_SECONDS)

    assert {line["event"] for line in lines} <= {"request", "operation"}
    assert {line["level"] for line in lines} == {"info"}


async def test_pipelined_bytes_are_bounded(sockets: GatewayServer, control: Control, tokens: Tokens) -> None:
    many = HEALTH * 10_000
    sent = 0
    async with connected(sockets) as (reader, writer):
        writer.write(asked(HOLD))
        await control.entered.wait()
        try:
            while sent < 60 * 2**20:
                writer.write(many)
                sent += len(many)
                async with asyncio.timeout(0.5):
                    await writer.drain()
        except TimeoutError:
            pass
        # The unread bytes fill the buffers of two kernels.
        assert sent < 30 * 2**20
        control.gate.set()

        await reader.readuntil(b"}}")
        for _ in range(1_000):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await reader.readuntil(b"}")


# Clients that read slowly


@pytest.mark.parametrize("cut_off", [True, False])
async def test_a_client_that_reads_too_slowly_is_disconnected(
    sockets: GatewayServer, tokens: Tokens, cut_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 15_000_000
    monkeypatch.setattr(LimitedHttpProtocol, "send_seconds", 0.3)
    # As long as the client reads between two measurements, only its rate matters.
    monkeypatch.setattr(LimitedHttpProtocol, "min_send_bytes_per_second", 50_000_000 if cut_off else 1_000)
    received = 0

    async with connected(sockets, limit=1024) as (reader, writer):
        writer.write(asked(f"{{ long(characters: {size}) }}"))
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            for _ in range(20):
                received += len(await reader.readexactly(100_000))
                await pause_reading(0.05)
            while piece := await reader.read(2**20):
                received += len(piece)
                if received > size:
                    break

    assert (received < size) is cut_off


async def pause_reading(seconds: float) -> None:
    """Read nothing for `seconds`, which is the condition under test."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


async def test_a_closing_connection_does_not_wait_for_an_unread_answer(
    sockets: GatewayServer, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedHttpProtocol, "send_seconds", 0.3)
    state = sockets.server.server_state
    await wait_until(lambda: not state.connections, TIMEOUT_SECONDS)

    async with connected(sockets, limit=1024) as (_, writer):
        closing = asked("{ long(characters: 15000000) }").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        writer.write(closing)
        await wait_until(lambda: bool(state.connections), TIMEOUT_SECONDS)
        await wait_until(lambda: not state.connections, TIMEOUT_SECONDS)
