"""A resource: a URL path, with a function for each of its methods."""

from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rest.preferences import preference_fields

Answer = Callable[[Request], Awaitable[Response]]


class Resource:
    """Serves one path. Starlette's `HTTPEndpoint` is instantiated, and looks up its methods, for each request."""

    def __init__(self, *, get: Answer, post: Answer | None = None) -> None:
        self._by_method = {"GET": get, "HEAD": get} | ({"POST": post} if post else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. Raises `HTTPException` for a method that it does not have."""
        answer = self._by_method.get(scope["method"])
        if answer is None:
            raise HTTPException(405, headers={"Allow": ", ".join(self._by_method)})
        response = await answer(Request(scope, receive))
        response.raw_headers += preference_fields(scope)
        await response(scope, receive, send)
