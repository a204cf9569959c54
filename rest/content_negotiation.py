"""Content negotiation: the media types of this door, and those a client accepts. Source: RFC 9110 section 12.5.1."""

from collections.abc import Mapping
from functools import lru_cache

from starlette.requests import Request

from resolvers.errors import NotAcceptable
from resolvers.media_ranges import media_ranges
from resolvers.request_state import state_of

JSON = "application/json"
PROBLEM = "application/problem+json"
"""A refusal in the form of RFC 9457."""


def accept_of(request: Request) -> str:
    """Return the request's `Accept` header; without one, everything is acceptable."""
    return state_of(request.scope)["head"].get("accept", "")


def require_json_is_accepted(request: Request) -> None:
    """Return if the client accepts JSON, or at least problems. Raises `NotAcceptable`."""
    if not _takes_json(accept_of(request)):
        raise NotAcceptable


@lru_cache(256)
def _takes_json(accept: str) -> bool:
    ranges = media_ranges(accept)
    return bool(_quality(ranges, JSON) or _quality(ranges, PROBLEM))


def prefers_problem(accept: str) -> bool:
    """Return whether a refusal should be a problem: the header names it, with at least the quality of JSON."""
    ranges = media_ranges(accept)
    return ranges.get(PROBLEM, 0) > 0 and ranges[PROBLEM] >= _quality(ranges, JSON)


def _quality(ranges: Mapping[str, float], media_type: str) -> float:
    # The most specific matching range decides, whatever the others say. Without a header, all types are acceptable.
    fitting = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    return next((ranges[each] for each in fitting if each in ranges), 0.0 if ranges else 1.0)
