"""Metrics of the process. Labels come from fixed sets: never client input, a patient, or a key.

`gateway.metrics_endpoint` serves them. With several workers, each writes its own file, in the folder that `gateway
serve` passes to prometheus_client before they start. The worker that answers a scrape adds them up.
"""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _counter(name: str, documentation: str, *labels: str) -> Counter:
    return Counter(f"gateway_{name}", documentation, labels, registry=REGISTRY)


def _gauge(name: str, documentation: str, *labels: str) -> Gauge:
    # The sum over the running workers.
    return Gauge(f"gateway_{name}", documentation, labels, registry=REGISTRY, multiprocess_mode="livesum")


def _greatest(name: str, documentation: str, *labels: str) -> Gauge:
    # The greatest value of the running workers.
    return Gauge(f"gateway_{name}", documentation, labels, registry=REGISTRY, multiprocess_mode="livemax")


def _histogram(name: str, documentation: str, *labels: str) -> Histogram:
    return Histogram(f"gateway_{name}", documentation, labels, registry=REGISTRY)


REQUESTS = _counter(
    "requests", "HTTP requests, by door, route, method and status.", "door", "route", "method", "status"
)
REQUEST_SECONDS = _histogram(
    "request_seconds", "Duration of HTTP requests in seconds, by door, route and method.", "door", "route", "method"
)
SOCKETS_OPEN = _gauge("sockets_open", "Open WebSockets.")
SOCKET_OPERATIONS = _counter("socket_operations", "Operations on WebSockets, by outcome.", "outcome")
SOCKET_OPERATION_SECONDS = _histogram("socket_operation_seconds", "Duration of operations on WebSockets in seconds.")
REFUSALS = _counter("refusals", "Refusals over REST and GraphQL, by code.", "code")
ENCOUNTERS_RECORDED = _counter("encounters_recorded", "Encounters recorded.")
ENCOUNTERS_REPLAYED = _counter(
    "encounters_replayed", "Recordings that were replayed because their key was recorded earlier."
)
POOL_CONNECTIONS = _gauge("pool_connections", "Maximum number of database connections, by pool.", "pool")
POOL_IN_USE = _gauge("pool_in_use", "Database connections in use, by pool.", "pool")
POOL_REFUSED = _counter("pool_refused", "Waits for a free connection that timed out, by pool.", "pool")
READS = _counter(
    "reads",
    "Requests that read from a replica (recent, waited) or the primary instead (behind, left_out, failed), by target "
    "and reason.",
    "target",
    "reason",
)
REPLICA_IN_USE = _gauge("replica_in_use", "Processes that send reads to the replica, by replica.", "replica")
REPLICA_LAG_BYTES = _greatest("replica_lag_bytes", "Bytes of the log not yet replayed, by replica.", "replica")
REPLICA_LAG_SECONDS = _greatest(
    "replica_lag_seconds", "Seconds that the replica is behind the primary, by replica.", "replica"
)
AUDIT_WAITING = _gauge("audit_waiting", "Queued audit records of refusals and reads.")
AUDIT_DROPPED = _counter("audit_dropped", "Dropped audit records of refusals and reads.")
AUDIT_CHAINED = Gauge(
    "gateway_audit_chained_timestamp_seconds",
    "Unix time at which audit entries were last searched for and linked, or of the start; 0 without a chain.",
    registry=REGISTRY,
    multiprocess_mode="livemax",
)
IDENTITY_PROVIDER_FAILURES = _counter(
    "identity_provider_failures", "Requests to the identity provider that failed or got an invalid answer."
)
LOG_DROPPED = _counter("log_dropped", "Log lines that were dropped because standard error was not read in time.")
DRAINING = _gauge("draining", "Processes that are shutting down and still serve.")


def count_request(route: str | None, method: str, status: int | None, seconds: float) -> None:
    """Count an HTTP request. `route` is the template; `status` is None for a request without a response."""
    counted, timed = _of_requests(route, method if method in METHODS else "other", status)
    counted.inc()
    timed.observe(seconds)


@cache
def _of_requests(route: str | None, method: str, status: int | None) -> tuple[Counter, Histogram]:
    # Cached: `labels()` costs more than the increment.
    labels = ("graphql" if route == "/graphql" else "rest", route or "unknown", method)
    return REQUESTS.labels(*labels, status or "none"), REQUEST_SECONDS.labels(*labels)


def count_operation(outcome: str, seconds: float) -> None:
    """Count an operation on a WebSocket. `outcome` is `complete`, `stopped`, or the error code of a refusal."""
    SOCKET_OPERATIONS.labels(outcome).inc()
    SOCKET_OPERATION_SECONDS.observe(seconds)


class PrometheusMetrics:
    """The metrics of `resolvers` (`resolvers.services.Metrics`)."""

    def refused(self, code: str) -> None:
        """Count a refusal."""
        REFUSALS.labels(code).inc()

    def recorded(self, *, replayed: bool) -> None:
        """Count an encounter that was recorded now, or earlier under the same key."""
        (ENCOUNTERS_REPLAYED if replayed else ENCOUNTERS_RECORDED).inc()
