"""Traces sent to a collector by OTLP over HTTP. Needs the extra `traces`.

The attributes are an allow-list, as those of log lines are. A span has neither values of a caller nor paths, arguments,
SQL texts, messages of errors or stack traces: instrumentation libraries export these. `tracestate` and `baggage` of a
caller are free text and are ignored.

Sources: W3C Trace Context; OpenTelemetry semantic conventions for HTTP, GraphQL, databases and messaging.
"""

import asyncio
import logging
import os
import re
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context as TraceContext
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.observability import traces
from gateway.observability.logs import HANDLER
from gateway.observability.metrics import METHODS
from models import Table
from resolvers.context import Context
from resolvers.errors import GatewayError, InvalidInput, ServerError, TemporarilyUnavailable
from resolvers.outbox import Event
from schema.documents.parse import Document
from schema.execution import GraphQLRequest, GraphQLResponse, Runner, subscription_of

MAX_QUEUED_SPANS = 4096
"""Spans that wait for the collector, some 8 MB. While the queue is full, the oldest spans are dropped."""

EXPORT_SECONDS = 5.0
"""Timeout of an export with its retries; spans of a failed export are lost."""

FLUSH_SECONDS = 3.0
"""Seconds; how long shutdown waits for the last export."""

UNTRACED_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths of probes and scrapes, which come every few seconds."""

FAULTS = (ServerError, TemporarilyUnavailable)
"""Errors that make an operation a failed one; the others refuse what a caller sent."""

FAULT_CODES = frozenset(each.code for each in FAULTS)

MAX_SUMMARY_CHARACTERS = 255
"""Source: semantic conventions for databases, `db.query.summary`."""

PROPAGATOR = TraceContextTextMapPropagator()

TABLE_USE = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM|FROM|JOIN)\s+((?:patient_graph|gateway)\.[a-z_]+)")
VERBS = {"INSERT INTO": "INSERT", "DELETE FROM": "DELETE", "FROM": "SELECT", "JOIN": "SELECT"}


class OpenTelemetryTracer:
    """The tracer of the process (`gateway.observability.traces.Tracer`).

    Args:
        endpoint: Base URL of the collector; spans go to `/v1/traces` below it.
        ratio: Share of the traces that are recorded, of those without a `traceparent`.
    """

    def __init__(self, endpoint: str, ratio: float) -> None:
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "encounter-gateway"}
        self._provider = TracerProvider(
            resource=Resource.create({**named, "service.version": version("encounter-gateway")}),
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            shutdown_on_exit=False,
        )
        self._endpoint = f"{endpoint.rstrip('/')}/v1/traces"
        self._tracer = self._provider.get_tracer("encounter-gateway")

    def start(self) -> None:
        """Start the thread of the export, and add `trace_id` to the log lines of the process."""
        exporter = OTLPSpanExporter(
            endpoint=self._endpoint, timeout=EXPORT_SECONDS, compression=Compression.NoCompression
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUED_SPANS))
        traces.active = self
        HANDLER.addFilter(add_trace_id)

    async def close(self) -> None:
        """Stop tracing, and export the queued spans for at most `FLUSH_SECONDS`."""
        HANDLER.removeFilter(add_trace_id)
        traces.active = None
        # A thread of an executor would delay the end of the process until the export times out.
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, FLUSH_SECONDS)

    @property
    def middleware(self) -> partial["TraceMiddleware"]:
        """The factory of the middleware with this tracer."""
        return partial(TraceMiddleware, tracer=self)

    @property
    def runner(self) -> partial["TracedRunner"]:
        """The factory of a runner with this tracer."""
        return partial(TracedRunner, tracer=self)

    def traceparent(self) -> str | None:
        """Return the `traceparent` of the running span; None outside of one."""
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier)
        return carrier.get("traceparent")

    def statement(self, text: str) -> AbstractContextManager[object]:
        """Trace a statement within the block, if it runs for a traced request; a background job has no parent span."""
        if not trace.get_current_span().is_recording():
            return nullcontext()
        summary = summary_of(text)
        attributes = {"db.system.name": "postgresql", "db.query.summary": summary}
        return running(self._tracer.start_span(summary, None, SpanKind.CLIENT, attributes))

    def delivery(self, sink: str, event: Event) -> AbstractContextManager[object]:
        """Trace an attempt to deliver an event, in the trace of the change that it reports."""
        attributes = {
            "messaging.system": "nats" if sink == "nats" else "webhook",
            "messaging.operation.type": "send",
            "messaging.message.id": str(event.id),
            "gateway.sink": sink,
            "gateway.event_type": event.event_type,
        }
        parent = parent_of(event.traceparent)
        return running(self._tracer.start_span("delivery", parent, SpanKind.PRODUCER, attributes))

    def start_request(self, method: str, traceparent: str | None) -> Span:
        """Start the span of a request, in the caller's trace if `traceparent` is valid."""
        attributes = {"http.request.method": method}
        return self._tracer.start_span(method, parent_of(traceparent), SpanKind.SERVER, attributes)

    def start_operation(self, document: Document, ask: GraphQLRequest) -> Span:
        """Start the span of an operation. A trusted document's name is a constant, a client's own name is free text."""
        name, attributes = "invalid", dict[str, str]()
        if document.ast is not None and not document.errors:
            with suppress(InvalidInput):
                node = document.operation(ask.operation_name).node
                name = attributes["graphql.operation.type"] = node.operation.value
                if document.trusted and node.name is not None:
                    attributes["graphql.operation.name"] = node.name.value
                    name = f"{name} {node.name.value}"
        # An operation on a WebSocket is part of no request.
        kind = SpanKind.INTERNAL if trace.get_current_span().is_recording() else SpanKind.SERVER
        return self._tracer.start_span(name, None, kind, attributes)


