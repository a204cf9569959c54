"""Server-sent events: the protocol graphql-sse, and how a stream begins, stays open and ends.

Source: https://github.com/enisdenjo/graphql-sse/blob/master/PROTOCOL.md, distinct connections mode.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from gateway.protocols.http import LimitedHttpProtocol
from tests.cast import Cast
from tests.controlled_schema import MARKER, Control, Tokens, controlled_gateway
from tests.graphql.test_subscriptions import RECORD
from tests.logs import captured_logs
from tests.sse_client import COMPLETE, EVENT_STREAM, Event, Stream, open_stream, open_unread_stream
from tests.waiting import wait_until
from tests.websocket_client import TIMEOUT_SECONDS, GatewayServer

JSON = "application/json"
COUNT = "subscription ($to: Int!) { count(to: $to) }"
WAIT = "subscription { wait }"


@pytest.fixture(scope="module")
async def short_timeouts(database_url: str) -> AsyncIterator[GatewayServer]:
    async with controlled_gateway(
        database_url, socket_recheck_seconds=0.2, stream_heartbeat_seconds=0.1, sockets_max=3, origins={}
    ) as serving:
        yield serving


def listen(sockets: GatewayServer, query: str, **options: Any) -> AbstractAsyncContextManager[Stream]:
    return open_stream(f"http://127.0.0.1:{sockets.port}", query, **options)


def next_event(**body: Any) -> Event:
    return Event("next", json.dumps(body, separators=(",", ":")))


# The protocol


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_subscription_sends_each_event_and_then_complete(sockets: GatewayServer, method: str) -> None:
    async with listen(sockets, COUNT, method=method, to=3) as stream:
        events = await stream.rest()

    assert events == [*(next_event(data={"count": f"{number}"}) for number in range(3)), COMPLETE]


async def test_headers_forbid_proxies_to_cache_transform_or_buffer(sockets: GatewayServer) -> None:
    async with listen(sockets, COUNT, to=1) as stream:
        headers = stream.response.headers

    assert stream.response.status_code == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-ratelimit-remaining"]
    assert headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_query_is_answered_by_one_event(sockets: GatewayServer, method: str) -> None:
    async with listen(sockets, "{ __typename }", method=method) as stream:
        assert await stream.rest() == [next_event(data={"__typename": "Query"}), COMPLETE]


async def test_a_mutation_is_answered_by_one_event(sockets: GatewayServer, cast: Cast) -> None:
    patient_id = await cast.patient()

    visit = {"brandId": "loop", "encounterType": "LAB"}
    async with listen(sockets, RECORD, patientId=patient_id, input=visit) as stream:
        event, last = await stream.rest()

    assert last == COMPLETE
    assert [str(row["id"]) for row in await cast.rows(patient_id)] == [
        event.body["data"]["recordEncounter"]["encounter"]["id"]
    ]


async def test_a_mutation_over_get_is_405(sockets: GatewayServer) -> None:
    async with listen(sockets, "mutation { hold }", method="GET") as stream:
        assert stream.response.status_code == 405
        assert stream.response.headers["allow"] == "POST"


NOT_VALID = [
    ("subscription {", {}),
    ("subscription { nothing }", {}),
    ("subscription { wait count(to: 1) }", {}),
    (COUNT, {}),
    (COUNT, {"to": "many"}),
    ("query A { __typename } query B { __typename }", {}),
    ("{ nothing }", {}),
]


@pytest.mark.parametrize(("query", "variables"), NOT_VALID)
async def test_an_invalid_request_is_reported_by_an_event(
    sockets: GatewayServer, query: str, variables: dict[str, Any]
) -> None:
    async with listen(sockets, query, **variables) as stream:
        event, last = await stream.rest()

    assert stream.response.status_code == 200
    assert (event.name, event.code, last) == ("next", "validation_error", COMPLETE)
    assert event.body["errors"][0]["extensions"]["recorded"] == "no"


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"token": None}, 401, "unauthenticated"),
        ({"token": "nobody"}, 401, "invalid_token"),
        ({"headers": {"x-brand-id": "loopbio"}}, 403, "forbidden"),
        ({"headers": {"origin": "https://elsewhere.example"}}, 403, "forbidden"),
        ({"headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
        ({"method": "PUT"}, 405, "method_not_allowed"),
    ],
)
async def test_a_refused_caller_gets_the_status_of_http(
    sockets: GatewayServer, options: dict[str, Any], status: int, code: str
) -> None:
    async with listen(sockets, WAIT, **options) as stream:
        body = json.loads(await stream.response.aread())

    assert (stream.response.status_code, body["errors"][0]["extensions"]["code"]) == (status, code)
    assert body["errors"][0]["extensions"]["recorded"] == "no"
    assert stream.response.headers["content-type"] == f"{JSON}; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (f"{EVENT_STREAM}, {JSON}", EVENT_STREAM),
        (f"{EVENT_STREAM}, */*", EVENT_STREAM),
        ("TEXT/event-stream", EVENT_STREAM),
        (f"{JSON}, {EVENT_STREAM}", JSON),
        (f"{EVENT_STREAM};q=0.5, {JSON}", JSON),
        (f"{EVENT_STREAM};q=0, {JSON}", JSON),
        ("text/*, */*", JSON),
    ],
)
async def test_a_query_is_answered_in_the_preferred_media_type(
    sockets: GatewayServer, accept: str, media_type: str
) -> None:
    async with listen(sockets, "{ __typename }", headers={"accept": accept}) as stream:
        assert stream.response.headers["content-type"].partition(";")[0] == media_type


async def test_a_subscription_is_streamed_if_event_stream_is_accepted_at_all(sockets: GatewayServer) -> None:
    async with listen(sockets, COUNT, headers={"accept": f"{JSON}, {EVENT_STREAM};q=0.1"}, to=1) as stream:
        assert (await stream.rest())[-1] == COMPLETE


@pytest.mark.parametrize("accept", [JSON, "*/*", f"{EVENT_STREAM};q=0, */*", "application/graphql-response+json"])
async def test_a_subscription_that_does_not_accept_event_stream_is_refused(sockets: GatewayServer, accept: str) -> None:
    async with listen(sockets, WAIT, headers={"accept": accept}) as stream:
        (error,) = json.loads(await stream.response.aread())["errors"]

    assert error["extensions"]["violations"] == [
        {"pointer": "/query", "rule": "subscription", "message": "requires WebSocket or server-sent events"}
    ]


# Open streams and their end


async def test_an_idle_stream_sends_heartbeats(sockets: GatewayServer, control: Control) -> None:
    async with listen(sockets, WAIT) as stream:
        assert await stream.receive() == next_event(data={"wait": "begun"})
        rest = asyncio.create_task(stream.rest())
        await wait_until(lambda: stream.heartbeats >= 3)
        control.gate.set()
        assert await rest == [next_event(data={"wait": "let go"}), COMPLETE]


async def test_a_disconnect_ends_the_subscription_and_its_source(sockets: GatewayServer, control: Control) -> None:
    with captured_logs() as lines:
        async with listen(sockets, WAIT) as stream:
            await stream.receive()
        await wait_until(lambda: control.done == ["wait"], TIMEOUT_SECONDS)
        await wait_until(lambda: any(line["event"] == "request" for line in lines), TIMEOUT_SECONDS)

    assert [(line["event"], line.get("outcome", line.get("status"))) for line in lines] == [
        ("operation", "stopped"),
        ("request", 200),
    ]


async def test_a_get_that_announces_a_huge_body_causes_no_server_error(sockets: GatewayServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", sockets.port)
    with captured_logs() as lines:
        writer.write(
            b"GET /graphql?query=subscription%7Bwait%7D HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev\r\n"
            b"Accept: text/event-stream\r\nContent-Length: 999999999\r\n\r\n"
        )
        assert b" 200 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
        await wait_until(lambda: any(line["event"] == "operation" for line in lines), TIMEOUT_SECONDS)

    assert {line["event"] for line in lines} <= {"operation", "request"}


@pytest.mark.parametrize(("name", "code"), [("breaks", "server_error"), ("away", "temporarily_unavailable")])
async def test_a_failing_source_ends_its_stream_with_the_error(sockets: GatewayServer, name: str, code: str) -> None:
    async with listen(sockets, f"subscription {{ {name} }}") as stream:
        begun, event, last = await stream.rest()

    assert begun == next_event(data={name: "begun"})
    assert (event.code, last) == (code, COMPLETE)
    assert MARKER not in event.data


async def test_a_stream_ends_when_its_token_expires(sockets: GatewayServer, tokens: Tokens, control: Control) -> None:
    tokens.give("short", seconds=1.0)

    async with listen(sockets, WAIT, token="short") as stream:
        _, event, last = await stream.rest()

    assert (event.code, last) == ("invalid_token", COMPLETE)
    assert "it has expired" in event.data
    await wait_until(lambda: control.done == ["wait"], TIMEOUT_SECONDS)


async def test_a_stream_ends_soon_after_its_token_was_revoked(sockets: GatewayServer, tokens: Tokens) -> None:
    async with listen(sockets, WAIT, token=tokens.give("lost")) as stream:
        await stream.receive()
        del tokens.callers["lost"]
        event, last = await stream.rest()

    assert (event.code, last) == ("invalid_token", COMPLETE)


async def test_a_stream_ends_when_the_rights_of_its_token_change(sockets: GatewayServer, tokens: Tokens) -> None:
    async with listen(sockets, WAIT, token=tokens.give("moved")) as stream:
        await stream.receive()
        tokens.give("moved", brand_id="loopbio")
        event, _ = await stream.rest()

    assert "its permissions have changed" in event.data


async def test_a_stream_survives_an_outage_of_the_identity_provider(
    sockets: GatewayServer, tokens: Tokens, control: Control
) -> None:
    async with listen(sockets, WAIT) as stream:
        await stream.receive()
        tokens.away = True
        asked = tokens.asked
        await wait_until(lambda: tokens.asked >= asked + 2, TIMEOUT_SECONDS)
        control.gate.set()

        assert await stream.rest() == [next_event(data={"wait": "let go"}), COMPLETE]


async def test_shutdown_ends_every_stream_at_once(sockets: GatewayServer, control: Control) -> None:
    draining = asyncio.Event()
    sockets.server.lifespan.state["draining"] = draining
    async with listen(sockets, WAIT) as stream, listen(sockets, WAIT) as other:
        await stream.receive()
        draining.set()
        event, last = await stream.rest()
        assert (await other.rest())[-1] == COMPLETE
    del sockets.server.lifespan.state["draining"]

    assert (event.code, last) == ("temporarily_unavailable", COMPLETE)
    await wait_until(lambda: control.done == ["wait", "wait"], TIMEOUT_SECONDS)


async def test_streams_and_websockets_share_the_connection_limit(sockets: GatewayServer, control: Control) -> None:
    async with listen(sockets, WAIT) as one, listen(sockets, WAIT) as two:
        await one.receive()
        await two.receive()
        async with sockets.authenticated():
            async with listen(sockets, WAIT) as refused:
                assert refused.response.status_code == 503
                body = json.loads(await refused.response.aread())
            async with listen(sockets, "{ __typename }") as query:
                assert (await query.rest())[-1] == COMPLETE
        assert refused.response.headers["retry-after"] == "1"
        assert body["errors"][0]["extensions"]["code"] == "temporarily_unavailable"
        # The slot of the WebSocket is released when the gateway has noticed the disconnect.
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                async with listen(sockets, WAIT) as again:
                    if again.response.status_code == 200:
                        break


async def test_only_a_client_that_does_not_read_is_cut_off(
    sockets: GatewayServer, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedHttpProtocol, "send_seconds", 0.3)
    flood = "subscription { count(to: 1000000, characters: 50000) }"
    async with listen(sockets, WAIT) as other:
        await other.receive()
        async with open_unread_stream(sockets.port, flood) as reader, asyncio.timeout(2 * TIMEOUT_SECONDS):
            await wait_until(lambda: "count" in control.done, TIMEOUT_SECONDS)
            heard = await reader.read()
        assert not heard.endswith(b"0\r\n\r\n"), "the stream was completed instead of cut off"
        control.gate.set()

        assert await other.rest() == [next_event(data={"wait": "let go"}), COMPLETE]
