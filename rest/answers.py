"""How an answer is written down: JSON bytes that no cache keeps."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


def write_json(body: Any) -> bytes:
    """Write a JSON body. Instants are written in UTC with `Z`, UUIDs in lower case."""
    return orjson.dumps(body, default=str, option=orjson.OPT_UTC_Z)


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a JSON body."""
    return json_bytes(write_json(body), status, headers)


def json_bytes(body: bytes, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a JSON body that is written already. No cache keeps it."""
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")
