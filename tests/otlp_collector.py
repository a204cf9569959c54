"""An OpenTelemetry collector on loopback, which decodes the spans that it receives."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """A received span; ids are in hexadecimal digits."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    failed: bool
    text: str
    """Everything that was received of it."""


class Collector(ThreadingHTTPServer):
    """Answers each export after `delay_seconds` with `status`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        self.delay_seconds = 0.0
        self.status = 200
        super().__init__(("127.0.0.1", 0), Handler)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        """Serve in a thread within the block."""
        with cls() as collector:
            serving = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
            serving.start()
            try:
                yield collector
            finally:
                collector.shutdown()
                serving.join()

    @property
    def url(self) -> str:
        """The base URL, as in `GATEWAY_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self.server_port}"

    def named(self, name: str) -> list[Span]:
        """Return the spans of a name."""
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        """Return the only span of a name."""
        (span,) = self.named(name)
        return span

    def below(self, parent: Span) -> list[Span]:
        """Return the children of a span."""
        return [span for span in self.spans if span.parent_id == parent.span_id]


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.server.delay_seconds)
        if self.path == "/v1/traces" and self.server.status == 200:
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.server.resource = attributes_of(sent.resource)
                self.server.spans += [span_of(each) for scope in sent.scope_spans for each in scope.spans]
        self.send_response(self.server.status if self.path == "/v1/traces" else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def span_of(sent: Any) -> Span:
    assert not sent.events, "an event may have the message of an exception"
    return Span(
        sent.name,
        sent.kind,
        sent.trace_id.hex(),
        sent.span_id.hex(),
        sent.parent_span_id.hex(),
        attributes_of(sent),
        sent.status.code == sent.status.STATUS_CODE_ERROR,
        str(sent),
    )


def attributes_of(sent: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in sent.attributes}
