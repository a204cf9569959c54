"""Entity tags: by which a client learns that what it holds is what is there. Source: RFC 9110 sections 8.8.3 and 13."""

import re

from starlette.requests import Request
from starlette.responses import Response
from xxhash import xxh3_128_hexdigest

from rest.responses import empty_answer

_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def tag_of_version(version: int) -> str:
    """Give the tag of an encounter: every change makes a new version, and nothing else changes what is shown."""
    return f'"{version}"'


def tag_of_body(body: bytes) -> str:
    """Give the tag of what has no version: a digest of what is shown, 128 bits of which no two are likely to meet."""
    return f'"{xxh3_128_hexdigest(body)}"'


def is_known(request: Request, tag: str) -> bool:
    """Say whether the client holds what has this tag already, by its `If-None-Match`."""
    named: str = request.scope["state"]["head"].get("if-none-match", "")
    return named.strip() == "*" or tag in _TAG.findall(named)


def not_modified(tag: str) -> Response:
    """Answer 304."""
    return empty_answer(304, {"ETag": tag})
