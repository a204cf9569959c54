"""What one HTTP request may cost. Pure ASGI: the door sees a `receive` that refuses, and phrases the refusal itself."""

import asyncio
from collections.abc import Sized

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resolvers.errors import PayloadTooLarge, RequestTimeout

# How much of a body nobody wants is read all the same, so that its sender gets to see the answer.
MAX_IGNORED_BYTES = 64 * 1024 * 1024


class BodyLimits:
    """Refuses a body that is too large, or too slow to arrive: its sender costs one slot for seconds, not minutes."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, its body watched unless it is here and small enough."""
        whole: Sized | None = scope.get("state", {}).get("body")
        if scope["type"] != "http" or (whole is not None and len(whole) <= self._max_bytes):
            await self._app(scope, receive, send)
            return
        # One that is here and too large is refused as any other: where it is read.
        scope["state"].pop("body", None)
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
    """One request's body on its way in, and the answer on its way out."""

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
        """Give the next part. Raises `PayloadTooLarge` or `RequestTimeout`."""
        if self._complete:
            # Whoever still listens waits for the client to go away, for as long as that takes.
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
        """Pass on the answer. If the body is not here by then, the connection ends with it.

        The answer goes out first and the rest of the body is read afterwards: closing on unread bytes would make the
        network throw away the answer with them.
        """
        if message["type"] == "http.response.start":
            await self._ignore_rest(until=0)
            if not self._complete:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
        if message["type"] == "http.response.body" and not message.get("more_body") and not self._complete:
            await self._send({**message, "more_body": True})
            await self._ignore_rest(until=self._deadline)
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _ignore_rest(self, until: float) -> None:
        # Asking for a part tells a client that waits for leave to send it: one that was refused is not to.
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
