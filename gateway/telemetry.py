"""Logs and request ids. What a person wrote about a patient never leaves through here.

The log is an allow-list: an event has the fields named below and no others, and an exception is told by its type and
place, never by its words, because a driver's words repeat values.
"""

import asyncio
import logging
import re
import sys
import time
import traceback
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.metrics import REFUSALS, SOCKETS_OPEN, count_operation, count_request
from resolvers.access import Caller
from resolvers.context import Context
from resolvers.errors import ServerError, Stopped
from rest.errors import respond
from schema.limits import Breach

# Letters that can do no harm in a header, a log line or a URL.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:-]{1,128}")
REQUEST_ID = "request_id"

log = structlog.get_logger()


def configure_logging() -> None:
    """Write one JSON object a line to standard error, ours and every library's."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    # A library's message may quote what it choked on: say which library and how grave, and nothing else.
    logging.basicConfig(handlers=[_LibraryMessages()], level=logging.WARNING, force=True)


class _LibraryMessages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"logger": record.name, "place": f"{record.module}:{record.lineno}"}
        if record.exc_info and record.exc_info[1]:
            fields |= describe(record.exc_info[1])
        log.log(record.levelno, "library", **fields)


def describe(error: BaseException) -> dict[str, str]:
    """Give an exception's type and the place it was raised, without a word of its message."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else "unknown"
    return {"error": type(error).__name__, "place": place}


def report(error: BaseException, request_id: str) -> None:
    """Write down an exception nobody expected: its type and place, under the id that the caller is told."""
    log.error("unexpected", request_id=request_id, **describe(error))


class RequestLog:
    """Gives each request an id, answers what nobody caught, and writes the request's one log line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state[REQUEST_ID] = request_id = _request_id(scope)
        started = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except asyncio.CancelledError:
            # The server stops, and waits no longer. Whoever is told so need not guess from a connection that broke.
            if status is not None:
                raise
            REFUSALS.labels(Stopped.code).inc()
            await respond(Stopped(), request_id)(scope, receive, send_with_id)
        except Exception as error:
            report(error, request_id)
            REFUSALS.labels(ServerError.code).inc()
            if status is not None:
                raise
            await respond(ServerError(), request_id, Headers(scope=scope).get("accept", ""))(
                scope, receive, send_with_id
            )
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", None)
            count_request(route, scope["method"], status, seconds)
            log.info(
                "request",
                request_id=request_id,
                route=route,
                method=scope["method"],
                status=status,
                duration_ms=round(seconds * 1000, 3),
                **_who(state.get("caller")),
            )


class SocketLog:
    """Gives each socket an id, and writes its one log line when it is over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the socket."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state[REQUEST_ID] = _request_id(scope)
        started = time.perf_counter()
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
            log.info(
                "socket",
                request_id=state[REQUEST_ID],
                route=getattr(scope.get("route"), "path", None),
                status=status,
                code=code,
                duration_ms=round((time.perf_counter() - started) * 1000, 3),
                operations=state.get("operations", 0),
                **_who(state.get("caller")),
            )


def log_operation(context: Context, outcome: str, seconds: float) -> None:
    """Count an operation on a socket, and write its log line: `complete`, the code of what refused it, or `stopped`."""
    count_operation(outcome, seconds)
    log.info(
        "operation",
        request_id=context.request_id,
        outcome=outcome,
        duration_ms=round(seconds * 1000, 3),
        **_who(context.caller),
    )


def log_breach(context: Context, breach: Breach) -> None:
    """Write down that a limit would have refused what was asked for, had it been enforced."""
    log.info(
        "limit",
        request_id=context.request_id,
        rule=breach.rule,
        limit=breach.limit,
        found=breach.found,
        **_who(context.caller),
    )


def log_unknown_document(context: Context, sha256: str) -> None:
    """Write down that a document is in no manifest."""
    log.info("unknown_document", request_id=context.request_id, sha256=sha256, **_who(context.caller))


def _who(caller: Caller | None) -> dict[str, str | None]:
    return {name: getattr(caller, name, None) for name in ("client_id", "user_id", "brand_id")}


def _request_id(scope: Scope) -> str:
    sent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    return sent if _REQUEST_ID.fullmatch(sent) else str(uuid4())
