"""What one HTTP request may cost. Pure ASGI: the door sees a `receive` that refuses, and phrases the refusal itself."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resolvers.errors import PayloadTooLarge, RequestTimeout


class BodyLimits:
    """Refuses a body that is too large, or too slow to arrive: its sender costs one slot for seconds, not minutes."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, its body watched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        await self._app(scope, self._watched(receive, int(announced)), send)

    def _watched(self, receive: Receive, announced_bytes: int) -> Receive:
        received_bytes = 0
        complete = False
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def receive_within_limits() -> Message:
            nonlocal received_bytes, complete
            if complete:
                # Whoever still listens waits for the client to go away, for as long as that takes.
                return await receive()
            if announced_bytes > self._max_bytes:
                raise PayloadTooLarge
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeout from None
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_bytes:
                raise PayloadTooLarge
            complete = not message.get("more_body", False)
            return message

        return receive_within_limits
