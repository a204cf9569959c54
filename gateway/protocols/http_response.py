"""Fast path between uvicorn's request cycle and the application: buffered request body and response writer.

uvicorn validates each field of each response head with two regular expressions. Most fields repeat those of the
previous response, so `_line` caches validated fields. uvicorn also writes head and body separately, so each passes the
network stack of both hosts on its own. `ResponseWriter` writes a complete response in one call.
"""

from functools import lru_cache
from itertools import starmap

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

from resolvers.request_state import state_of

REMEMBERED_FIELDS = 512

END: Message = {"type": "http.response.body", "body": b""}

FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})
"""Fields that determine the length of a response, and whether the connection closes after it."""


class BufferedBody:
    """Request body that has arrived completely, so it can be read without awaiting."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def __len__(self) -> int:
        return len(self._cycle.body)

    def read(self) -> bytes:
        """Return the body; later calls return no bytes. Raises `ClientDisconnect`: a response could not be sent."""
        cycle = self._cycle
        if cycle.disconnected:
            raise ClientDisconnect
        body = bytes(cycle.body)
        # Free the memory: the response may be a stream that lasts for hours.
        cycle.body = bytearray()
        return body


class ResponseWriter:
    """ASGI application that wraps the real one for a single request on uvicorn's cycle."""

    __slots__ = ("_app", "_cycle", "_held")

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle
        self._held = b""
        """The serialized head, until the first part of the body is sent with it."""

    async def __call__(self, scope: Scope, receive: Receive, _send: Send) -> None:
        """Serve the request."""
        if not self._cycle.more_body:
            state_of(scope)["body"] = BufferedBody(self._cycle)
        await self._app(scope, receive, self._send)

    async def _send(self, message: Message) -> None:
        cycle = self._cycle
        if message["type"] == "http.response.start" and not cycle.response_started:
            cycle.response_started = True
            cycle.waiting_for_100_continue = False
            self._held = self._head(message)
            return
        if self._held:
            if cycle.flow.write_paused and not cycle.disconnected:
                await cycle.flow.drain()
            if not cycle.disconnected:
                pieces = [self._held]
                if self._is_whole(message):
                    pieces.append(message["body"])
                    cycle.expected_content_length = 0
                    message = END
                cycle.transport.writelines(pieces)
            self._held = b""
        await cycle.send(message)  # type: ignore[arg-type]
        if message.get("more_body") and cycle.flow.write_paused and not cycle.disconnected:
            # Backpressure for streams: return when the client has read all but the bytes in the transport's buffer.
            await cycle.flow.drain()

    def _is_whole(self, message: Message) -> bool:
        """Whether this message holds the complete body, of the length in Content-Length."""
        cycle = self._cycle
        return (
            cycle.chunked_encoding is False
            and cycle.scope["method"] != "HEAD"
            and not message.get("more_body")
            and len(message.get("body", b"")) == cycle.expected_content_length > 0
        )

    def _head(self, message: Message) -> bytes:
        cycle = self._cycle
        fields = [*cycle.default_headers, *message["headers"]]
        head = [STATUS_LINE[message["status"]], *starmap(_line, fields)]
        closes = False
        for name, value in fields:
            if name not in FRAMING:
                continue
            if name == b"content-length" and cycle.chunked_encoding is None:
                cycle.expected_content_length = int(value)
                cycle.chunked_encoding = False
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                cycle.expected_content_length = 0
                cycle.chunked_encoding = True
            elif name == b"connection":
                closes = closes or b"close" in [each.strip() for each in value.lower().split(b",")]
        if closes:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            head.append(b"connection: close\r\n")
        if cycle.chunked_encoding is None and cycle.scope["method"] != "HEAD" and message["status"] not in {204, 304}:
            # The response has no Content-Length, so it is sent in chunks.
            cycle.chunked_encoding = True
            head.append(b"transfer-encoding: chunked\r\n")
        head.append(b"\r\n")
        return b"".join(head)


@lru_cache(REMEMBERED_FIELDS)
def _line(name: bytes, value: bytes) -> bytes:
    """Return a serialized field. Raises `ValueError` for characters that would split the field or end the head."""
    if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
        raise ValueError("a header field contains a forbidden character")
    return name.lower() + b": " + value + b"\r\n"
