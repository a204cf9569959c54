"""The responses that end a connection without a call of the application."""

from typing import NamedTuple
from uuid import uuid4

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE


class Refusal(NamedTuple):
    """Final response of a connection, sent without calling the application."""

    status: int
    code: str
    message: str


NOT_HTTP = Refusal(400, "bad_request", "This is not an HTTP request.")
NO_HOST = Refusal(400, "bad_request", "A request must have exactly one Host.")
BAD_CHUNK = Refusal(400, "bad_request", "The chunked body is malformed.")
BAD_LENGTH = Refusal(400, "bad_request", "A request must have one Content-Length, or be chunked in HTTP/1.1.")
LATE_HEAD = Refusal(408, "request_timeout", "The request did not arrive in time.")
LARGE_HEAD = Refusal(431, "headers_too_large", "The request's head is too large.")
MANY_FIELDS = Refusal(431, "headers_too_large", "There are too many header fields.")
LARGE_TRAILER = Refusal(431, "headers_too_large", "The request's trailer is too large.")
OTHER_CODING = Refusal(501, "not_implemented", "The only supported transfer coding is chunked.")
OTHER_VERSION = Refusal(505, "http_version_not_supported", "Send the request as HTTP/1.1.")


def refusal_bytes(status: int, code: str, message: str) -> bytes:
    """Return the bytes of a connection's final response."""
    request_id = str(uuid4())
    body = orjson.dumps({"error": code, "message": message, "recorded": "no", "request_id": request_id})
    head = (
        STATUS_LINE[status] + b"x-request-id: " + request_id.encode() + b"\r\n"
        b"content-type: application/json\r\ncache-control: no-store\r\nconnection: close\r\n"
        b"content-length: " + str(len(body)).encode() + b"\r\n\r\n"
    )
    return head + body
