"""Limits on the size and duration of a request body. Pure ASGI: `receive` raises, and the door answers the error."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resolvers.errors import PayloadTooLarge, RequestTimeout

# Bytes of an unused body that are read and dropped, so that the client receives the response before the close.
MAX_IGNORED_BYTES = 64 * 1024 * 1024
# Seconds that an early response waits for the rest of the body. curl 7.88 ends its upload at an early response over
# HTTP/2, and a proxy then resets the stream before the response's body.
ANSWER_SECONDS = 0.2


class BodyLimits:
    """Middleware that refuses a body above `max_bytes`, or one that takes longer than `seconds` to arrive.

    A slow client therefore occupies a slot for seconds, not minutes.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request; limit its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced_bytes = int(headers.get(b"content-length", b"0"))
        if announced_bytes or b"transfer-encoding" in headers:
            expects_continue = headers.get(b"expect", b"").lower() == b"100-continue"
            deadline = asyncio.get_running_loop().time() + self._seconds
            body = _Body(
                receive,
                send,
                announced_bytes=announced_bytes,
                expects_continue=expects_continue,
                max_bytes=self._max_bytes,
                deadline=deadline,
            )
            await self._app(scope, body.receive, body.send)
        else:
            await self._app(scope, receive, send)


class _Body:
    """Wrapper of `receive` and `send` for one request."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        announced_bytes: int,
        expects_continue: bool,
        max_bytes: int,
        deadline: float,
    ) -> None:
        self._receive = receive
        self._send = send
        self._announced_bytes = announced_bytes
        self._expects_continue = expects_continue
        self._max_bytes = max_bytes
        self._deadline = deadline
        self._received_bytes = 0
        self._complete = False

    async def receive(self) -> Message:
        """Return the next part of the body. Raises `PayloadTooLarge` or `RequestTimeout`."""
        if self._complete:
            # A further call waits for the disconnect, without a deadline.
            return await self._receive()
        if self._announced_bytes > self._max_bytes:
            raise PayloadTooLarge
        try:
            message = await self._next_part(self._deadline)
        except TimeoutError:
            raise RequestTimeout from None
        if self._received_bytes > self._max_bytes:
            raise PayloadTooLarge
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the response. If the body is incomplete, close the connection after the response.

        What is late is read after the response was sent. Closing a socket with unread bytes sends a reset, which can
        discard the response.
        """
        if message["type"] == "http.response.start":
            await self._ignore_rest(until=asyncio.get_running_loop().time() + ANSWER_SECONDS)
            if not self._complete:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
        if message["type"] == "http.response.body" and not message.get("more_body") and not self._complete:
            await self._send({**message, "more_body": True})
            await self._ignore_rest(until=self._deadline)
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _ignore_rest(self, until: float) -> None:
        # `receive` sends "100 Continue", which a refused client must not get.
        if self._expects_continue and not self._received_bytes:
            return
        try:
            while not self._complete and self._received_bytes < MAX_IGNORED_BYTES:
                await self._next_part(until)
        except TimeoutError:
            pass

    async def _next_part(self, deadline: float) -> Message:
        async with asyncio.timeout_at(deadline):
            message = await self._receive()
        self._received_bytes += len(message.get("body", b""))
        self._complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message
