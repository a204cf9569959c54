"""The media ranges of an `Accept` header, for both doors and the pages. Source: RFC 9110, 12.5.1."""

import re
from collections.abc import Mapping
from functools import lru_cache

_QUALITY = re.compile(r"q=([01](\.[0-9]{0,3})?)")


@lru_cache(256)
def media_ranges(accept: str) -> Mapping[str, float]:
    """Return the media ranges of an `Accept` header, in lower case, with their qualities from 0 to 1."""
    ranges: dict[str, float] = {}
    for part in filter(str.strip, accept.split(",")):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        qualities = (_QUALITY.fullmatch(each) for each in parameters)
        ranges[media_range] = next((float(each[1]) for each in qualities if each), 1.0)
    return ranges
