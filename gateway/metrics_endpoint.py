"""`GET /metrics`: the metrics of all processes, and the event pipeline's progress from the database."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.requests import Request
from starlette.responses import Response

from gateway.events.status import EventStatus, event_numbers
from gateway.observability.metrics import REGISTRY
from resolvers.access import Permission
from resolvers.errors import TemporarilyUnavailable
from resolvers.request_state import NodeCount, state_of
from resolvers.sql import RelayDatabase
from rest.authorize import authorize_request
from rest.responses import with_default_headers


async def metrics(request: Request) -> Response:
    """Return 200 and the metrics in the text format of Prometheus. A scrape does not count as a read of a record."""
    await authorize_request(request, Permission.READ_METRICS)
    state = state_of(request.scope)
    numbers = await _numbers(state["relay"])
    # On a cluster, the numbers need every node, and a recording needs one.
    is_up = numbers is not None or await _answers(state["ping"])
    text = await asyncio.to_thread(_written, from_database(numbers, state["nodes"](), is_up=is_up))
    return with_default_headers(Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST}))


async def _numbers(relay: RelayDatabase) -> EventStatus | None:
    try:
        return await event_numbers(relay)
    except TemporarilyUnavailable:
        return None


async def _answers(ping: Callable[[], Awaitable[None]]) -> bool:
    try:
        await ping()
    except TemporarilyUnavailable:
        return False
    return True


def _written(metrics: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    registry.register(_StaticCollector(metrics))
    return generate_latest(registry)


class _StaticCollector:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> list[Metric]:
        return self._metrics


def from_database(numbers: EventStatus | None, nodes: NodeCount | None, *, is_up: bool) -> Iterable[Metric]:
    """Yield the metrics from the database, which are the same in every process.

    Without `numbers` the database or a node of the cluster is unavailable, and those of the events are missing.
    """
    yield _gauge("database_up", "Whether the database answered during this scrape.", is_up)
    answering, of = (nodes.answering, nodes.of) if nodes else (0, 0)
    family = GaugeMetricFamily(
        "gateway_cluster_nodes", "Nodes of the Citus cluster, by state; 0 on one server.", labels=["state"]
    )
    family.add_metric(["answering"], answering)
    family.add_metric(["away"], of - answering)
    yield family
    if numbers is None:
        return
    yield _gauge("events_waiting", "Events without a position.", numbers.waiting)
    yield _gauge("events_oldest_seconds", "Seconds that the oldest of these has waited.", numbers.oldest_seconds)
    yield _gauge("events_position", "The watermark: events up to this position may be read.", numbers.position)
    yield _gauge(
        "events_unsettled", "Events beyond the watermark; a value that stays above 0 is a fault.", numbers.unsettled
    )
    sinks: dict[str, tuple[str, dict[str, Any]]] = {
        "sink_behind": (
            "Events that have not been delivered, by sink.",
            {each.name: each.behind for each in numbers.sinks},
        ),
        "sink_oldest_seconds": (
            "Seconds that the first of these has waited, by sink.",
            {each.name: each.oldest_seconds for each in numbers.sinks},
        ),
        "sink_failures": (
            "Consecutive failed deliveries, by sink.",
            {each.name: each.failures for each in numbers.sinks},
        ),
        "sink_dead_letters": (
            "Dead letters, by sink.",
            {each.name: each.dead_letters for each in numbers.sinks},
        ),
        "sink_disabled": (
            "Whether the sink is disabled, by sink.",
            {each.name: each.disabled_at is not None for each in numbers.sinks},
        ),
    }
    for name, (documentation, values) in sinks.items():
        family = GaugeMetricFamily(f"gateway_{name}", documentation, labels=["sink"])
        for sink, value in values.items():
            family.add_metric([sink], value)
        yield family


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"gateway_{name}", documentation, value=value)
