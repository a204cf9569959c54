"""Content negotiation: the media types of this door, and those a client accepts. Source: RFC 9110 section 12.5.1."""

import re
from functools import lru_cache

from starlette.requests import Request

from resolvers.errors import NotAcceptable
from resolvers.request_state import state_of

JSON = "application/json"
PROBLEM = "application/problem+json"
"""A refusal in the form of RFC 9457."""

_QUALITY = re.compile(r"q=([01](\.[0-9]{0,3})?)")


def accept_of(request: Request) -> str:
    """Return the request's `Accept` header; without one, everything is acceptable."""
    return state_of(request.scope)["head"].get("accept", "")


def require_json_is_accepted(request: Request) -> None:
    """Return if the client accepts JSON, or at least problems. Raises `NotAcceptable`."""
    if not _takes_json(accept_of(request)):
        raise NotAcceptable


@lru_cache(256)
def _takes_json(accept: str) -> bool:
    ranges = _ranges(accept)
    return bool(_quality(ranges, JSON) or _quality(ranges, PROBLEM))


def prefers_problem(accept: str) -> bool:
    """Return whether a refusal should be a problem: the header names it, with at least the quality of JSON."""
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
    # The most specific matching range decides, whatever the others say.
    fitting = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    return next((ranges[each] for each in fitting if each in ranges), 0.0)
