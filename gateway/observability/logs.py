"""Structured logs that never contain patient data.

Modules log with `logging`: the message is the event's name, and `extra` has its fields. The formatter is an allow-list:
it writes the fields of `FIELDS` only. An exception is logged by type and location, never by its message, because
drivers repeat values in messages.
"""

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
from resolvers.request_state import state_of
from schema.documents.limits import LimitViolation

FLUSH_SECONDS = 2.0
"""Seconds; how long process exit waits for the reader of standard error."""

PACKAGES = ("gateway", "schema", "rest", "resolvers", "models")
"""The packages of this project. Their messages are constants; a library's message may quote input."""

FIELDS = frozenset(
    {
        *("request_id", "route", "method", "status", "code", "duration_ms", "operations", "outcome"),
        *("client_id", "user_id", "brand_id"),
        *("rule", "limit", "found", "sha256", "fault", "topic", "reason", "refused"),
        *("job", "sink", "replica", "event_id", "after", "until", "stamped", "position"),
        *("dropped", "counted", "line", "error", "place", "trace_id"),
    }
)
"""The fields that a log line may have, beside the event, the level and the time."""

logger = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """Format a record as a JSON object: its fields, event, level and time."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON object. A library's record has only the library, the location and the type of exception."""
        event = "library"
        if record.name.partition(".")[0] in PACKAGES:
            event = record.msg
            fields = {name: value for name, value in record.__dict__.items() if name in FIELDS}
        else:
            fields = {"logger": record.name, "place": f"{record.module}:{record.lineno}"}
            if record.exc_info and record.exc_info[1]:
                fields |= describe(record.exc_info[1])
        fields["event"] = event
        fields["level"] = record.levelname.lower()
        fields["timestamp"] = datetime.fromtimestamp(record.created, UTC)
        return orjson.dumps(fields, option=orjson.OPT_UTC_Z).decode()


class StderrHandler(logging.Handler):
    """Write one record a line to standard error, directly or through a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._writer: QueuedWriter | None = None

    def start_queue(self) -> None:
        """Write through a queue from now on, so that a slow reader of standard error cannot block a request."""
        if self._writer is None and sys.stderr is not None:
            self._writer = QueuedWriter(sys.stderr.fileno(), on_drop=LOG_DROPPED.inc)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        line = f"{self.format(record)}\n".encode()
        if self._writer is not None:
            self._writer.put(line)
        elif sys.stderr is not None:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()

    def flush(self) -> None:
        """Return when the queued lines are written, or after `FLUSH_SECONDS`. `logging` calls it at exit."""
        if self._writer is not None:
            self._writer.flush(FLUSH_SECONDS)


HANDLER = StderrHandler()


def configure_logging(*, queued: bool = False) -> None:
    """Log to standard error: this project from `INFO` on, libraries from `WARNING` on."""
    logging.basicConfig(handlers=[HANDLER], level=logging.WARNING, force=True)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    # No line has these; each record costs 1.5 µs less without them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if queued:
        HANDLER.start_queue()


def describe(error: BaseException) -> dict[str, str]:
    """Return an exception's type and the location where it was raised, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else "unknown"
    return {"error": type(error).__name__, "place": place}


def report(error: BaseException, request_id: str) -> None:
    """Log an unexpected exception by type and location, with the request id that the caller receives."""
    logger.error("unexpected", extra={"request_id": request_id, **describe(error)})


def log_request(scope: Scope, status: int | None, seconds: float) -> None:
    """Count a request, and write its only log line. `status` is None for a request without a response."""
    state, route = state_of(scope), getattr(scope.get("route"), "path", None)
    count_request(route, scope["method"], status, seconds)
    fields = {
        "request_id": state["request_id"],
        "route": route,
        "method": scope["method"],
        "status": status,
        "duration_ms": round(seconds * 1000, 3),
    }
    _log("request", fields, state.get("caller"))


def log_socket(scope: Scope, status: int, code: int | None, seconds: float) -> None:
    """Write the only log line of a closed WebSocket."""
    state = state_of(scope)
    fields = {
        "request_id": state["request_id"],
        "route": getattr(scope.get("route"), "path", None),
        "status": status,
        "code": code,
        "duration_ms": round(seconds * 1000, 3),
        "operations": state.get("operations", 0),
    }
    _log("socket", fields, state.get("caller"))


def log_operation(context: Context, outcome: str, seconds: float) -> None:
    """Count an operation on a WebSocket and log it.

    Args:
        context: The context of the operation.
        outcome: `complete`, the error code of a refusal, or `stopped`.
        seconds: Duration.
    """
    count_operation(outcome, seconds)
    fields = {"request_id": context.request_id, "outcome": outcome, "duration_ms": round(seconds * 1000, 3)}
    _log("operation", fields, context.caller)


def log_breach(context: Context, breach: LimitViolation) -> None:
    """Log that a document exceeded a limit that is not enforced."""
    fields = {"request_id": context.request_id, "rule": breach.rule, "limit": breach.limit, "found": breach.found}
    _log("limit", fields, context.caller)


def log_unknown_document(context: Context, sha256: str) -> None:
    """Log that a document is in no manifest."""
    _log("unknown_document", {"request_id": context.request_id, "sha256": sha256}, context.caller)


def _log(event: str, fields: dict[str, object], caller: Caller | None) -> None:
    """Log an event of a caller, without the module and line that `Logger.info` looks up: a third less CPU."""
    if not logger.isEnabledFor(logging.INFO):
        return
    for name in ("client_id", "user_id", "brand_id"):
        fields[name] = getattr(caller, name, None)
    record = {"name": logger.name, "msg": event, "levelno": logging.INFO, "levelname": "INFO"}
    logger.handle(logging.makeLogRecord(record | fields))
