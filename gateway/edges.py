"""The outermost layer: what a browser is told about every answer, and which pages elsewhere may call us."""

from collections.abc import Mapping

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# An answer is data: nothing in it may run, be framed, be guessed at or be read by another site.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class SecurityHeaders:
    """Adds the headers every answer carries, unless it brought its own; notes which site's page is calling."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] = SECURITY_HEADERS) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        if scope["type"] in {"http", "websocket"}:
            scope.setdefault("state", {})["foreign_origin"] = _foreign_origin(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in self._headers if each[0] not in own)]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def _foreign_origin(scope: Scope) -> str | None:
    """Give the origin of the page that calls, unless it is a page of ours."""
    headers = dict(scope["headers"])
    origin: str | None = headers.get(b"origin", b"").decode("latin-1") or None
    ours = headers.get(b"host", b"").decode("latin-1")
    return None if origin is not None and origin.partition("://")[2] == ours else origin


def cross_origin(app: ASGIApp, origins: list[str]) -> CORSMiddleware:
    """Let pages of these origins call us, with a token and with nothing a browser would send by itself."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
            "If-None-Match",
            "Last-Event-ID",
            "X-Brand-Id",
            "X-Request-Id",
        ],
        expose_headers=[
            "ETag",
            "Idempotent-Replayed",
            "Link",
            "Location",
            "RateLimit",
            "RateLimit-Policy",
            "Retry-After",
            "WWW-Authenticate",
            "X-RateLimit-Remaining",
            "X-RateLimit-Reset",
            "X-Request-Id",
        ],
        max_age=600,
    )
