"""How an answer is written down: JSON bytes that no cache keeps, and where to read about them."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from rest.media import JSON

LINK = '</openapi.json>; rel="service-desc", </docs>; rel="help"'
"""Where this door is described, for programs and for people. Source: RFC 8631."""

SHARED = {"Cache-Control": "no-store", "Link": LINK, "Vary": "Accept"}
"""The headers of every answer."""


def write_json(body: Any) -> bytes:
    """Write a JSON body. Instants are written in UTC with `Z`, UUIDs in lower case."""
    return orjson.dumps(body, default=str, option=orjson.OPT_UTC_Z)


def json_answer(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = JSON
) -> Response:
    """Answer with a JSON body."""
    return json_bytes(write_json(body), status, headers, media_type)


def json_bytes(body: bytes, status: int, headers: Mapping[str, str] | None = None, media_type: str = JSON) -> Response:
    """Answer with a JSON body that is written already. No cache keeps it."""
    return Response(body, status, SHARED | dict(headers or {}), media_type)


def empty_answer(status: int, headers: Mapping[str, str]) -> Response:
    """Answer with headers alone."""
    return Response(None, status, SHARED | dict(headers))