@contextmanager
def running(span: Span, *, ends: bool = True) -> Iterator[None]:
    """Make this the running span of the block, and record the type or code of an exception."""
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except Exception as error:
        fail(span, error_type(error), fault=not isinstance(error, GatewayError) or isinstance(error, FAULTS))
        raise
    finally:
        if ends:
            span.end()


class TraceMiddleware:
    """Outermost middleware: a span for each HTTP request, which continues the caller's trace."""

    def __init__(self, app: ASGIApp, *, tracer: OpenTelemetryTracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        if scope["type"] != "http" or scope["path"] in UNTRACED_PATHS:
            await self._app(scope, receive, send)
            return
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"]
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        # Repeated lines are invalid. Source: W3C Trace Context, 3.2.
        span = self._tracer.start_request(method, sent[0] if len(sent) == 1 else None)
        scope.setdefault("state", {})
        with running(span):
            try:
                await self._app(scope, receive, send)
            finally:
                _describe(span, method, scope)


def _describe(span: Span, method: str, scope: Scope) -> None:
    """Add what is known at the end of a request. The route is the template; a path contains ids of patients."""
    state = scope["state"]
    if route := getattr(scope.get("route"), "path", None):
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("gateway.request_id", state["request_id"])
    if status := state.get("status"):
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            fail(span, str(status), fault=True)


class TracedRunner(Runner):
    """A runner with a span for each operation; that of a subscription ends with the subscription."""

    def __init__(self, *given: Any, tracer: OpenTelemetryTracer, **named: Any) -> None:
        super().__init__(*given, **named)
        self._tracer = tracer

    async def run(
        self, ask: GraphQLRequest, document: Document, context: Context, *, read_only: bool = False
    ) -> GraphQLResponse:
        """Run a query or a mutation (`Runner.run`)."""
        span = self._tracer.start_operation(document, ask)
        with running(span):
            response = await super().run(ask, document, context, read_only=read_only)
            _note_error(span, response)
        return response

    async def start(
        self,
        ask: GraphQLRequest,
        document: Document,
        context: Context,
        *,
        read_only: bool = False,
        last_event_id: str | None = None,
    ) -> GraphQLResponse | AsyncGenerator[GraphQLResponse, None]:
        """Run a query or a mutation, or start a subscription (`Runner.start`)."""
        start = partial(super().start, ask, document, context, read_only=read_only, last_event_id=last_event_id)
        if subscription_of(document, ask) is None:
            return await start()
        span = self._tracer.start_operation(document, ask)
        try:
            with running(span, ends=False):
                begun = await start()
        except BaseException:
            span.end()
            raise
        if isinstance(begun, GraphQLResponse):
            _note_error(span, begun)
            span.end()
            return begun
        return _traced(begun, span)


async def _traced(
    responses: AsyncGenerator[GraphQLResponse, None], span: Span
) -> AsyncGenerator[GraphQLResponse, None]:
    """Yield the responses of a subscription. Each is computed within the span, which ends with them."""
    events = 0
    try:
        while True:
            with running(span, ends=False):
                response = await anext(responses, None)
            if response is None:
                return
            events += 1
            yield response
    finally:
        span.set_attribute("gateway.events", events)
        span.end()
        await responses.aclose()


def _note_error(span: Span, response: GraphQLResponse) -> None:
    for error in response.body.get("errors", ()):
        code = error["extensions"]["code"]
        fail(span, code, fault=code in FAULT_CODES)
        return


def fail(span: Span, kind: str, *, fault: bool) -> None:
    """Record an error by its type or code. Only a fault of the gateway or of what it calls makes the span a failure."""
    span.set_attribute("error.type", kind)
    if fault:
        span.set_status(StatusCode.ERROR)


def error_type(error: Exception) -> str:
    """Return an error's code, the reason of a failed delivery, or the class. Messages may quote values."""
    kind: str = getattr(error, "code", None) or getattr(error, "reason", None) or type(error).__name__
    return kind


def parent_of(traceparent: str | None) -> TraceContext:
    """Return a context whose span is the one that `traceparent` names; an empty one if it is None or invalid."""
    return PROPAGATOR.extract({} if traceparent is None else {"traceparent": traceparent}, TraceContext())


@lru_cache(1024)
def summary_of(text: str) -> str:
    """Return what a statement does with which tables, in the order of its text.

    A statement of a GraphQL document contains the aliases of the document, so its text is not exported.
    """
    uses = dict.fromkeys(
        f"{VERBS.get(verb, verb)} {table.partition('.')[2]}"
        for verb, table in TABLE_USE.findall(text)
        if table in Table.metadata.tables
    )
    summary = ""
    for use in uses:
        if len(summary) + len(use) >= MAX_SUMMARY_CHARACTERS:
            break
        summary = f"{summary} {use}".lstrip()
    return summary or "statement"


def add_trace_id(record: logging.LogRecord) -> bool:
    """Add the id of the running trace to a log record."""
    if (running_in := trace.get_current_span().get_span_context()).is_valid:
        record.trace_id = trace.format_trace_id(running_in.trace_id)
    return True
