"""HTTP/1.1 protocol of one connection: parsing with limits, pipelining, and closing.

uvicorn parses all received bytes at once. It therefore answers a malformed second request before the first, and merges
trailer fields into the header fields. It also waits for an incomplete head without a timeout. This protocol passes one
head at a time to the parser (httptools). `Phase` is the state of the reader. At most one request is read ahead of the
request that is being answered; later bytes stay buffered. A malformed request that was read ahead gets no response:
the connection closes after the response in progress.
"""

import asyncio
import re
import socket
from enum import Enum, auto
from typing import ClassVar

import httptools
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.protocols import refusals
from gateway.protocols.chunked import ChunkedDecoder, InvalidChunk, TrailerTooLarge

END_OF_HEAD = b"\r\n\r\n"
WHITE_SPACE = b" \t"
"""Optional white space around a field value, which is not part of the value. Source: RFC 9110, 5.5."""

_REQUEST_LINE = re.compile(rb"(?:GET +[!-~]+|[A-Za-z-]+ +[!-~]+ +HTTP/([0-9.]+) *)\r\n")
"""Request line of any HTTP version. HTTP/0.9 has only GET, and no version in the line."""
VERSIONS = frozenset({b"1.0", b"1.1"})
FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
"""Fields that determine the host, the length and the transfer coding of a request."""


def bound_unsent_bytes(listening: socket.socket) -> None:
    """Limit the unsent bytes in the kernel's send buffer, so that a client's read rate can be measured.

    Without the limit the kernel buffers megabytes. For a client at 50 kB/s, the transport's own buffer then shrinks
    only once a minute. Accepted connections inherit the option. Source: tcp(7), TCP_NOTSENT_LOWAT.
    """
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, HIGH_WATER_LIMIT)


class Phase(Enum):
    """State of the reader: the element that the next byte belongs to."""

    HEAD = auto()
    BODY = auto()
    """A body with Content-Length."""
    CHUNKS = auto()
    WAITING = auto()
    """A request was read ahead. Later bytes stay buffered until the response before it is complete."""
    UPGRADE = auto()
    """A WebSocket, which starts when the response before it is complete."""
    ENDED = auto()
    """Nothing: received bytes are dropped. The connection closes after the response in progress."""


# Aliases: attribute access on an enumeration is slow, and these members are read for each request.
HEAD, BODY, CHUNKS, WAITING, UPGRADE, ENDED = Phase


