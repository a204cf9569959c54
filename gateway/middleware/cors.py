"""CORS: the origins, methods and header fields that browsers may use."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from gateway.middleware.request_context import REQUEST_HEADERS, RESPONSE_HEADERS


def cross_origin(app: ASGIApp, origins: Sequence[str], headers: Sequence[str]) -> CORSMiddleware:
    """Let pages of these origins call us, with a token and with nothing a browser would send by itself.

    Args:
        app: What answers.
        origins: Origins, as a browser writes them.
        headers: Names of request headers that are allowed beside `REQUEST_HEADERS`.

    """
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=[*REQUEST_HEADERS, *headers],
        expose_headers=RESPONSE_HEADERS,
        max_age=600,
    )
