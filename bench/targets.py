"""The performance targets of the gateway, each as a ratio to a peer, and the verdict of a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.results import Measurement, Run
from bench.servers import KINDS, NODE

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


def _cpu(workload: str, peer: str, server: float, total: float) -> Iterator[Target]:
    yield Target("closed", workload, peer, "server CPU", server)
    yield Target("closed", workload, peer, "with PostgreSQL", total)


ON_NODE = [name for name, kind in KINDS.items() if kind.command[0] == NODE]
TARGETS: Sequence[Target] = (
    *_cpu("W1", "mercurius", 0.65, 0.80),
    *_cpu("W2", "fastify", 0.60, 0.80),
    Target("single", "W1", "mercurius", "p50", 1.05),
    Target("single", "W2", "fastify", "p50", 1.05),
    *_cpu("W3", "mercurius", 0.80, 0.90),
    *_cpu("W4", "mercurius", 0.25, 0.50),
    *(each for peer in ("postgraphile", "mercurius") for each in _cpu("W5", peer, 0.12, 0.45)),
    *(each for peer in ("mercurius", "postgraphile") for each in _cpu("W6", peer, 0.25, 0.55)),
    *_cpu("R4", "fastify", 0.45, 0.80),
    *_cpu("R5", "fastify", 0.12, 0.50),
    *(each for workload in ("W2", "R4", "R5") for each in _cpu(workload, "fastapi", 0.10, 0.20)),
    *_cpu("W7", "apollo", 1.0, 1.0),
    Target("closed", "W2", "pgbench", "requests/s", 0.80, at_least=True),
    *(Target("rate", workload, "mercurius", "p99", 1.0) for workload in ("W1", "W3", "W4", "W5", "W6")),
    *(Target("memory", "", peer, "memory after load", 0.5) for peer in ON_NODE),
    Target("cold", "", "mercurius", "cold start", 1.5),
)


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
    measured = {(each.part, each.workload, each.server) for each in run.measurements if each.server != "gateway"}
    for part, workload, peer in sorted(measured):
        for of in VALUES:
            if (part, workload, peer, of) not in aimed_at and not (part == "rate" and of == "requests/s"):
                yield Target(part, workload, peer, of, float("inf"))


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