class _Refused(Exception):
    def __init__(self, refusal: refusals.Refusal) -> None:
        self.refusal = refusal


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with stricter framing, with limits and timeouts, and with JSON error responses."""

    head_seconds: ClassVar[float] = 10.0
    max_head_bytes: ClassVar[int] = 32 * 1024
    max_head_fields: ClassVar[int] = 100
    send_seconds: ClassVar[float] = 20.0
    """Seconds between two measurements of the bytes that a client has read."""
    min_send_bytes_per_second: ClassVar[int] = 4096
    """Bytes per second, averaged between two measurements; the connection of a slower client is aborted."""

    _phase = HEAD
    _unread = b""
    """Received bytes that are not parsed yet: an incomplete head, or the bytes after a request that was read ahead."""
    _missing_bytes = 0
    """Bytes of the body that have not arrived."""
    _framing: list[tuple[bytes, bytes]]
    """The fields of the current head that are in `FRAMING`."""
    _upgrades = False
    _decoder: ChunkedDecoder
    _answering: RequestResponseCycle | None = None
    """The cycle of the request that is being answered."""
    _head_timeout: asyncio.TimerHandle | None = None
    _send_timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of the first head."""
        super().connection_made(transport)
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Signal the disconnect to every request of the connection, and cancel the timers."""
        self._phase, self._unread = ENDED, b""
        self._stop_timing_head()
        self._stop_measuring()
        for cycle in [self._answering, self.cycle]:
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    # Reading

    def data_received(self, data: bytes) -> None:
        """Buffer the data, and process as much of it as the current phase permits."""
        self._unset_keepalive_if_required()
        if self._phase is ENDED:
            return
        self._unread += data
        self._read()
        if self._phase is HEAD and self._answering is None:
            self._time_head()

    def _read(self) -> None:
        try:
            while self._unread:
                phase = self._phase
                if phase is HEAD:
                    if not self._read_head():
                        break
                elif phase is BODY:
                    self._read_body()
                elif phase is CHUNKS:
                    self._read_chunks()
                elif phase is ENDED:
                    self._unread = b""
                else:
                    break
        except _Refused as refused:
            self._refuse(refused.refusal)
        if self._unread or self.pipeline:
            self._pause_if_full()

    def _read_head(self) -> bool:
        """Check the buffered part of a head, and parse the head when it is complete. Return whether it is complete."""
        # A line break may precede a request. Source: RFC 9112, 2.2.
        data = self._unread = self._unread.lstrip(b"\r\n")
        end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        is_whole = end >= len(END_OF_HEAD)
        if (end if is_whole else len(data)) > self.max_head_bytes:
            raise _Refused(refusals.LARGE_HEAD)
        line = _REQUEST_LINE.match(data)
        if line is None:
            if data and (b"\n" in data or not data[:1].isalpha()):
                raise _Refused(refusals.NOT_HTTP)
        elif line[1] not in VERSIONS:
            raise _Refused(refusals.OTHER_VERSION)
        if is_whole:
            self._unread = data[end:]
            self._parse_head(data[:end])
        return is_whole

    def _parse_head(self, head: bytes) -> None:
        self.parser, self._framing = httptools.HttpRequestParser(self), []
        try:
            self.parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # `on_headers_complete` has already decided whether to accept the upgrade
        except httptools.HttpParserError as error:
            # The parser wraps an exception of a callback in its own error.
            cause = error.__context__
            raise (cause if isinstance(cause, _Refused) else _Refused(refusals.NOT_HTTP)) from None
        if self._phase is HEAD:
            raise _Refused(refusals.NOT_HTTP)
        if self._phase is BODY and not self._missing_bytes:
            self._complete_request()
        elif self._phase is UPGRADE and self._answering is None:
            self._become_websocket()

    def _read_body(self) -> None:
        content = self._unread[: self._missing_bytes]
        self._missing_bytes -= len(content)
        self._unread = self._unread[len(content) :]
        self.on_body(content)
        if not self._missing_bytes:
            self._complete_request()

    def _read_chunks(self) -> None:
        try:
            content, self._unread = self._decoder.decode(self._unread)
        except InvalidChunk:
            raise _Refused(refusals.BAD_CHUNK) from None
        except TrailerTooLarge:
            raise _Refused(refusals.LARGE_TRAILER) from None
        if content:
            self.on_body(content)
        if self._decoder.complete:
            self._complete_request()

    def _complete_request(self) -> None:
        super().on_message_complete()
        if not self.cycle.keep_alive:
            self._phase = ENDED
        else:
            self._phase = WAITING if self.pipeline else HEAD

    def _pause_if_full(self) -> None:
        """Stop reading when more than `HIGH_WATER_LIMIT` bytes wait for the response in progress."""
        waiting_bytes = len(self._unread) + (len(self.cycle.body) if self.pipeline else 0)
        if self._answering is None or waiting_bytes <= HIGH_WATER_LIMIT:
            return
        if self._answering.response_started:
            # The response may be an endless stream, and a disconnect is only detected while the transport reads.
            self._end_after_answer(self._answering)
        else:
            self.flow.pause_reading()

    # Parser callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a field, without the white space around its value."""
        field = (name.lower(), value.strip(WHITE_SPACE))
        self.headers.append(field)
        if field[0] in FRAMING:
            self._framing.append(field)

    def on_headers_complete(self) -> None:
        """Determine the length of the body, and start or queue the request."""
        self._stop_timing_head()
        if len(self.headers) > self.max_head_fields:
            raise _Refused(refusals.MANY_FIELDS)
        self._frame_body()
        self._upgrades = self.parser.should_upgrade() and self._is_websocket()
        if self._upgrades:
            self._phase = UPGRADE
        super().on_headers_complete()
        if self.pipeline:
            # uvicorn pauses reading until the queued request is answered, and would not detect a disconnect.
            self.flow.resume_reading()
        if self.cycle is not None and "draining" in self.app_state and self.app_state["draining"].is_set():
            # Close the connection after this response, so that the client's next request reaches another process.
            self.cycle.keep_alive = False

    def _frame_body(self) -> None:
        # Source: RFC 9112, 6.3. Ambiguous framing is refused.
        hosts, lengths, codings = 0, [], []
        for name, value in self._framing:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                lengths.append(value)
            elif name == b"transfer-encoding":
                codings.append(value.lower())
            else:
                self.expect_100_continue = value.lower() == b"100-continue"
        is_newest = self.parser.get_http_version() == "1.1"
        if hosts != 1 and is_newest:
            # Source: RFC 9112, 3.2. A proxy before the gateway may have used another of the repeated lines.
            raise _Refused(refusals.NO_HOST)
        if len(lengths) > 1 or (codings and (lengths or not is_newest)):
            raise _Refused(refusals.BAD_LENGTH)
        self._phase, self._missing_bytes = BODY, 0
        if codings:
            if codings != [b"chunked"]:
                raise _Refused(refusals.OTHER_CODING)
            self._phase, self._decoder = CHUNKS, ChunkedDecoder()
        elif lengths:
            if not lengths[0].isdigit():
                raise _Refused(refusals.BAD_LENGTH)
            self._missing_bytes = int(lengths[0])

    def _is_websocket(self) -> bool:
        """Whether the request becomes a WebSocket. Any other upgrade is ignored, and the request served as HTTP."""
        return (
            self.parser.get_method() == b"GET"
            and self.parser.get_http_version() == "1.1"
            and self._phase is BODY
            and not self._missing_bytes
            and super()._should_upgrade()
        )

    def _should_upgrade(self) -> bool:
        return self._upgrades

    def on_message_complete(self) -> None:
        """Ignore the callback: the parser gets heads only, and `_complete_request` ends a request."""

    # Answering

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self._answering = cycle
        if not self.flow.write_paused:
            self._stop_measuring()
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        """Continue with the request that was read ahead, and with the buffered bytes after it."""
        answered, self._answering = self._answering, None
        if answered is not None and answered.more_body:
            # The rest of the request's body would be parsed as a request.
            self._close()
        super().on_response_complete()
        if self.transport.is_closing() or self._answering is None:
            self._measure_sending()
        if self.transport.is_closing():
            return
        if self._phase is UPGRADE:
            self._become_websocket()
            return
        if self._phase is WAITING:
            self._phase = HEAD
        self._read()
        if self._unread and self._answering is None:
            self._unset_keepalive_if_required()
            self._time_head()

    def _become_websocket(self) -> None:
        behind, self._unread = self._unread, b""
        self._phase = ENDED
        self._unset_keepalive_if_required()
        self._stop_timing_head()
        self._stop_measuring()
        self.flow.resume_reading()
        self.handle_websocket_upgrade()
        if behind and not self.transport.is_closing():
            self.transport.get_protocol().data_received(behind)  # type: ignore[attr-defined]

    def _refuse(self, refused: refusals.Refusal) -> None:
        """Send a final response and stop reading. While an earlier request is being answered, send nothing."""
        self._stop_timing_head()
        cycle = self._answering
        if cycle is not None and (not cycle.more_body or cycle.response_started):
            self._end_after_answer(cycle)
            return
        if cycle is not None:
            # The refused bytes are this request's own body, so the application cannot have acted on it yet.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(refusals.refusal_bytes(*refused))
        self._close()

    def _end_after_answer(self, cycle: RequestResponseCycle) -> None:
        """Close the connection after this response, and drop the bytes received after its request."""
        cycle.keep_alive = False
        if cycle.more_body:
            # The response has started, so the rest of the request body is not awaited.
            cycle.more_body = False
            cycle.message_event.set()
        self.cycle = cycle
        self.pipeline.clear()
        self._phase, self._unread = ENDED, b""
        self.flow.resume_reading()

    def _close(self) -> None:
        self._phase, self._unread = ENDED, b""
        self.transport.close()
        self._measure_sending()

    # Timeout of a head

    def _time_head(self) -> None:
        if self._head_timeout is None and not self.transport.is_closing():
            self._head_timeout = self.loop.call_later(self.head_seconds, self._head_is_late)

    def _stop_timing_head(self) -> None:
        if self._head_timeout is not None:
            self._head_timeout.cancel()
            self._head_timeout = None

    def _head_is_late(self) -> None:
        self._head_timeout = None
        if not self.transport.is_closing():
            self._refuse(refusals.LATE_HEAD)

    # Timeout of a client that does not read

    def pause_writing(self) -> None:
        """Start measuring how fast the client reads: unsent bytes stay in the gateway's memory."""
        super().pause_writing()
        self._measure_sending()

    def resume_writing(self) -> None:
        """Stop measuring while a response is written: the client reads."""
        self._stop_measuring()
        if self._answering is None:
            self._measure_sending()
        super().resume_writing()

    def _measure_sending(self) -> None:
        """Schedule a check of how many buffered bytes the client has read. Nothing is written in the meantime."""
        waiting_bytes = self.transport.get_write_buffer_size()
        if waiting_bytes and self._send_timeout is None:
            self._send_timeout = self.loop.call_later(self.send_seconds, self._require_rate, waiting_bytes)

    def _require_rate(self, waiting_bytes: int) -> None:
        self._send_timeout = None
        sent_bytes = waiting_bytes - self.transport.get_write_buffer_size()
        required_bytes = max(self.min_send_bytes_per_second * self.send_seconds, 1)
        if sent_bytes < min(waiting_bytes, required_bytes):
            self.transport.abort()
        else:
            self._measure_sending()

    def _stop_measuring(self) -> None:
        if self._send_timeout is not None:
            self._send_timeout.cancel()
            self._send_timeout = None
