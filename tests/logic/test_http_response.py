"""The response writer: the same bytes as uvicorn's, and a complete response in one write."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.protocols.http_response import BufferedBody, ResponseWriter

Fields = Sequence[tuple[bytes, bytes]]

FIELDS = st.lists(
    st.sampled_from(
        [
            (b"content-type", b"application/json"),
            (b"content-length", b"2"),
            (b"connection", b"close"),
            (b"connection", b"keep-alive, Close"),
            (b"connection", b"keep-alive"),
            (b"connection", b"not-close"),
            (b"transfer-encoding", b"Chunked"),
            (b"x-request-id", b"one"),
            (b"set-cookie", b"a=b"),
            (b"set-cookie", b"c=d"),
            (b"ETag", b'"\xff"'),
            (b"x-empty", b""),
        ]
    ),
    unique=True,
)
BREAKS = st.sampled_from([b"\r\n", b"\n", b"\r", b"\x00", b"\x7f"])


class RecordingTransport:
    """A transport that stores what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    def write(self, data: bytes) -> None:
        # A transport sends nothing for an empty write.
        if data:
            self.writes.append(data)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def cycle_for(method: str, *, keep_alive: bool) -> tuple[RequestResponseCycle, RecordingTransport]:
    """Return uvicorn's cycle of a request before its body is read."""
    transport, silent = RecordingTransport(), logging.getLogger("silent")
    silent.disabled = True
    cycle = RequestResponseCycle(
        scope=cast("Any", {"type": "http", "method": method, "state": {}}),
        transport=cast("asyncio.Transport", transport),
        flow=FlowControl(cast("asyncio.Transport", transport)),
        logger=silent,
        access_logger=silent,
        access_log=False,
        default_headers=[(b"date", b"today")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )
    return cycle, transport


class Case(NamedTuple):
    """A response, and the request that it answers."""

    method: str
    keep_alive: bool
    status: int
    fields: Fields
    pieces: Sequence[bytes]


CASES = st.builds(
    Case,
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    keep_alive=st.booleans(),
    status=st.sampled_from([200, 201, 204, 304, 400, 503]),
    fields=FIELDS,
    pieces=st.sampled_from([[b""], [b"{}"], [b"{", b"}"], [b"", b"{}"], [b"{}", b""], [b"{"], [b"{}}"]]),
)


async def run_case(case: Case, *, by_us: bool) -> Any:
    """Return the bytes written and the state of the connection."""
    cycle, transport = cycle_for(case.method, keep_alive=case.keep_alive)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": case.status, "headers": list(case.fields)})
        for number, piece in enumerate(case.pieces, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(case.pieces)})

    await cycle.run_asgi(cast("Any", ResponseWriter(app, cycle) if by_us else app))
    return transport.sent, transport.closed, cycle.keep_alive, cycle.response_complete


@given(case=CASES)
async def test_a_response_has_the_same_bytes_as_from_uvicorn(case: Case) -> None:
    assert await run_case(case, by_us=True) == await run_case(case, by_us=False)


async def test_a_complete_response_is_sent_in_one_write() -> None:
    cycle, transport = cycle_for("GET", keep_alive=True)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    await cycle.run_asgi(cast("Any", ResponseWriter(app, cycle)))

    assert len(transport.writes) == 1


async def test_the_head_of_a_streamed_response_is_sent_with_its_first_piece() -> None:
    cycle, transport = cycle_for("GET", keep_alive=True)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        assert transport.sent.endswith(b"\r\n\r\n")
        await send({"type": "http.response.body", "body": b"{}"})

    await cycle.run_asgi(cast("Any", ResponseWriter(app, cycle)))

    assert cycle.response_complete


@given(before=st.binary(max_size=3), broken=BREAKS, after=st.binary(max_size=3), in_name=st.booleans())
async def test_a_header_field_with_a_line_break_is_never_sent(
    before: bytes, broken: bytes, after: bytes, in_name: bool
) -> None:
    field = (before + broken + after, b"value") if in_name else (b"name", before + broken + after)

    written, closed, _, complete = await run_case(Case("GET", True, 200, [field], [b""]), by_us=True)

    assert (written, closed, complete) == (b"", True, False)


@pytest.mark.parametrize(("more_to_come", "expected"), [(False, b"12345"), (True, None)])
async def test_a_body_is_passed_on_when_it_is_complete(more_to_come: bool, expected: bytes | None) -> None:
    cycle, _ = cycle_for("POST", keep_alive=True)
    cycle.body += b"12345"
    cycle.more_body = more_to_come
    seen: list[Message] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["state"])

    await cycle.run_asgi(cast("Any", ResponseWriter(app, cycle)))

    assert [each["body"].read() if "body" in each else None for each in seen] == [expected]


async def test_a_body_is_read_once_and_then_released() -> None:
    cycle, _ = cycle_for("POST", keep_alive=True)
    cycle.body += b"12345"

    assert [len(BufferedBody(cycle)), BufferedBody(cycle).read(), len(cycle.body)] == [5, b"12345", 0]


async def test_the_body_of_a_disconnected_client_is_not_read() -> None:
    cycle, _ = cycle_for("POST", keep_alive=True)
    cycle.body += b"12345"
    cycle.disconnected = True

    with pytest.raises(ClientDisconnect):
        BufferedBody(cycle).read()
