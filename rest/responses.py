"""How an answer is written down: JSON bytes that no cache keeps, and where to read about them."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.responses import Response

from rest.content_negotiation import JSON

LINK = '</openapi.json>; rel="service-desc", </docs>; rel="help"'
"""Where this door is described, for programs and for people. Source: RFC 8631."""

Fields = Sequence[tuple[bytes, bytes]]
"""Fields of a head, by their names in lower case."""

SHARED: Fields = [(b"link", LINK.encode()), (b"vary", b"Accept"), (b"cache-control", b"no-store")]
"""What every answer has in its head, unless it says otherwise."""


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
    return with_default_headers(Response(body, status, headers, media_type))


def empty_answer(status: int, headers: Mapping[str, str]) -> Response:
    """Answer with headers alone."""
    return with_default_headers(Response(None, status, headers))


def missing_headers(head: Fields, fields: Fields) -> Fields:
    """Give those of the fields whose names are not in the head."""
    own = dict(head)
    return [field for field in fields if field[0] not in own]


def with_default_headers(response: Response) -> Response:
    """Give the answer with what every answer has in its head."""
    response.raw_headers += missing_headers(response.raw_headers, SHARED)
    return response
