"""Outermost middleware: request ids, log lines, common headers, unhandled errors, and the allowed hosts."""

import asyncio
import re
import time
from collections.abc import Collection
from functools import lru_cache
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.observability.logs import log_request, log_socket, report
from gateway.observability.metrics import REFUSALS, SOCKETS_OPEN
from gateway.rate_limits.limiter import headers_of
from resolvers.context import Credentials
from resolvers.errors import Forbidden, ServerError, Stopped
from resolvers.request_state import RequestState, state_of
from rest.errors import error_response
from rest.preferences import preference_fields
from rest.public_url import PUBLIC_URL
from rest.responses import missing_headers

# Characters that are safe in a header, a log line and a URL.
REQUEST_ID = re.compile(r"[A-Za-z0-9._~:-]{1,128}")

PORT = re.compile(r":[0-9]*$")

# A response is data: it must not run scripts, be framed, have its type guessed, or be read by another site.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_ON_EVERY_ANSWER = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
"""Fields that are added to every response that does not set them itself."""


class RequestContextMiddleware:
    """Middleware for all HTTP requests; WebSockets are passed to `WebSocketLogMiddleware`.

    Each request gets an id and one log line. Each response gets the security headers and, if known, the caller's rate
    limit headers. Unhandled exceptions are answered here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._sockets = WebSocketLogMiddleware(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        if scope["type"] != "http":
            await (self._sockets if scope["type"] == "websocket" else self._app)(scope, receive, send)
            return
        started = time.perf_counter()
        state = _populate_state(scope)
        request_id = state["request_id"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                message["headers"] = [
                    *message["headers"],
                    *missing_headers(message["headers"], _ON_EVERY_ANSWER),
                    (b"x-request-id", request_id.encode()),
                    *_allowance_of(state),
                    *await _consistency_of(state),
                    *preference_fields(scope),
                ]
            elif message.get("body") and not message.get("more_body"):
                # uvicorn delays a message while too much of the previous ones is unread. The end of the response is
                # sent separately, so that it waits until the client has read the body.
                await send({**message, "more_body": True})
                message = {"type": "http.response.body"}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # the client has disconnected
        except asyncio.CancelledError:
            # Shutdown timeout: answer 503 so that the client need not interpret a dropped connection.
            if "status" in state:
                raise
            REFUSALS.labels(Stopped.code).inc()
            await error_response(Stopped(), request_id)(scope, receive, send_with_headers)
        except Exception as error:
            report(error, request_id)
            REFUSALS.labels(ServerError.code).inc()
            if "status" in state:
                raise
            refusal = error_response(ServerError(), request_id, Headers(scope=scope).get("accept", ""))
            await refusal(scope, receive, send_with_headers)
        finally:
            if "context" in state:
                # The client has read the response, except for bytes in the connection's buffer, or has disconnected.
                state["context"].release_answer()
            log_request(scope, state.get("status"), time.perf_counter() - started)


class WebSocketLogMiddleware:
    """Middleware for all WebSockets: a request id, and one log line when the socket closes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the socket."""
        started = time.perf_counter()
        _populate_state(scope)
        status = 403
        code: int | None = None

        async def receive_watched() -> Message:
            nonlocal code
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code")
            return message

        async def send_watched(message: Message) -> None:
            nonlocal status, code
            if message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.close":
                code = message.get("code")
            await send(message)

        SOCKETS_OPEN.inc()
        try:
            await self._app(scope, receive_watched, send_watched)
        finally:
            SOCKETS_OPEN.dec()
            log_socket(scope, status, code, time.perf_counter() - started)


class KnownHosts:
    """Middleware that serves requests for these hosts only, on any port.

    A page of another site may let its own name resolve to loopback (DNS rebinding). Its requests then have the same
    origin as the gateway, and only `Host` differs. A request without `Host` (HTTP/1.0) does not come from a browser.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request or the socket, or refuse it with 403."""
        if scope["type"] not in {"http", "websocket"} or self._is_known(state_of(scope)["head"].get("host")):
            await self._app(scope, receive, send)
            return
        REFUSALS.labels(Forbidden.code).inc()
        if scope["type"] == "websocket":
            await receive()  # websocket.connect
            await send({"type": "websocket.close"})
            return
        refusal = Forbidden("Development mode serves the hosts localhost, 127.0.0.1 and [::1] only; use one of these.")
        answer = error_response(refusal, state_of(scope)["request_id"], state_of(scope)["head"].get("accept", ""))
        await answer(scope, receive, send)

    def _is_known(self, host: str | None) -> bool:
        return host is None or PORT.sub("", host).lower().strip("[]") in self._hosts


def _populate_state(scope: Scope) -> RequestState:
    """Store data from the request's head in `scope["state"]`, and return that state."""
    head: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        head[name] = f"{head[name]}, {value}" if name in head else value
    sent = head.get("x-request-id", "")
    origin = head.get("origin") or None
    own = {PUBLIC_URL.get().origin} | ({f"http://{host}", f"https://{host}"} if (host := head.get("host")) else set())
    if origin in own:
        origin = None  # a page served by the gateway
    scope.setdefault("state", {})
    state = state_of(scope)
    state["head"] = head
    state["sends_json"] = _is_json(head.get("content-type", ""), head.get("content-encoding", ""))
    state["request_id"] = request_id = sent if REQUEST_ID.fullmatch(sent) else str(uuid4())
    client = scope.get("client")
    state["introduction"] = Credentials(
        authorization=head.get("authorization", ""),
        stated_brand_id=head.get("x-brand-id"),
        request_id=request_id,
        origin=origin,
        address=client[0] if client else None,
        consistency=head.get("x-consistency") or None,
    )
    return state


@lru_cache(256)
def _is_json(content_type: str, coding: str) -> bool:
    media_type, _, parameters = content_type.lower().partition(";")
    charset = parameters.partition("charset=")[2].partition(";")[0].strip('" ')
    is_read = charset in {"", "utf-8"} and coding.strip().lower() in {"", "identity"}
    return media_type.strip() == "application/json" and is_read


def _allowance_of(state: RequestState) -> list[tuple[bytes, bytes]]:
    allowance = state.get("allowance")
    return headers_of(allowance) if allowance is not None and allowance.limit else []


async def _consistency_of(state: RequestState) -> list[tuple[bytes, bytes]]:
    marker = await state["context"].marker() if "context" in state else None
    return [] if marker is None else [(b"x-consistency", marker.encode())]


REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "X-Brand-Id",
    "X-Consistency",
    "X-Request-Id",
    # Tracing libraries add these to requests to any origin. Source: W3C Trace Context, W3C Baggage.
    "traceparent",
    "tracestate",
    "baggage",
    # Apollo clients send their name and version, for other tools.
    "apollographql-client-name",
    "apollographql-client-version",
    "x-apollo-operation-name",
)
"""Request headers that a page of an allowed origin may send; `GATEWAY_CORS_HEADERS` adds more."""

RESPONSE_HEADERS = (
    "Allow",
    "ETag",
    "Idempotent-Replayed",
    "Link",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Consistency",
    "X-Ignored",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "X-Request-Id",
)
"""Response headers that a page of an allowed origin may read, in addition to the CORS-safelisted ones."""
