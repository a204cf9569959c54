"""CORS: the origins, methods and header fields that browsers may use."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.middleware.request_context import REQUEST_HEADERS, RESPONSE_HEADERS
from resolvers.origins import AllowedOrigins
from resolvers.request_state import state_of

SETTINGS = b". GATEWAY_ORIGINS lists the origins of pages, GATEWAY_CORS_HEADERS more request headers."


class CrossOrigin(CORSMiddleware):
    """CORS middleware for these origins. Credentials that a browser adds by itself (cookies) are not allowed."""

    def __init__(self, app: ASGIApp, origins: AllowedOrigins, headers: Sequence[str]) -> None:
        """Wrap an application.

        Args:
            app: The ASGI application to wrap.
            origins: The origins of pages that may call.
            headers: Names of allowed request headers, in addition to `REQUEST_HEADERS`.

        """
        super().__init__(
            app,
            allow_methods=["GET", "POST"],
            allow_headers=[*REQUEST_HEADERS, *headers],
            expose_headers=RESPONSE_HEADERS,
            max_age=600,
        )
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request. One without `Origin` is passed on as it is."""
        # Starlette adds `Vary: Origin` to every answer. Answers with data need none: they are `no-store`.
        crosses = scope["type"] == "http" and "origin" in state_of(scope)["head"]
        await (super().__call__ if crosses else self.app)(scope, receive, send)

    def is_allowed_origin(self, origin: str) -> bool:
        """Return whether a page of this origin may call for any client."""
        return self._origins.allows(origin)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the answer to a preflight; a refusal names the settings that would allow the request."""
        response = super().preflight_response(request_headers)
        if response.status_code != 200:
            response.body = bytes(response.body) + SETTINGS
            response.headers["content-length"] = str(len(response.body))
        return response
