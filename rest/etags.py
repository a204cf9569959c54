"""Entity tags, with which a client checks whether its copy is current. Source: RFC 9110 sections 8.8.3 and 13."""

import re

from starlette.requests import Request
from starlette.responses import Response
from xxhash import xxh3_128_hexdigest

from resolvers.request_state import state_of
from rest.responses import empty_answer

_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def tag_of_version(version: int) -> str:
    """Return the tag of an encounter: every change makes a new version, and nothing else changes its representation."""
    return f'"{version}"'


def tag_of_body(body: bytes) -> str:
    """Return the tag of a body without a version: a digest of 128 bits, which makes a collision improbable."""
    return f'"{xxh3_128_hexdigest(body)}"'


def is_known(request: Request, tag: str) -> bool:
    """Return whether the client has the representation with this tag, by its `If-None-Match`."""
    named = state_of(request.scope)["head"].get("if-none-match", "")
    return named.strip() == "*" or tag in _TAG.findall(named)


def not_modified(tag: str) -> Response:
    """Return a 304 response."""
    return empty_answer(304, {"ETag": tag})
