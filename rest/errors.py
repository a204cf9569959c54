"""The body of every refusal, and the one table that maps each GatewayError to its status."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from resolvers import errors
from resolvers.errors import GatewayError
from resolvers.request_state import state_of
from rest.authorize import authorize_request
from rest.content_negotiation import JSON, PROBLEM, accept_of, prefers_problem
from rest.public_url import public_path
from rest.responses import empty_answer, json_answer, service_links

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
"""An error has the status of its nearest ancestor here; a test checks that every error has one."""


def status_of(error: GatewayError) -> int:
    """Return the HTTP status of an error."""
    return status_of_kind(type(error))


def status_of_kind(kind: type[GatewayError]) -> int:
    """Return the HTTP status of an error class."""
    return next(STATUS[each] for each in kind.__mro__ if each in STATUS)


def summary_of(kind: type[GatewayError]) -> str:
    """Return the summary of an error class."""
    return (kind.__doc__ or "").partition("\n")[0]


def headers_of(error: GatewayError) -> dict[str, str]:
    """Return the headers of an error: challenges (RFC 6750 section 3), allowed methods and types, and `Retry-After`."""
    match error:
        case errors.Unauthenticated():
            return {"WWW-Authenticate": "Bearer"}
        case errors.InvalidToken():
            return {"WWW-Authenticate": f'Bearer error="{error.code}", error_description="{error.message}"'}
        case errors.InsufficientScope():
            return {"WWW-Authenticate": f'Bearer error="{error.code}", scope="{" ".join(error.scopes)}"'}
        case errors.MethodNotAllowed():
            return {"Allow": ", ".join(error.allowed)}
        case errors.UnsupportedMediaType():
            return {"Accept": JSON, "Accept-Encoding": "identity"}
        case errors.RateLimited():
            return {"Retry-After": str(math.ceil(error.retry_after_ms / 1000))}
        case errors.TemporarilyUnavailable():
            return {"Retry-After": str(error.retry_after_seconds)}
        case _:
            return {}


def envelope(error: GatewayError, request_id: str) -> dict[str, Any]:
    """Return the body of a refusal: `error` and `message` as published, and this project's additional members."""
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
        body["violations"] = [violation.as_members() for violation in error.violations]
    return body


def problem_of(error: GatewayError, request_id: str) -> dict[str, Any]:
    """Return the members of RFC 9457 for an error. None of them is derived from the request."""
    return {
        "type": public_path(f"/problems/{error.code}"),
        "title": summary_of(type(error)),
        "status": status_of(error),
        "detail": error.message,
        "instance": f"urn:encounter-gateway:request:{request_id}",
    }


def links_of(error: GatewayError) -> str:
    """Return the `Link` header: the explanations of the error's code and of each broken rule."""
    rules = {each.rule: None for each in error.violations} if isinstance(error, errors.InvalidInput) else {}
    pages = [f"/problems/{error.code}", *(f"/rules/{rule}" for rule in rules)]
    return ", ".join([service_links(), *(f'<{public_path(page)}>; rel="describedby"' for page in pages)])


def error_response(error: GatewayError, request_id: str, accept: str = "") -> Response:
    """Return the response of a refusal; a problem if `accept`, the header, prefers one."""
    body, media_type = envelope(error, request_id), JSON
    if prefers_problem(accept):
        body, media_type = problem_of(error, request_id) | body, PROBLEM
    return json_answer(body, status_of(error), headers_of(error) | {"Link": links_of(error)}, media_type)


async def refusal_response(request: Request, error: GatewayError) -> Response:
    """Return the response for an error that a resolver raised."""
    state = state_of(request.scope)
    if "context" in state:
        state["context"].note_refusal(error)
    return error_response(error, state["request_id"], accept_of(request))


async def routing_error_response(request: Request, error: HTTPException) -> Response:
    """Return the response for an unknown path or method, after authentication and rate limiting."""
    try:
        await authorize_request(request)
    except GatewayError as refusal:
        return await refusal_response(request, refusal)
    if error.status_code == 405:
        not_allowed = errors.MethodNotAllowed({*(error.headers or {}).get("Allow", "").split(", "), "OPTIONS"})
        # OPTIONS, which no route handles itself.
        if request.method == "OPTIONS":
            return empty_answer(204, headers_of(not_allowed))
        return await refusal_response(request, not_allowed)
    return await refusal_response(request, errors.NotFound(_without_slash(request)))


def _without_slash(request: Request) -> str | None:
    """Return the message that names the right path, if only a trailing slash is wrong; else None."""
    path: str = request.scope["path"]
    if not path.endswith("/"):
        return None
    asked = {**request.scope, "path": path.removesuffix("/")}
    routes = (route for route in request.app.routes if isinstance(route, Route))
    fitting = next((route.path for route in routes if route.matches(asked)[0] is not Match.NONE), None)
    if fitting is None:
        return None
    return f"There is no resource at this path; the path without the final slash is {public_path(fitting)}."
