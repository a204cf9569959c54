"""WebSocket protocol with limits, timeouts and close codes, based on uvicorn's.

In uvicorn, a client that is too slow or sends too large a message may get no close code. A client that sends pings and
does not read the pongs fills the server's memory. A server shutdown cancels an encounter that is being recorded.
"""

from typing import Any, ClassVar

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway.protocols.refusals import refusal_bytes


class LimitedWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol over the sans-I/O parser of `websockets`.

    Closing takes at most `linger_seconds`. The client can read up to the close code in that time. Then the connection
    is aborted.
    """

    linger_seconds: ClassVar[float] = 5.0
    max_fragments: ClassVar[int] = 1_000

    def data_received(self, data: bytes) -> None:
        """Parse the data. The first call gets the complete head of the upgrade, so a failed handshake is final."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(refusal_bytes(400, "bad_request", "This is not a valid WebSocket handshake."))
            self.transport.close()

    # Received messages

    def handle_cont(self, event: Any) -> None:
        """Append a fragment. Fail the connection with 1009 at `max_fragments`, because fragments may be empty."""
        if len(self.frames) >= self.max_fragments:
            self.conn.fail(1009, "too many fragments")
            self._finish_close()
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Pass a complete message to the application. Fail the connection with 1007 if a text is not UTF-8.

        Invalid UTF-8 is a client error, so no exception is logged.
        """
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_text(self.frames):
            self.conn.fail(1007, "not UTF-8")
            self._finish_close()
            return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        """Answer with a pong, unless the close frame was sent."""
        if self.close_sent:
            self.conn.data_to_send()
        else:
            super().handle_ping()

    async def receive(self) -> Any:
        """Return the next message. Reading stays paused while the client does not read what it is sent."""
        message = await super().receive()
        if not self.writable.is_set():
            self._pause_reading()
        return message

    # Backpressure

    def pause_writing(self) -> None:
        """Pause reading as well: each further message of the client would need a response."""
        super().pause_writing()
        if not self.close_sent:
            self._pause_reading()

    def resume_writing(self) -> None:
        """Resume reading."""
        super().resume_writing()
        if not self.read_paused:
            self._resume_reading()

    async def send(self, message: Any) -> None:
        """Send a message, and return when the transport accepts more. A close frame is sent without waiting."""
        if message["type"] == "websocket.close":
            self.writable.set()
        await super().send(message)
        if message["type"] == "websocket.close":
            self._linger()
        else:
            await self.writable.wait()

    # Closing

    def shutdown(self) -> None:
        """Send the application a disconnect (1012) on shutdown; it finishes what is being recorded, and closes."""
        if self.handshake_complete and not self.close_sent:
            self.stop_keepalive()
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1012})
        else:
            super().shutdown()

    def keepalive_timeout(self) -> None:
        """Close with 1013 if a ping got no pong. A laptop that resumes from sleep reconnects on this code."""
        self.pong_timer = self.pending_ping_payload = None
        if not self.close_sent and not self.transport.is_closing():
            self.conn.fail(1013, "A ping was not answered in time.")
            self._finish_close()

    def handle_parser_exception(self) -> None:
        """Close on an invalid frame or a message that is too large, with the parser's close code."""
        if not self.close_sent:
            self._finish_close()

    def _finish_close(self) -> None:
        close = self.conn.close_sent
        assert close is not None
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.stop_keepalive()
        # Closing a socket with unread data makes the kernel send a reset, which may overtake the close code. So only
        # the write side is closed, and received data is dropped until the client closes its side.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger()

    def _linger(self) -> None:
        """Read until the client closes, and abort the connection after `linger_seconds`."""
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
