"""What one WebSocket may cost, below the door: uvicorn's protocol, with an end to every wait and a code for every end.

Out of the box a client that is too slow, too large or too late to hear why gets no code at all, one that sends pings
and reads no answers fills our memory, and a server that stops cuts off what is being recorded.
"""

from typing import Any, ClassVar

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway.protocols.http import refusal


class LimitedWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket over websockets' own parser.

    Closing takes at most `linger_seconds`: for so long the client may read on to the code, and the connection is cut.
    """

    linger_seconds: ClassVar[float] = 5.0
    max_fragments: ClassVar[int] = 1_000

    def data_received(self, data: bytes) -> None:
        """Read on. The head of the upgrade comes first, and whole: if it was not understood now, it never will be."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(refusal(400, "bad_request", "This is no WebSocket handshake."))
            self.transport.close()

    # What the client sends

    def handle_cont(self, event: Any) -> None:
        """Put a message together, but not out of endlessly many pieces, which may be empty."""
        if len(self.frames) >= self.max_fragments:
            self.conn.fail(1009, "too many fragments")
            self._sent_away()
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Give the door a message that is text; what is none is the client's mistake, and no fault to be logged."""
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_text(self.frames):
            self.conn.fail(1007, "not UTF-8")
            self._sent_away()
            return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        """Answer, unless the last word is said."""
        if self.close_sent:
            self.conn.data_to_send()
        else:
            super().handle_ping()

    async def receive(self) -> Any:
        """Give the door the next message, and read on where what was read before is taken and answered."""
        message = await super().receive()
        if not self.writable.is_set():
            self._pause_reading()
        return message

    # What the client does not read

    def pause_writing(self) -> None:
        """Hear nothing more from who does not read: what it says would have to be answered."""
        super().pause_writing()
        if not self.close_sent:
            self._pause_reading()

    def resume_writing(self) -> None:
        """Hear it again."""
        super().resume_writing()
        if not self.read_paused:
            self._resume_reading()

    async def send(self, message: Any) -> None:
        """Send what the door says, and return when it is taken; the close without waiting for who does not read."""
        if message["type"] == "websocket.close":
            self.writable.set()
        await super().send(message)
        if message["type"] == "websocket.close":
            self._linger()
        else:
            await self.writable.wait()

    # The end

    def shutdown(self) -> None:
        """Tell the door that the server stops: it finishes what is being recorded, and closes."""
        if self.handshake_complete and not self.close_sent:
            self.stop_keepalive()
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1012})
        else:
            super().shutdown()

    def keepalive_timeout(self) -> None:
        """Send away who answers no ping, with a code at which a laptop that was opened again connects again."""
        self.pong_timer = self.pending_ping_payload = None
        if not self.close_sent and not self.transport.is_closing():
            self.conn.fail(1013, "A ping was not answered in time.")
            self._sent_away()

    def handle_parser_exception(self) -> None:
        """Send away who sends what is no frame, or a message too large; the parser has chosen the code."""
        if not self.close_sent:
            self._sent_away()

    def _sent_away(self) -> None:
        close = self.conn.close_sent
        assert close is not None
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.stop_keepalive()
        # Closed with something still to read, the kernel would answer with a reset, which overtakes the code. So only
        # our half is closed, and the rest is read and forgotten until the client has closed its own.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger()

    def _linger(self) -> None:
        """Read on until the client closes, but cut the connection when that takes too long."""
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(self.linger_seconds, self.transport.abort)
        self._resume_reading()

    def _pause_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()


def _is_text(pieces: list[bytes]) -> bool:
    try:
        b"".join(pieces).decode()
    except UnicodeDecodeError:
        return False
    return True
