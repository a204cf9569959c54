"""The results as text, for the terminal and for a Markdown page."""

import math
from statistics import median

from bench.results import Measurement, Run
from bench.targets import does_all, spread, verdicts


def line(each: Measurement) -> str:
    """Return one measurement as a line of text."""
    came = each.outcome
    refused = f"  {came.failures} turned away, {came.unanswered} unanswered" if came.failures + came.unanswered else ""
    pace = f"at {each.rate:.0f}/s" if each.rate else f"{each.per_second:.0f}/s"
    return (
        f"{each.part:6} {each.round} {each.workload} {each.server:12} c={each.connections:<3} {pace:>10}"
        f"  server {each.server_ms:7.3f} +{each.server_after_ms:6.3f} ms"
        f"  PostgreSQL {each.database_ms:6.3f} +{each.database_after_ms:6.3f} ms"
        f"  p50 {came.p50:7.2f}  p99 {came.p99:7.2f} ms"
        f"  driver {1000 * came.driver_cpu / max(1, came.requests):.3f} ms{refused}"
    )


def tables(run: Run) -> str:
    """Return all measurements, as ratios and as medians, in Markdown that is also legible in a terminal."""
    compared = [
        "The gateway against peers that do its work:", "", *_targets(run, against_full=True), "",
        "The gateway against peers that do less:", "", *_targets(run, against_full=False),
    ]  # fmt: skip
    return "\n".join(["", *compared, "", *_medians(run), "", *_starts(run)])


def _targets(run: Run, *, against_full: bool) -> list[str]:
    rows = [["what", "workload", "gateway against", "of", "ratio (least to greatest)", "target", ""]]
    for target, found in verdicts(run):
        if does_all(target.peer) is not against_full:
            continue
        ratio = median(found)
        aim = "" if math.isinf(target.limit) else f"{'>=' if target.at_least else '<='} {target.limit:.2f}"
        verdict = "" if not aim else "met" if target.met(ratio) else "missed"
        rows.append([target.part, target.workload, target.peer, target.of, spread(found), aim, verdict])
    return aligned(rows)


def _medians(run: Run) -> list[str]:
    rows = [["what", "workload", "server", "requests/s", "server ms", "afterwards", "PostgreSQL ms", "afterwards",
             "p50 ms", "p99 ms", "turned away", "driver ms", "driver late p99 ms"]]  # fmt: skip
    for key in sorted({(each.part, each.workload, each.server) for each in run.measurements}):
        found = [each for each in run.measurements if (each.part, each.workload, each.server) == key]

        def mid(values: list[float], digits: int) -> str:
            return f"{median(values):.{digits}f}"

        rows.append([
            *key,
            mid([each.per_second for each in found], 0),
            mid([each.server_ms for each in found], 3),
            mid([each.server_after_ms for each in found], 3),
            mid([each.database_ms for each in found], 3),
            mid([each.database_after_ms for each in found], 3),
            mid([each.outcome.p50 for each in found], 2),
            mid([each.outcome.p99 for each in found], 2),
            str(sum(each.outcome.failures + each.outcome.unanswered for each in found)),
            mid([1000 * each.outcome.driver_cpu / max(1, each.outcome.requests) for each in found], 3),
            mid([each.outcome.late_p99 for each in found], 2),
        ])  # fmt: skip
    return aligned(rows)


def _starts(run: Run) -> list[str]:
    rows = [["server", "cold start to first answer, s", "idle MiB", "after load MiB"]]
    for name in run.idle_mib:
        cold = run.cold_seconds.get(name)
        rows.append([
            name,
            f"{median(cold):.2f}" if cold else "",
            f"{run.idle_mib[name]:.0f}",
            f"{run.loaded_mib[name]:.0f}" if name in run.loaded_mib else "",
        ])  # fmt: skip
    return aligned(rows)


def aligned(rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ruled = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in ruled
    ]
