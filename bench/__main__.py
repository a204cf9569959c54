"""`make bench`: the gateway and its peers, asked the same questions on the same PostgreSQL.

What each side does and does not do, and how far to trust the figures, is in `bench/README.md`.
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg

from bench import report
from bench.checking import check
from bench.clocks import Clocks, memory_bytes, postmaster_of
from bench.measuring import Measure, Measurement
from bench.seed import ENCOUNTERS, seed
from bench.servers import KINDS, ROOT, Kind, Server, admit_peers, running, token_server
from bench.workloads import WORKLOADS, Question
from gateway.migrate import migrate
from gateway.postgres import PrivatePostgres
from gateway.roles import DATABASE, OWNER, create_database

OUTPUT = ROOT / "output" / "bench"
PARTS = ("closed", "lone", "rate", "limit", "cold")


@dataclass
class Run:
    """Everything that was measured in one run, and where."""

    seed: int
    arguments: dict[str, Any]
    machine: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    idle_mib: dict[str, float] = field(default_factory=dict)
    cold_seconds: dict[str, list[float]] = field(default_factory=dict)
    pgbench_per_second: list[float] = field(default_factory=list)


async def prepare(postgres: PrivatePostgres) -> list[str]:
    """Make the database, the encounters and the peers' logins; give the encounters' ids."""
    await create_database(postgres)
    owner_url = postgres.url(OWNER, DATABASE)
    await migrate(owner_url)
    await seed(owner_url)
    await admit_peers(postgres)
    connection = await asyncpg.connect(owner_url)
    try:
        return [str(row["id"]) for row in await connection.fetch("SELECT id FROM patient_graph.encounters ORDER BY id")]
    finally:
        await connection.close()


class Bench:
    """The servers that run, the questions they are asked, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace, run: Run, postgres: PrivatePostgres, servers: Sequence[Server]):
        self.arguments, self.run, self._postgres, self.servers = arguments, run, postgres, servers
        self.chance = random.Random(run.seed)  # noqa: S311 - the same seed asks the same
        self.questions: dict[str, list[Question]] = {}
        self._measure = Measure(Clocks(postmaster_of()))

    def ask_about(self, ids: Sequence[str]) -> None:
        """Choose the questions."""
        for name in self.arguments.workloads:
            self.questions[name] = WORKLOADS[name].questions(self.chance, ids)

    async def refuse_unlike(self) -> None:
        """End the program unless all servers answer alike."""
        connection = await asyncpg.connect(self._postgres.url(OWNER, DATABASE))
        wrong = []
        for name, questions in self.questions.items():
            wrong += await check(connection, self.servers, WORKLOADS[name], questions)
        await connection.close()
        if wrong:
            sys.exit("They do not answer alike:\n" + "\n".join(wrong))
        print(f"all answer alike: {', '.join(self.questions)}")

    def closed(self, round_: int) -> None:
        """Ask everyone everything, as fast as it is answered, in random order."""
        self._in_random_order("closed", round_, self.arguments.workloads, self.arguments.connections)

    def lone(self, round_: int) -> None:
        """Ask for the writes one after the other: what batching must not make worse."""
        writes = [name for name in self.arguments.workloads if WORKLOADS[name].is_write]
        self._in_random_order("lone", round_, writes, 1)

    def _in_random_order(self, part: str, round_: int, names: Sequence[str], connections: int) -> None:
        pairs = [
            (server, name)
            for server in self.servers
            for name in names
            if WORKLOADS[name].dialect_of(server) is not None
        ]
        self.chance.shuffle(pairs)
        for server, name in pairs:
            self.measure(part, round_, server, name, connections)

    def measure(
        self, part: str, round_: int, server: Server, name: str, connections: int, rate: float | None = None
    ) -> None:
        """Measure once, and note it."""
        asyncio.run(self._checkpoint())
        measured = self._measure(
            part, round_, server, WORKLOADS[name], self.questions[name],
            connections=connections, seconds=self.arguments.seconds, rate=rate,
        )  # fmt: skip
        self.run.measurements.append(measured)
        print(report.line(measured), flush=True)

    def warm_up(self) -> None:
        """Let everything be compiled, cached and prepared that will be."""
        for server in self.servers:
            for name in self.arguments.workloads:
                if WORKLOADS[name].dialect_of(server) is not None:
                    self._measure(
                        "warm-up", 0, server, WORKLOADS[name], self.questions[name],
                        connections=self.arguments.connections, seconds=self.arguments.warm_up,
                    )  # fmt: skip

    async def _checkpoint(self) -> None:
        # So that none pays for pages another has written: after a checkpoint each costs its first change alike.
        connection = await asyncpg.connect(self._postgres.url(database=DATABASE))
        await connection.execute("CHECKPOINT")
        await connection.close()


def main() -> None:
    """Measure as the arguments say."""
    arguments = _arguments()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.seed, {k: str(v) for k, v in vars(arguments).items()}, _machine())
    kinds = [kind for kind in _wanted(arguments)]
    print(
        f"seed {run.seed}; {', '.join(kind.name for kind in kinds)}; load before {os.getloadavg()[0]:.2f}", flush=True
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="data-", dir=OUTPUT)))
        postgres = stack.enter_context(PrivatePostgres(folder))
        began = time.monotonic()
        ids = asyncio.run(prepare(postgres))
        print(f"{ENCOUNTERS} encounters seeded in {time.monotonic() - began:.0f} s", flush=True)
        introspection_url = stack.enter_context(token_server())
        servers = [stack.enter_context(running(kind, postgres, introspection_url, OUTPUT)) for kind in kinds]
        bench = Bench(arguments, run, postgres, servers)
        bench.ask_about(ids)
        asyncio.run(bench.refuse_unlike())
        run.idle_mib = {server.kind.name: memory_bytes(server) / 2**20 for server in servers}
        bench.warm_up()
        for round_ in range(1, arguments.rounds + 1):
            for part in ("closed", "lone"):
                if part in arguments.parts:
                    getattr(bench, part)(round_)
    run.machine["load_after"] = os.getloadavg()
    name = OUTPUT / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    name.write_text(json.dumps(report.as_json(run), indent=1))
    print(report.tables(run.measurements))
    print(f"raw numbers in {name}")


def _wanted(arguments: argparse.Namespace) -> Iterator[Kind]:
    for name in arguments.servers:
        kind = KINDS[name]
        if kind.installed:
            yield kind
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
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--workloads", type=_some_of(WORKLOADS), default=list(WORKLOADS), metavar="W1,W3")
    parser.add_argument("--servers", type=_some_of(KINDS), default=list(KINDS), metavar="gateway,fastify")
    parser.add_argument("--parts", type=_some_of(PARTS), default=list(PARTS), metavar=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each measurement asks")
    parser.add_argument("--warm-up", type=float, default=2.0, help="how long everything is asked first, in seconds")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    return parser.parse_args()


def _some_of(known: Any) -> Any:
    def names(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := [name for name in wanted if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(known)}")
        return wanted

    return names


if __name__ == "__main__":
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    main()
