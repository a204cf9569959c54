"""Misbehaving WebSocket clients: each affects only its own socket, and its cost is bounded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from gateway.protocols.websocket import LimitedWebSocketProtocol
from tests.cast import Cast
from tests.controlled_schema import Control, Tokens, controlled_gateway
from tests.logs import captured_logs
from tests.sse_client import open_stream
from tests.waiting import wait_until
from tests.websocket_client import TIMEOUT_SECONDS, GatewayServer

# Invalid frames


@asynccontextmanager
async def raw_websocket(sockets: GatewayServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a WebSocket whose frames the test writes byte by byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sockets.port)
    writer.write(
        b"GET /graphql HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    try:
        async with asyncio.timeout(2 * TIMEOUT_SECONDS):
            yield reader, writer
    finally:
        writer.transport.abort()


INVALID_MESSAGES: list[Any] = [
    "",
    "no json",
    "null",
    "5",
    '"text"',
    "true",
    "[]",
    "{}",
    "[" * 100_000,
    "NaN",
    '{"type": null}',
    '{"type": 5}',
    '{"type": ["ping"]}',
    '{"type": "start"}',
    '{"type": "PING"}',
    '{"type": "ping", "type": "ping"}',
    '{"type": "ping", "payload": 5}',
    '{"type": "pong", "payload": []}',
    '{"type": "next", "id": "1", "payload": {}}',
    '{"type": "connection_ack"}',
    '{"type": "subscribe"}',
    '{"type": "subscribe", "payload": {"query": "{ __typename }"}}',
    '{"type": "subscribe", "id": "", "payload": {"query": "{ __typename }"}}',
    '{"type": "subscribe", "id": 1, "payload": {"query": "{ __typename }"}}',
    '{"type": "subscribe", "id": null, "payload": {"query": "{ __typename }"}}',
    '{"type": "subscribe", "id": "\\ud800", "payload": {"query": "{ __typename }"}}',
    '{"type": "subscribe", "id": "%s", "payload": {"query": "{ __typename }"}}' % ("x" * 257),
    '{"type": "subscribe", "id": "1", "payload": {"query": "{ a }", "query": "{ b }"}}',
    '{"type": "complete"}',
    '{"type": "complete", "id": {}}',
    '{"type": "ping"} {"type": "ping"}',
    b"",
    b'{"type": "ping"}',
]


@pytest.mark.parametrize("frame", INVALID_MESSAGES, ids=lambda frame: repr(frame)[:40])
async def test_an_invalid_message_closes_only_its_own_socket(
    sockets: GatewayServer, frame: str | bytes, control: Control
) -> None:
    async with sockets.authenticated() as well_behaved, sockets.authenticated() as other:
        await well_behaved.start("one", "subscription { wait }")
        await well_behaved.next("one")
        with captured_logs() as lines:
            await other.connection.send(frame)
            code, reason = await other.closed()
        control.gate.set()

        assert code == 4400
        assert reason
        assert [line["event"] for line in lines if line["event"] != "socket"] == []
        assert await well_behaved.next("one") == {"data": {"wait": "let go"}}


@pytest.mark.parametrize(
    "payload",
    [
        "null-but-text",
        5,
        [],
        {"Authorization": 5},
        {"Authorization": ["Bearer dev"]},
        {"Authorization": "Bearer dev", "authorization": "Bearer dev"},
        {"Authorization": "Bearer dev", "X-Brand-Id": "a\x00b"},
        {"Authorization": "Bearer dev", "X-Brand-Id": {}},
        {"Authorization": "Bearer d\u00e9v"},
    ],
)
async def test_a_connection_init_with_impossible_headers_is_invalid(sockets: GatewayServer, payload: Any) -> None:
    async with sockets.connect() as websocket:
        await websocket.send(type="connection_init", payload=payload)

        assert (await websocket.closed())[0] == 4400


async def test_a_text_message_that_is_no_utf_8_closes_with_1007(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        with captured_logs() as lines:
            await websocket.connection.send(b"\xff\xfe", text=True)

            assert (await websocket.closed())[0] == 1007
    assert "library" not in {line["event"] for line in lines}


async def test_a_message_of_more_than_a_mebibyte_closes_with_1009(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.connection.send("x" * (2**20 + 1))

        assert (await websocket.closed())[0] == 1009


async def test_a_client_that_is_still_sending_receives_the_close_frame(sockets: GatewayServer) -> None:
    async with raw_websocket(sockets) as (reader, writer):
        size = 32 * 2**20
        writer.write(b"\x81\xff" + size.to_bytes(8, "big") + bytes(4 + size))
        await writer.drain()

        assert (await reader.readexactly(4))[2:] == (1009).to_bytes(2, "big")


async def test_a_message_of_too_many_empty_fragments_closes_with_1009(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        with suppress(ConnectionClosed):
            await websocket.connection.send("" for _ in range(100_000))

        assert (await websocket.closed())[0] == 1009


async def test_a_fragmented_message_is_reassembled(sockets: GatewayServer) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.connection.send(iter(['{"type"', ': "pi', 'ng"}']))

        assert await websocket.receive() == {"type": "pong"}


# Floods and slow clients


async def test_an_operation_above_the_limit_is_refused_and_others_continue(
    database_url: str, control: Control, tokens: Tokens
) -> None:
    async with (
        controlled_gateway(database_url, socket_operations=3) as sockets,
        sockets.authenticated() as websocket,
    ):
        for number in range(3):
            await websocket.start(f"{number}", "subscription { wait }")
            await websocket.next(f"{number}")

        assert (await websocket.refusal("{ __typename }"))["code"] == "rate_limited"
        await websocket.send(type="complete", id="0")
        await wait_until(lambda: control.done == ["wait"], TIMEOUT_SECONDS)
        await websocket.ask("{ __typename }")


async def test_each_of_ten_thousand_concurrent_operations_is_answered(sockets: GatewayServer) -> None:
    many = 10_000
    async with sockets.authenticated() as flooding, sockets.authenticated() as other:

        async def flood() -> None:
            for number in range(many):
                await flooding.start(f"{number}", "{ __typename }")

        flood_task = asyncio.create_task(flood())
        waited: list[float] = []
        ended: set[str] = set()
        while len(ended) < many:
            message = await flooding.receive()
            if message["type"] in {"complete", "error"}:
                ended.add(message["id"])
            if len(ended) % 1_000 == 500:
                started = asyncio.get_running_loop().time()
                await other.ask("{ __typename }")
                waited.append(asyncio.get_running_loop().time() - started)
        await flood_task

    # A busy machine may pause the gateway once.
    assert median(waited) < 0.2
    assert max(waited) < 5


async def test_a_client_that_does_not_read_is_closed(sockets: GatewayServer, control: Control) -> None:
    with captured_logs() as lines:
        async with sockets.authenticated(max_queue=1) as unread, sockets.authenticated() as other:
            await unread.start("flood", "subscription { count(to: 1000000, characters: 50000) }")
            await unread.next("flood")
            # The source is closed when its event could not be sent in time.
            await wait_until(lambda: control.done == ["count"], TIMEOUT_SECONDS)
            await other.ask("{ __typename }")
            # The client reads on only after the gateway has closed the socket.
            await wait_until(lambda: any(line["event"] == "socket" for line in lines))

            assert await unread.closed() == (1013, "The client did not read a message in time.")


async def test_pings_of_a_client_that_does_not_read_are_no_longer_received(sockets: GatewayServer) -> None:
    pings = (b"\x89\xfd\x00\x00\x00\x00" + b"x" * 125) * 1_000
    sent = 0
    async with raw_websocket(sockets) as (reader, writer):
        authenticate = b'{"type": "connection_init", "payload": {"Authorization": "Bearer dev"}}'
        writer.write(b"\x81" + bytes([0x80 + len(authenticate)]) + bytes(4) + authenticate)
        assert b"connection_ack" in await reader.readuntil(b"}")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        try:
            while sent < 60 * 2**20:
                writer.write(pings)
                sent += len(pings)
                async with asyncio.timeout(0.3):
                    await writer.drain()
        except (TimeoutError, ConnectionError):
            pass

    # Upper bound of what the socket buffers of two kernels hold.
    assert sent < 30 * 2**20


async def test_a_client_that_answers_no_ping_is_closed_with_try_again_later(
    database_url: str, tokens: Tokens, control: Control
) -> None:
    async with (
        controlled_gateway(database_url, {"ws_ping_interval": 0.1, "ws_ping_timeout": 0.1}) as sockets,
        raw_websocket(sockets) as (reader, _),
    ):
        received = await reader.read()

    ping, close = received[:6], received[6:]
    assert (ping[0], close[0], close[2:4]) == (0x89, 0x88, (1013).to_bytes(2, "big"))


async def test_a_socket_above_the_limit_is_closed_with_try_again_later(
    database_url: str, control: Control, tokens: Tokens
) -> None:
    async with controlled_gateway(database_url, sockets_max=2) as sockets:
        async with sockets.authenticated(), sockets.authenticated(), sockets.connect() as third:
            assert (await third.closed())[0] == 1013
        async with sockets.authenticated() as websocket:
            await websocket.ask("{ __typename }")


async def test_cancelled_queries_leave_the_connections_usable(sockets: GatewayServer, cast: Cast) -> None:
    patient_id = await cast.patient()
    query = "query ($id: ID!) { patient(id: $id) { id encounters { totalCount nodes { id } } } }"
    with captured_logs() as lines:
        async with sockets.authenticated() as websocket:
            for number in range(200):
                await websocket.start(f"{number}", query, id=patient_id)
                if number % 10:
                    await websocket.send(type="complete", id=f"{number}")
            ended: set[str] = set()
            while len(ended) < 20:
                message = await websocket.receive()
                assert message["type"] != "error"
                ended |= {message["id"]} if message["type"] == "complete" and not int(message["id"]) % 10 else set()
            body = await websocket.ask(query, id=patient_id)

    assert body["data"]["patient"]["encounters"] == {"totalCount": 0, "nodes": []}
    assert {line["event"] for line in lines} <= {"operation", "socket"}


# Running mutations are completed


@pytest.mark.parametrize("leaving", ["disconnects", "sends complete", "breaks the protocol"])
async def test_a_mutation_is_completed_after_its_client_has_left(
    sockets: GatewayServer, leaving: str, control: Control
) -> None:
    async with sockets.authenticated() as websocket:
        await websocket.start("change", "mutation { hold }")
        await control.entered.wait()
        if leaving == "sends complete":
            await websocket.send(type="complete", id="change")
            await websocket.ask("{ __typename }", operation_id="change")
        elif leaving == "breaks the protocol":
            await websocket.send(type="nonsense")
            assert (await websocket.closed())[0] == 4400

    control.gate.set()
    await wait_until(lambda: control.done == ["hold"], TIMEOUT_SECONDS)


async def test_shutdown_answers_running_mutations_and_closes_every_socket(
    database_url: str, control: Control, tokens: Tokens
) -> None:
    async with (
        controlled_gateway(database_url) as sockets,
        sockets.authenticated() as changing,
        sockets.authenticated() as listening,
        sockets.connect() as unknown,
    ):
        await listening.start("one", "subscription { wait }")
        await listening.next("one")
        await changing.start("change", "mutation { hold }")
        await control.entered.wait()

        sockets.server.should_exit = True
        assert [(await websocket.closed())[0] for websocket in (listening, unknown)] == [1012, 1012]
        control.gate.set()
        assert await changing.next("change") == {"data": {"hold": "done"}}
        assert await changing.receive() == {"type": "complete", "id": "change"}
        assert (await changing.closed())[0] == 1012


async def test_after_the_shutdown_timeout_sockets_are_closed_with_1012(
    database_url: str, control: Control, tokens: Tokens
) -> None:
    async with controlled_gateway(database_url, drain_seconds=1) as sockets, sockets.authenticated() as websocket:
        await websocket.start("change", "mutation { hold }")
        await control.entered.wait()
        sockets.server.should_exit = True

        assert (await websocket.closed())[0] == 1012


# Connection limits


async def test_unauthenticated_sockets_use_no_connection_slot(
    database_url: str, control: Control, tokens: Tokens
) -> None:
    async with (
        controlled_gateway(database_url, sockets_max=1) as sockets,
        sockets.connect(),
        sockets.connect(),
        sockets.authenticated() as websocket,
    ):
        await websocket.ask("{ __typename }")


async def test_one_unauthenticated_socket_too_many_closes_the_oldest(
    database_url: str, control: Control, tokens: Tokens
) -> None:
    async with (
        controlled_gateway(database_url, sockets_unauthenticated_max=2) as sockets,
        sockets.authenticated() as signed_in,
        sockets.connect() as oldest,
        sockets.connect() as second,
        sockets.connect() as third,
    ):
        assert await oldest.closed() == (1013, "Too many unauthenticated sockets are open; try again later.")
        for websocket in (second, third):
            await websocket.authenticate()
        await signed_in.ask("{ __typename }")


async def test_an_address_with_many_sockets_closes_its_own_first(
    database_url: str, control: Control, tokens: Tokens
) -> None:
    def forwarded_for(address: str) -> dict[str, str]:
        return {"X-Forwarded-For": address}

    async with (
        controlled_gateway(database_url, sockets_unauthenticated_max=3) as sockets,
        sockets.connect(headers=forwarded_for("192.0.2.1")) as other,
        sockets.connect(headers=forwarded_for("2001:db8::1")) as one,
        sockets.connect(headers=forwarded_for("2001:db8::2")) as two,
        sockets.connect(headers=forwarded_for("2001:db8::3")) as three,
    ):
        assert (await one.closed())[0] == 1013
        for websocket in (other, two, three):
            await websocket.authenticate()


async def test_a_client_with_too_many_sockets_does_not_affect_another(
    database_url: str, control: Control, tokens: Tokens
) -> None:
    tokens.callers[tokens.give("other")] = replace(tokens.callers["dev"], client_id="other")
    async with (
        controlled_gateway(database_url, sockets_max_per_client=2) as sockets,
        sockets.authenticated(),
        sockets.authenticated(),
        sockets.connect() as third,
    ):
        await third.send(type="connection_init", payload={"Authorization": "Bearer dev"})
        assert await third.closed() == (1013, "rate_limited")
        async with open_stream(f"http://127.0.0.1:{sockets.port}", "subscription { wait }") as refused:
            assert refused.response.status_code == 429
            assert b"close one first" in await refused.response.aread()
        async with sockets.authenticated("other") as other:
            await other.ask("{ __typename }")


async def test_a_large_unread_answer_closes_its_socket(
    database_url: str, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedWebSocketProtocol, "linger_seconds", 0.3)
    async with (
        controlled_gateway(database_url, {"ws_ping_interval": 0.3, "ws_ping_timeout": 0.3}) as sockets,
        raw_websocket(sockets) as (reader, writer),
    ):
        for message in (
            b'{"type": "connection_init", "payload": {"Authorization": "Bearer dev"}}',
            b'{"type": "subscribe", "id": "1", "payload": {"query": "{ long(characters: 15000000) }"}}',
        ):
            writer.write(b"\x81\xfe" + len(message).to_bytes(2, "big") + bytes(4) + message)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await wait_until(lambda: not sockets.server.server_state.connections, TIMEOUT_SECONDS)
