"""What the numbers say: ratios of the gateway to each peer, round by round, with their spread."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.measuring import Measurement

if TYPE_CHECKING:
    from bench.__main__ import Run

Value = Callable[[Measurement], float]


def line(each: Measurement) -> str:
    """Say one measurement in one line."""
    came = each.outcome
    return (
        f"{each.part:6} {each.round} {each.workload} {each.server:12} c={each.connections:<3}"
        f" {each.per_second:8.0f}/s  server {each.server_ms:7.3f} + {each.server_after_ms:6.3f} ms"
        f"  PostgreSQL {each.database_ms:6.3f} + {each.database_after_ms:6.3f} ms"
        f"  p50 {came.p50:7.2f}  p99 {came.p99:7.2f} ms  driver {1000 * came.driver_cpu / came.requests:.3f} ms"
        f"{f'  {came.failures} turned away, {came.unanswered} never answered' * bool(came.failures + came.unanswered)}"
    )


def ratios(measurements: Sequence[Measurement], part: str, workload: str, peer: str, value: Value) -> list[float]:
    """Give the gateway's value over the peer's in each round that has both."""
    of = {
        (each.round, each.server): value(each)
        for each in measurements
        if each.part == part and each.workload == workload
    }
    rounds = sorted({round_ for round_, _ in of})
    return [
        of[round_, "gateway"] / of[round_, peer]
        for round_ in rounds
        if {(round_, "gateway"), (round_, peer)} <= of.keys()
    ]


def tables(measurements: Sequence[Measurement]) -> str:
    """Give, for each part, workload and peer, the median ratio and its least and greatest."""
    lines = ["", "gateway / peer: median (least to greatest of the rounds)"]
    values: list[tuple[str, Value]] = [
        ("server CPU", lambda each: each.cpu),
        ("with PostgreSQL", lambda each: each.cpu_with_database),
        ("requests/s", lambda each: each.per_second),
        ("p50", lambda each: each.outcome.p50),
        ("p99", lambda each: each.outcome.p99),
    ]
    lines.append(f"{'':24}" + "".join(f"{name:>22}" for name, _ in values))
    for part, workload, peer in sorted({(each.part, each.workload, each.server) for each in measurements}):
        if peer == "gateway":
            continue
        cells = [spread(ratios(measurements, part, workload, peer, value)) for _, value in values]
        if any(cells):
            lines.append(f"{part:6} {workload:3} {peer:13}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def spread(found: Sequence[float]) -> str:
    """Say a median and between what it lies."""
    if not found:
        return ""
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def as_json(run: "Run") -> dict[str, Any]:
    """Give everything that was measured."""
    return asdict(run)
