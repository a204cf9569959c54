"""The envelope every refusal comes in, and the one table from a GatewayError to its status."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from resolvers import errors
from resolvers.context import Context
from resolvers.errors import GatewayError
from rest.answers import json_answer
from rest.signin import admitted

STATUS: Mapping[type[GatewayError], int] = {
    errors.Unauthenticated: 401,
    errors.InvalidToken: 401,
    errors.InsufficientScope: 403,
    errors.Forbidden: 403,
    errors.RateLimited: 429,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.NotAcceptable: 406,
    errors.InvalidInput: 400,
    errors.Conflict: 409,
    errors.IllegalTransition: 412,
    errors.UnsupportedMediaType: 415,
    errors.PayloadTooLarge: 413,
    errors.RequestTimeout: 408,
    errors.TemporarilyUnavailable: 503,
    errors.ServerError: 500,
}
"""An error's status is that of its nearest ancestor here; a test sees that every error has one."""


def status_of(error: GatewayError) -> int:
    """Give the HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def headers_of(error: GatewayError) -> dict[str, str]:
    """Give the headers that belong to an error: challenges (RFC 6750 section 3), when to come back, no reuse."""
    match error:
        case errors.Unauthenticated():
            return {"WWW-Authenticate": "Bearer"}
        case errors.InvalidToken():
            return {"WWW-Authenticate": f'Bearer error="{error.code}", error_description="{error.message}"'}
        case errors.InsufficientScope():
            return {"WWW-Authenticate": f'Bearer error="{error.code}", scope="{" ".join(error.scopes)}"'}
        case errors.MethodNotAllowed():
            return {"Allow": ", ".join(error.allowed)}
        case errors.RateLimited():
            return {"Retry-After": str(math.ceil(error.retry_after_ms / 1000))}
        case errors.TemporarilyUnavailable():
            return {"Retry-After": str(error.retry_after_seconds)}
        case _:
            return {}


def envelope(error: GatewayError, request_id: str) -> dict[str, Any]:
    """Give the body of a refusal: `error` and `message` as published, and what we add to them."""
    body: dict[str, Any] = {
        "error": error.code,
        "message": error.message,
        "recorded": error.recorded,
        "request_id": request_id,
    }
    if status_of(error) in {401, 403, 429}:
        body["error_description"] = error.message
    if isinstance(error, errors.RateLimited):
        body["retry_after_ms"] = error.retry_after_ms
    if isinstance(error, errors.InvalidInput):
        body["violations"] = [
            {"pointer": violation.pointer, "rule": violation.rule, "message": violation.message}
            for violation in error.violations
        ]
    return body


def respond(error: GatewayError, request_id: str) -> Response:
    """Phrase a refusal."""
    return json_answer(envelope(error, request_id), status_of(error), headers_of(error))


async def phrase(request: Request, error: Exception) -> Response:
    """Answer for an error that a function behind this door raised."""
    assert isinstance(error, GatewayError)
    context: Context | None = getattr(request.state, "context", None)
    if context is not None:
        context.note_refusal(error)
    return respond(error, request.state.request_id)


async def phrase_http(request: Request, error: Exception) -> Response:
    """Answer for a path or method that no route has: but first, as everywhere, who calls, and how often."""
    assert isinstance(error, HTTPException)
    try:
        await admitted(request)
    except GatewayError as refusal:
        return await phrase(request, refusal)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "").split(", ")
        return await phrase(request, errors.MethodNotAllowed(allowed))
    return await phrase(request, errors.NotFound())
