"""JSON responses, which no cache may store, with links to their documentation."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.responses import Response

from rest.content_negotiation import JSON
from rest.public_url import public_path

Fields = Sequence[tuple[bytes, bytes]]
"""Header fields, with names in lower case."""


def service_links() -> str:
    """Return links to the description of this door, for programs and for people. Source: RFC 8631."""
    return f'<{public_path("/openapi.json")}>; rel="service-desc", <{public_path("/docs")}>; rel="help"'


def write_json(body: Any) -> bytes:
    """Serialize a JSON body. Instants are written in UTC with `Z`, UUIDs in lower case."""
    return orjson.dumps(body, default=str, option=orjson.OPT_UTC_Z)


def json_answer(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = JSON
) -> Response:
    """Return a response with a JSON body."""
    return json_bytes(write_json(body), status, headers, media_type)


def json_bytes(body: bytes, status: int, headers: Mapping[str, str] | None = None, media_type: str = JSON) -> Response:
    """Return a response with a serialized JSON body. No cache may store it."""
    return with_default_headers(Response(body, status, headers, media_type))


def empty_answer(status: int, headers: Mapping[str, str]) -> Response:
    """Return a response without a body."""
    return with_default_headers(Response(None, status, headers))


def missing_headers(head: Fields, fields: Fields) -> Fields:
    """Return those of the fields whose names are not in the head."""
    own = dict(head)
    return [field for field in fields if field[0] not in own]


def with_default_headers(response: Response) -> Response:
    """Add the default header fields to a response, and return it."""
    shared = [(b"link", service_links().encode()), (b"vary", b"Accept"), (b"cache-control", b"no-store")]
    response.raw_headers += missing_headers(response.raw_headers, shared)
    return response
