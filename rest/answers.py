"""How an answer is written down: JSON bytes that no cache keeps."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a JSON body. Instants are written in UTC with `Z`, UUIDs in lower case."""
    return Response(
        orjson.dumps(body, default=str, option=orjson.OPT_UTC_Z),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        "application/json",
    )
