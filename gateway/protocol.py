"""What the head of an HTTP request may cost, bytes, fields and seconds; and what a client that does not read.

uvicorn reads heads of 8 MiB and waits for the rest of one for ever; by the time an application is asked, the head is
complete. So this is a protocol, not a middleware. Bodies are `gateway.limits`' business.
"""

import asyncio
from typing import Any, ClassVar
from uuid import uuid4

import orjson
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.answering import Answering


def refusal(status: int, code: str, message: str) -> bytes:
    """Write the last answer of a connection."""
    request_id = str(uuid4())
    body = orjson.dumps({"error": code, "message": message, "recorded": "no", "request_id": request_id})
    head = (
        STATUS_LINE[status] + b"x-request-id: " + request_id.encode() + b"\r\n"
        b"content-type: application/json\r\ncache-control: no-store\r\nconnection: close\r\n"
        b"content-length: " + str(len(body)).encode() + b"\r\n\r\n"
    )
    return head + body


TOO_LARGE = (431, "headers_too_large", "The request's head is too large.")


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools, with a deadline and limits on the head, and refusals in our shape."""

    head_seconds: ClassVar[float] = 10.0
    max_head_bytes: ClassVar[int] = 32 * 1024
    max_head_fields: ClassVar[int] = 100
    send_seconds: ClassVar[float] = 20.0

    _in_head = False
    _deadline: asyncio.TimerHandle | None = None
    _next_look: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _unparsed_bytes = 0
    _refusal: tuple[int, str, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first head its time."""
        super().connection_made(transport)
        self._start_head()
        self._time_head()

    def data_received(self, data: bytes) -> None:
        """Read on, but not for ever in one head: the parser keeps a field to itself until it is whole."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._time_head()
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > self.max_head_bytes:
                self._refusal = TOO_LARGE
                self.send_400_response("")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was timed."""
        self._end_head()
        self._stop_looking()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Give each further head on the connection its time, unless all of it has come by the end of what came now."""
        super().on_message_begin()
        self._end_head()
        self._start_head()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of the address."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a field, and the fields: of the head, and of what may come behind a body."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self.max_head_bytes:
            self._refuse(*TOO_LARGE)
        if len(self.headers) >= self.max_head_fields:
            self._refuse(431, "headers_too_large", "There are too many header fields.")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._end_head()
        if self._head_bytes > self.max_head_bytes:
            self._refuse(*TOO_LARGE)
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts != 1 and self.parser.get_http_version() == "1.1":
            # Source: RFC 9112, 3.2. Whoever stands before us may have taken another for it.
            self._refuse(400, "bad_request", "A request names its Host once.")
        super().on_headers_complete()
        if self.cycle is not None and "draining" in self.app_state and self.app_state["draining"].is_set():
            # This answer is the connection's last: the client's next request finds another process.
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or too much of one, in the shape of every refusal, and close."""
        del msg  # the parser's words
        if self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body:
            # It came behind a request that is here whole: what is said now would be taken for that one's answer.
            self.cycle.keep_alive = False
            self._end_head()
            return
        self.transport.write(refusal(*(self._refusal or (400, "bad_request", "This is not an HTTP request."))))
        self.transport.close()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever: what is not sent lies in our memory."""
        super().pause_writing()
        self._look_later()

    def resume_writing(self) -> None:
        """It reads."""
        self._stop_looking()
        super().resume_writing()

    def _look_later(self) -> None:
        waiting_bytes = self.transport.get_write_buffer_size()
        self._next_look = self.loop.call_later(self.send_seconds, self._look, waiting_bytes)

    def _look(self, waited_bytes: int) -> None:
        # However slowly it reads, something of a large answer must have gone by now.
        if self.transport.get_write_buffer_size() < waited_bytes:
            self._look_later()
        else:
            self.transport.abort()

    def _stop_looking(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        super()._start_asgi_task(cycle, Answering(app, cycle))  # type: ignore[arg-type]

    def _start_head(self) -> None:
        self._in_head = True
        self._head_bytes = self._unparsed_bytes = 0

    def _time_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self._too_late)

    def _end_head(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        # An answer that is still under way must not be cut in two by another one.
        if self.cycle is None or self.cycle.response_complete:
            self._refusal = (408, "request_timeout", "The request did not arrive in time.")
            self.send_400_response("")
        else:
            self.transport.close()

    def _refuse(self, status: int, code: str, message: str) -> Any:
        # The parser turns what a callback raises into its own error, and uvicorn answers that by `send_400_response`.
        self._refusal = (status, code, message)
        raise ValueError(code)
