"""Outermost middleware with `GATEWAY_PUBLIC_URL`: the path of that URL in front of the gateway's own paths."""

from starlette.types import ASGIApp, Receive, Scope, Send

from rest.public_url import PUBLIC_URL, PublicUrl


class PublicPath:
    """Middleware that removes the path of the public URL from requests, and sets `PUBLIC_URL` for the doors.

    A path without it is served as it is: a proxy may have removed it, and health checks bypass the proxy.
    """

    def __init__(self, app: ASGIApp, *, url: PublicUrl) -> None:
        self._app = app
        self._url = url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request or the socket."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith(f"{self._url.path}/"):
            scope["path"] = scope["path"].removeprefix(self._url.path)
        token = PUBLIC_URL.set(self._url)
        try:
            await self._app(scope, receive, send)
        finally:
            PUBLIC_URL.reset(token)
