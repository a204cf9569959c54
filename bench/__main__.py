"""`make bench`: measure the gateway and its peers with the same requests on the same PostgreSQL.

`bench/README.md` describes the work of each server and the reliability of the figures.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import charts, report
from bench.benchmark import Benchmark, prepare
from bench.results import Run
from bench.scale import scale
from bench.seed import Population
from bench.servers import KINDS, ROOT, Kind, running, token_server
from bench.workloads import WORKLOADS
from gateway.embedded_postgres.cluster import PrivatePostgres

PARTS = {
    "closed": "closed loop on many connections",
    "single": "the writes on a single connection",
    "pgbench": "the rows that pgbench inserts",
    "rate": "at 0.7 of the full Mercurius' highest rate (needs closed)",
    "cold": "from the start of a process to its first answer",
}


def main() -> None:
    """Run the benchmark that the arguments select."""
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.scale:
        scale(arguments.scale, arguments.seconds, arguments.rest, arguments.output)
        return
    run = Run(arguments.seed, {name: str(value) for name, value in vars(arguments).items()}, _machine())
    try:
        _measure(arguments, run)
    finally:
        run.machine["load_after"] = os.getloadavg()
        if run.measurements or run.cold_seconds:
            _write(run, arguments.output)


def _measure(arguments: argparse.Namespace, run: Run) -> None:
    kinds = list(_installed(arguments.servers))
    names = ", ".join(kind.name for kind in kinds)
    print(f"seed {run.seed}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {names}", flush=True)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="data-", dir=arguments.output))
        # Enough for the pools of all servers, and for pgbench.
        connections = 100 + arguments.connections
        postgres = stack.enter_context(PrivatePostgres(Path(folder), connections=connections))
        began = time.monotonic()
        population = asyncio.run(prepare(postgres, Population.share(arguments.share), kinds))
        print(f"{population.encounters:,} encounters seeded in {time.monotonic() - began:.0f} s", flush=True)
        url = stack.enter_context(token_server())
        servers = [stack.enter_context(running(kind, postgres, url, arguments.output)) for kind in kinds]
        benchmark = Benchmark(arguments, run, postgres, servers, population)
        benchmark.choose_questions()
        asyncio.run(benchmark.require_equal_answers())
        parts: dict[str, Callable[[int], None]] = {
            "closed": benchmark.closed,
            "single": benchmark.single_connection,
            "pgbench": benchmark.pgbench,
            "rate": benchmark.rate,
            "cold": lambda _: benchmark.cold(kinds, url, arguments.output),
        }

        def measure(*group: str) -> None:
            for round_ in range(1, arguments.rounds + 1):
                for part in group:
                    if part in arguments.parts:
                        parts[part](round_)

        # Cold starts come first: no server has background work left that would compete with them.
        measure("cold")
        benchmark.warm_up()
        # Values that are compared are measured in the same round; the rate depends on the results of `closed`.
        measure("closed", "single", "pgbench")
        benchmark.read_memory()
        measure("rate")


def _write(run: Run, folder: Path) -> None:
    """Print the tables, and store them with the raw numbers and the drawings."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    table = report.tables(run)
    print(table)
    (folder / f"{name}.json").write_text(json.dumps(asdict(run), indent=1))
    (folder / f"{name}.md").write_text(table.lstrip() + "\n")
    (folder / f"{name}-cpu.svg").write_text(charts.ratio_chart(run, "closed", "CPU a request"))
    (folder / f"{name}-p99.svg").write_text(charts.ratio_chart(run, "rate", "p99 at the same rate"))
    print(f"\nraw numbers, tables and drawings: {folder / name}*")


def _installed(names: Iterable[str]) -> Iterator[Kind]:
    for name in names:
        if KINDS[name].installed:
            yield KINDS[name]
        else:
            print(f"{name} is left out: what it runs on is not installed", file=sys.stderr)


def _machine() -> dict[str, Any]:
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--workloads", type=_some_of(WORKLOADS), default=list(WORKLOADS), metavar="W1,W3", help="all by default")
    add("--servers", type=_some_of(KINDS), default=list(KINDS), metavar="gateway,fastify", help="all by default")
    add("--parts", type=_some_of(PARTS), default=list(PARTS), metavar=",".join(PARTS), help="all by default")
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=4.0, help="duration of a measurement")
    add("--warm-up", type=float, default=2.0, help="seconds of requests before the measurements")
    add("--share", type=float, default=1.0, help="fraction of the 200,000 encounters")
    add("--rest", type=float, default=5.5, help="seconds of idling after which the background work is done")
    add("--connections", type=int, default=32)
    add(
        "--seed",
        type=int,
        default=random.SystemRandom().randrange(10**6),
        help="the same seed, the same requests",
    )
    add("--output", type=Path, default=ROOT / "output" / "bench", help="folder for logs, raw numbers and drawings")
    add("--scale", type=_sizes, metavar="1e4,1e6", help="measure the gateway alone, on tables of these sizes")
    return parser.parse_args()


def _some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := [name for name in wanted if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(known)}")
        # In the order of `known`: the part `rate` needs the results of `closed`.
        return [name for name in known if name in wanted]

    return names


def _sizes(text: str) -> list[int]:
    return [int(float(size)) for size in text.split(",")]


if __name__ == "__main__":
    # SIGTERM raises SystemExit, so that the started processes are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    main()
