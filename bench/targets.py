"""The performance targets of the gateway, each as a ratio to a peer, and the verdict of a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.results import Measurement, Run
from bench.servers import FULL_FASTIFY, FULL_MERCURIUS, GATEWAY, KINDS

Value = Callable[[Measurement], float]

VALUES: Mapping[str, Value] = {
    "server CPU": lambda each: each.cpu,
    "with PostgreSQL": lambda each: each.cpu_with_database,
    "p50": lambda each: each.outcome.p50,
    "p99": lambda each: each.outcome.p99,
    "requests/s": lambda each: each.per_second,
}


@dataclass(frozen=True)
class Target:
    """A ratio that must not exceed `limit`, or with `at_least` must reach it."""

    part: str
    workload: str
    peer: str
    of: str
    limit: float
    at_least: bool = False

    def met(self, ratio: float) -> bool:
        """Whether the ratio meets the target."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit


REST, GRAPHQL = FULL_FASTIFY.name, FULL_MERCURIUS.name


def _cpu(workload: str, peer: str, total: float, server: float | None = None) -> Iterator[Target]:
    if server is not None:
        yield Target("closed", workload, peer, "server CPU", server)
    yield Target("closed", workload, peer, "with PostgreSQL", total)


TARGETS: Sequence[Target] = (
    *_cpu("W1", GRAPHQL, 0.40, 0.70),
    *_cpu("W2", REST, 0.40, 0.60),
    *_cpu("W3", GRAPHQL, 0.45, 0.75),
    *_cpu("W4", GRAPHQL, 0.45, 0.35),
    *_cpu("W5", GRAPHQL, 0.40, 0.12),
    *_cpu("W6", GRAPHQL, 0.55, 0.40),
    *_cpu("R4", REST, 0.40, 0.25),
    *_cpu("R5", REST, 0.40),
    Target("single", "W1", GRAPHQL, "p50", 1.0),
    Target("single", "W2", REST, "p50", 1.0),
    Target("memory", "", GRAPHQL, "memory after load", 0.5),
    Target("memory", "", REST, "memory after load", 0.5),
    Target("cold", "", GRAPHQL, "cold start", 1.5),
)
"""Targets against the peers that do the gateway's work. The others have none: they do less."""


def ratios(run: Run, target: Target) -> list[float]:
    """Return the gateway's value divided by the peer's, for each round that has both."""
    if target.part == "memory":
        mib = run.loaded_mib
        return [mib["gateway"] / mib[target.peer]] if {"gateway", target.peer} <= mib.keys() else []
    if target.part == "cold":
        ours, theirs = (run.cold_seconds.get(name, []) for name in ("gateway", target.peer))
        return [a / b for a, b in zip(ours, theirs, strict=True)] if ours and theirs else []
    value = VALUES[target.of]
    found = [each for each in run.measurements if (each.part, each.workload) == (target.part, target.workload)]
    gateway = {each.round: value(each) for each in found if each.server == "gateway"}
    if target.peer == "pgbench":
        peer = dict(enumerate(run.pgbench_per_second, 1))
    else:
        peer = {each.round: value(each) for each in found if each.server == target.peer}
    return [gateway[round_] / peer[round_] for round_ in sorted(gateway.keys() & peer.keys())]


def every_comparison(run: Run) -> Iterator[Target]:
    """Yield each target, and with an infinite limit every other comparison of the gateway with a peer."""
    yield from TARGETS
    aimed_at = {(each.part, each.workload, each.peer, each.of) for each in TARGETS}
    measured = {(each.part, each.workload, each.server) for each in run.measurements if each.server != GATEWAY.name}
    possible = [
        *((*each, of) for each in sorted(measured) for of in VALUES if not (each[0] == "rate" and of == "requests/s")),
        ("closed", "W2", "pgbench", "requests/s"),
        *(("memory", "", peer, "memory after load") for peer in sorted(run.loaded_mib) if peer != GATEWAY.name),
        *(("cold", "", peer, "cold start") for peer in sorted(run.cold_seconds) if peer != GATEWAY.name),
    ]
    for comparison in possible:
        if comparison not in aimed_at:
            yield Target(*comparison, float("inf"))


def does_all(peer: str) -> bool:
    """Whether the peer does the gateway's work. pgbench, which is no server, does not."""
    return peer in KINDS and KINDS[peer].does_all


def verdicts(run: Run) -> Iterator[tuple[Target, list[float]]]:
    """Yield each comparison for which the run has a ratio."""
    for target in every_comparison(run):
        found = ratios(run, target)
        if found:
            yield target, found


def spread(found: Sequence[float]) -> str:
    """Return the median and the range as text."""
    if len(found) == 1:
        return f"{found[0]:.2f}"
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
