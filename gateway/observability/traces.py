"""The tracer of the process, if traces are on. This module imports nothing of OpenTelemetry.

`gateway.observability.opentelemetry` implements the tracer and is imported only if `GATEWAY_OTLP_ENDPOINT` is set.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from resolvers.outbox import Event


class Tracer(Protocol):
    """What the database and the delivery of events trace. No span has an argument or the text of an error."""

    def statement(self, text: str) -> AbstractContextManager[object]:
        """Trace a statement within the block, if it runs for a traced request. `text` has placeholders for values."""

    def delivery(self, sink: str, event: Event) -> AbstractContextManager[object]:
        """Trace an attempt to deliver an event, in the trace of the change that it reports."""

    def traceparent(self) -> str | None:
        """Return the `traceparent` of the running span; None outside of one. Source: W3C Trace Context, 3.2."""


active: Tracer | None = None
"""None: traces are off."""


def delivery(sink: str, event: Event) -> AbstractContextManager[object]:
    """Trace an attempt to deliver an event within the block."""
    return nullcontext() if active is None else active.delivery(sink, event)


def outgoing_headers(event: Event) -> dict[str, str]:
    """Return the header that continues the trace in a receiver of the event.

    The parent is the span of the delivery. A gateway without traces passes on the span that recorded the event.
    """
    traceparent = event.traceparent if active is None else active.traceparent()
    return {} if traceparent is None else {"traceparent": traceparent}
