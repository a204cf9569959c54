"""How an answer is written down: JSON bytes that no cache keeps, and where to read about them."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from rest.media import JSON

LINK = '</openapi.json>; rel="service-desc", </docs>; rel="help"'
"""Where this door is described, for programs and for people. Source: RFC 8631."""

SHARED = {"Link": LINK, "Vary": "Accept", "Cache-Control": "no-store"}
"""The headers of every answer, unless it says otherwise."""

_SHARED_FIELDS = [(name.lower().encode(), value.encode()) for name, value in SHARED.items()]


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
    response = Response(body, status, headers, media_type)
    # Written once for all of them: whose own come first says otherwise by them.
    own = dict(response.raw_headers)
    response.raw_headers += [field for field in _SHARED_FIELDS if field[0] not in own]
    return response


def empty_answer(status: int, headers: Mapping[str, str]) -> Response:
    """Answer with headers alone."""
    return Response(None, status, SHARED | dict(headers))
