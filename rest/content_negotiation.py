"""Which media types this door speaks, and which of them a client takes. Source: RFC 9110 section 12.5.1."""

import re
from functools import lru_cache

from starlette.requests import Request

from resolvers.errors import NotAcceptable

JSON = "application/json"
PROBLEM = "application/problem+json"
"""A refusal as RFC 9457 has it."""

_QUALITY = re.compile(r"q=([01](\.[0-9]{0,3})?)")


def accept_of(request: Request) -> str:
    """Give what the client says it takes; nothing said is everything taken."""
    accept: str = request.scope["state"]["head"].get("accept", "")
    return accept


def require_json_is_accepted(request: Request) -> None:
    """Return if the client takes JSON, or at least problems. Raises `NotAcceptable`."""
    if not _takes_json(accept_of(request)):
        raise NotAcceptable


@lru_cache(256)
def _takes_json(accept: str) -> bool:
    ranges = _ranges(accept)
    return bool(_quality(ranges, JSON) or _quality(ranges, PROBLEM))


def prefers_problem(accept: str) -> bool:
    """Say whether a refusal is wanted as a problem: it is named, and JSON is not liked better."""
    ranges = _ranges(accept)
    return ranges.get(PROBLEM, 0) > 0 and ranges[PROBLEM] >= _quality(ranges, JSON)


def _ranges(accept: str) -> dict[str, float]:
    ranges: dict[str, float] = {}
    for part in filter(str.strip, accept.split(",")):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        qualities = (_QUALITY.fullmatch(each) for each in parameters)
        ranges[media_range] = next((float(each[1]) for each in qualities if each), 1.0)
    return ranges or {"*/*": 1.0}


def _quality(ranges: dict[str, float], media_type: str) -> float:
    # The narrowest range that fits decides, whatever the others say.
    fitting = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    return next((ranges[each] for each in fitting if each in ranges), 0.0)
