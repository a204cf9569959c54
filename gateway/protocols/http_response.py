"""One request between uvicorn's protocol and the application: its body, where that is here, and its answer.

uvicorn looks for what is forbidden in each field of each head, by two patterns a field. Most of an answer's fields are
those of the answer before, so here a field is looked at when it is new. And it writes the head and the body one after
the other, each a journey through the network for both sides: here an answer that is whole is written at once.
"""

from functools import lru_cache
from itertools import starmap

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

REMEMBERED_FIELDS = 512

END: Message = {"type": "http.response.body", "body": b""}

FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})
"""The fields that say where an answer ends, and whether the connection does."""


class BufferedBody:
    """The body of a request, all of which is here: whoever wants it need not wait for it."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def __len__(self) -> int:
        return len(self._cycle.body)

    def read(self) -> bytes:
        """Give the body, once. Raises `ClientDisconnect` where the client has gone: nobody is told what comes of it."""
        cycle = self._cycle
        if cycle.disconnected:
            raise ClientDisconnect
        body = bytes(cycle.body)
        # A stream may last for hours.
        cycle.body = bytearray()
        return body


class ResponseWriter:
    """Serves one request on uvicorn's cycle, as the application that the cycle runs."""

    __slots__ = ("_app", "_cycle", "_held")

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle
        self._held = b""
        """The head, until something comes that it goes with."""

    async def __call__(self, scope: Scope, receive: Receive, _send: Send) -> None:
        """Serve the request."""
        if not self._cycle.more_body:
            scope["state"]["body"] = BufferedBody(self._cycle)
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
            # Whoever streams may count on it that what was sent is taken, but for what a buffer holds.
            await cycle.flow.drain()

    def _is_whole(self, message: Message) -> bool:
        """Whether this is all of the body that the head announced."""
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
            # It does not say how long it is, so each piece says it for itself.
            cycle.chunked_encoding = True
            head.append(b"transfer-encoding: chunked\r\n")
        head.append(b"\r\n")
        return b"".join(head)


@lru_cache(REMEMBERED_FIELDS)
def _line(name: bytes, value: bytes) -> bytes:
    """Write a field. Raises `ValueError` for one that could be taken for two, or for the end of the head."""
    if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
        raise ValueError("a header field holds what none may hold")
    return name.lower() + b": " + value + b"\r\n"
