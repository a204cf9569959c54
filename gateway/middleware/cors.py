"""CORS: the origins, methods and header fields that browsers may use."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from gateway.middleware.request_context import REQUEST_HEADERS, RESPONSE_HEADERS


def cross_origin(app: ASGIApp, origins: Sequence[str], headers: Sequence[str]) -> CORSMiddleware:
    """Return CORS middleware for these origins. Credentials that a browser adds by itself (cookies) are not allowed.

    Args:
        app: The ASGI application to wrap.
        origins: Allowed values of `Origin`, as browsers send them.
        headers: Names of allowed request headers, in addition to `REQUEST_HEADERS`.

    """
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=[*REQUEST_HEADERS, *headers],
        expose_headers=RESPONSE_HEADERS,
        max_age=600,
    )
