"""Structured logs that never contain patient data.

The log is an allow-list: an event has only the fields named below. An exception is logged by type and location, never
by its message, because drivers repeat values in messages.
"""

import atexit
import logging
import sys
import traceback
from datetime import UTC, datetime

import orjson
from starlette.types import Scope

from gateway.observability.metrics import LOG_DROPPED, count_operation, count_request
from gateway.observability.queued_writer import QueuedWriter
from resolvers.access import Caller
from resolvers.context import Context
from schema.documents.limits import LimitViolation

FLUSH_SECONDS = 2.0
"""Seconds; how long process exit waits for the reader of standard error."""


class Log:
    """Write JSON objects, one a line, to standard error, directly or through a queue."""

    def __init__(self) -> None:
        self._writer: QueuedWriter | None = None

    def start_queue(self) -> None:
        """Write through a queue from now on, so that a slow reader of standard error cannot block a request."""
        if self._writer is None and sys.stderr is not None:
            self._writer = QueuedWriter(sys.stderr.fileno(), on_drop=LOG_DROPPED.inc)
            # Flush before the interpreter ends, which stops the thread at any point.
            atexit.register(self.flush)

    def flush(self) -> None:
        """Return when the queued lines are written, or after `FLUSH_SECONDS`."""
        if self._writer is not None:
            self._writer.flush(FLUSH_SECONDS)

    def info(self, event: str, **fields: object) -> None:
        """Log a normal event."""
        self.write(event, "info", fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log an event that may need an operator's attention."""
        self.write(event, "warning", fields)

    def error(self, event: str, **fields: object) -> None:
        """Log an unexpected event."""
        self.write(event, "error", fields)

    def write(self, event: str, level: str, fields: dict[str, object]) -> None:
        """Write a line. `level` is one of the above, or the level of a library's message."""
        members = fields | {"event": event, "level": level, "timestamp": datetime.now(UTC)}
        line = orjson.dumps(members, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
        if self._writer is not None:
            self._writer.put(line)
        elif sys.stderr is not None:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


log = Log()


def configure_logging() -> None:
    """Redirect the messages of every library to this log."""
    # A library's message may quote input, so only the library and the level are logged.
    logging.basicConfig(handlers=[_LibraryMessages()], level=logging.WARNING, force=True)


class _LibraryMessages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Modules of `resolvers` log through `logging`. Their fields are defined here and contain no input of a caller.
        own_fields: dict[str, object] | None = getattr(record, "fields", None)
        if own_fields is not None and record.name.startswith("resolvers."):
            log.write(record.getMessage(), record.levelname.lower(), own_fields)
            return
        fields: dict[str, object] = {"logger": record.name, "place": f"{record.module}:{record.lineno}"}
        if record.exc_info and record.exc_info[1]:
            fields |= describe(record.exc_info[1])
        log.write("library", record.levelname.lower(), fields)


def describe(error: BaseException) -> dict[str, str]:
    """Return an exception's type and the location where it was raised, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else "unknown"
    return {"error": type(error).__name__, "place": place}


def report(error: BaseException, request_id: str) -> None:
    """Log an unexpected exception by type and location, with the request id that the caller receives."""
    log.error("unexpected", request_id=request_id, **describe(error))


def log_request(scope: Scope, status: int | None, seconds: float) -> None:
    """Count a request, and write its only log line. `status` is None for a request without a response."""
    route = getattr(scope.get("route"), "path", None)
    count_request(route, scope["method"], status, seconds)
    log.info(
        "request",
        request_id=scope["state"]["request_id"],
        route=route,
        method=scope["method"],
        status=status,
        duration_ms=round(seconds * 1000, 3),
        **_who(scope["state"].get("caller")),
    )


def log_socket(scope: Scope, status: int, code: int | None, seconds: float) -> None:
    """Write the only log line of a closed WebSocket."""
    log.info(
        "socket",
        request_id=scope["state"]["request_id"],
        route=getattr(scope.get("route"), "path", None),
        status=status,
        code=code,
        duration_ms=round(seconds * 1000, 3),
        operations=scope["state"].get("operations", 0),
        **_who(scope["state"].get("caller")),
    )


def log_operation(context: Context, outcome: str, seconds: float) -> None:
    """Count an operation on a WebSocket and log it.

    Args:
        context: The context of the operation.
        outcome: `complete`, the error code of a refusal, or `stopped`.
        seconds: Duration.
    """
    count_operation(outcome, seconds)
    log.info(
        "operation",
        request_id=context.request_id,
        outcome=outcome,
        duration_ms=round(seconds * 1000, 3),
        **_who(context.caller),
    )


def log_breach(context: Context, breach: LimitViolation) -> None:
    """Log that a document exceeded a limit that is not enforced."""
    log.info(
        "limit",
        request_id=context.request_id,
        rule=breach.rule,
        limit=breach.limit,
        found=breach.found,
        **_who(context.caller),
    )


def log_unknown_document(context: Context, sha256: str) -> None:
    """Log that a document is in no manifest."""
    log.info("unknown_document", request_id=context.request_id, sha256=sha256, **_who(context.caller))


def _who(caller: Caller | None) -> dict[str, str | None]:
    if caller is None:
        return {"client_id": None, "user_id": None, "brand_id": None}
    return {"client_id": caller.client_id, "user_id": caller.user_id, "brand_id": caller.brand_id}
