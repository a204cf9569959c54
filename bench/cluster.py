"""`python -m bench.cluster`: measure the gateway on one server and on Citus clusters, with the same requests.

    python -m bench.cluster --plain URL --citus URL --citus URL

Each URL names an empty database, or one that an earlier run has filled, as a superuser; it starts no server of
PostgreSQL. `docs/cluster.md` tells how to make a cluster. The gateway serves the plain database twice: in the form of
one server, to which all is compared, and in that of a cluster.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil

from bench import report
from bench.correctness import check
from bench.cpu_accounting import CpuAccounting, CpuTime, cpu_of
from bench.load_test import LoadTest
from bench.results import Measurement
from bench.seed import Population, seed
from bench.servers import GATEWAY, ROOT, Server, gateway_environment, started, token_server
from bench.workloads import ON_A_CLUSTER
from gateway.database.migrate import migrate

NODES = """
SELECT nodename AS host, nodeport AS port, shouldhaveshards AS has_shards
FROM pg_dist_node WHERE isactive AND noderole = 'primary'
"""
PAIRS = "SELECT id::text, patient_id FROM patient_graph.encounters WHERE patient_id ~ '^(small|large)-' ORDER BY id"


@dataclass(frozen=True)
class Database:
    """A database to serve, and the main processes of PostgreSQL of its nodes."""

    name: str
    url: str
    is_cluster: bool
    postmasters: Sequence[int]


class NodesCpu(CpuAccounting):
    """The CPU time of each gateway, and of all processes of PostgreSQL on the nodes of its database."""

    def __init__(self, databases: Mapping[int, Database]) -> None:
        """Take the databases by the ports of their gateways."""
        self._databases = databases

    def cpu_time(self, server: Server) -> CpuTime:
        """Return the CPU time, to 10 ms. A process of PostgreSQL that has ended is counted by the main process."""
        process = psutil.Process(server.process.pid)
        own = sum(cpu_of(each.pid) for each in (process, *process.children(recursive=True)))
        nodes = map(psutil.Process, self._databases[server.port].postmasters)
        return CpuTime(own, sum(cpu_of(each.pid, ended_children=True) + _of_children(each) for each in nodes))

    def wait_until_quiet(self, server: Server, quiet_seconds: float) -> None:  # noqa: ARG002 - of the base class
        """Wait for `quiet_seconds`: nodes that several databases share are never idle, because each has its jobs."""
        time.sleep(quiet_seconds)

    def database(self) -> Counter[str]:
        """Return nothing: helper processes are not counted apart."""
        return Counter()


def _of_children(postmaster: psutil.Process) -> float:
    spent = 0.0
    for each in postmaster.children():
        try:
            spent += cpu_of(each.pid)
        except OSError:
            continue
    return spent


async def prepare(url: str, population: Population, *, is_cluster: bool, name: str) -> tuple[Database, Population]:
    """Migrate and fill a database, unless an earlier run did; return it, and the population with its encounters."""
    await migrate(url)
    connection = await asyncpg.connect(url)
    try:
        if not await connection.fetchval("SELECT count(*) FROM patient_graph.patients"):
            await seed(url, population)
        pairs = [(row["id"], row["patient_id"]) for row in await connection.fetch(PAIRS)]
        nodes = await connection.fetch(NODES) if is_cluster else []
    finally:
        await connection.close()
    holding = sum(node["has_shards"] for node in nodes)
    found = Database(
        f"Citus, {holding} node{'s' * (holding > 1)}" if is_cluster else name,
        url,
        is_cluster,
        [await _postmaster(url), *[await _postmaster(_at(url, node["host"], node["port"])) for node in nodes]],
    )
    unique = replace(found, postmasters=sorted(set(found.postmasters)))
    return unique, replace(population, ids=[id_ for id_, _ in pairs], pairs=pairs)


def _at(url: str, host: str, port: int) -> str:
    own = urlsplit(url)
    user, at, _ = own.netloc.rpartition("@")
    return urlunsplit(own._replace(netloc=f"{user}{at}{host}:{port}"))


async def _postmaster(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        is_local = await connection.fetchval(
            "SELECT inet_server_addr() IS NULL OR inet_server_addr() <<= '127.0.0.0/8'"
        )
        if not is_local:
            raise SystemExit("the CPU of PostgreSQL is read from /proc: every node must be on this machine")
        return int(psutil.Process(backend).ppid())
    finally:
        await connection.close()


async def _prepared(arguments: argparse.Namespace) -> tuple[list[Database], Population]:
    asked = Population.share(arguments.share)
    plain, population = await prepare(arguments.plain, asked, is_cluster=False, name="one server")
    databases = [plain, replace(plain, name="its cluster form", is_cluster=True)]
    for url in arguments.citus:
        database, filled = await prepare(url, asked, is_cluster=True, name="")
        if filled.pairs != population.pairs:
            raise SystemExit("the databases have other encounters: fill them in runs with the same --share")
        databases.append(database)
    return databases, population


async def _require_true_answers(
    databases: Sequence[Database], servers: Sequence[Server], population: Population, seed_: int
) -> None:
    """Exit the program unless all answer what the plain database has: the others were filled with the same rows."""
    wrong = []
    plain = await asyncpg.connect(databases[0].url)
    try:
        for database, server in zip(databases, servers, strict=True):
            for workload in ON_A_CLUSTER.values():
                questions = workload.questions(random.Random(seed_), population)  # noqa: S311 - the same for all
                if workload.truth:
                    found = await check(plain, server, workload, questions)
                    wrong += [f"{database.name}: {each}" for each in found]
    finally:
        await plain.close()
    if wrong:
        raise SystemExit("\n".join(["wrong answers:", *wrong]))


def main() -> None:
    """Measure each workload on each database, in turn, and print the ratios."""
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    databases, population = asyncio.run(_prepared(arguments))
    print(f"seed {arguments.seed}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    found: list[Measurement] = []
    with ExitStack() as stack:
        token_url = stack.enter_context(token_server())
        servers = []
        for number, each in enumerate(databases):
            environment = {
                **gateway_environment(each.url, each.url, token_url),
                "GATEWAY_DATABASE_CLUSTER": str(each.is_cluster).lower(),
            }
            servers.append(
                stack.enter_context(started(GATEWAY, environment, arguments.output / f"cluster-{number}.log"))
            )
        asyncio.run(_require_true_answers(databases, servers, population, arguments.seed))
        cpu = NodesCpu({server.port: each for server, each in zip(servers, databases, strict=True)})
        # The databases keep the keys of earlier runs of this program.
        measure = LoadTest(cpu, arguments.rest, runs_before=random.SystemRandom().randrange(2**31))
        for round_ in range(1, arguments.rounds + 1):
            chance = random.Random(arguments.seed + round_)  # noqa: S311 - the same seed selects the same questions
            for name, workload in ON_A_CLUSTER.items():
                questions = workload.questions(chance, population)
                pairs = list(zip(databases, servers, strict=True))
                chance.shuffle(pairs)
                for database, server in pairs:
                    if round_ == 1:
                        measure.send(server, workload, questions, arguments.connections, arguments.seconds / 4)
                    measured = measure(
                        "closed", round_, server, workload, questions,
                        connections=arguments.connections, seconds=arguments.seconds,
                    )  # fmt: skip
                    found.append(replace(measured, server=database.name))
                    print(report.line(found[-1]), f" {name}", flush=True)
    names = [each.name for each in databases]
    table = "\n".join(report.aligned(_table(found, names)))
    output = arguments.output / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-cluster"
    output.with_suffix(".json").write_text(json.dumps([asdict(each) for each in found], indent=1))
    output.with_suffix(".md").write_text(table + "\n")
    print(f"\nload {os.getloadavg()[0]:.1f}\n\n{table}\n\nraw numbers and table: {output}*")


def _table(found: Sequence[Measurement], names: Sequence[str]) -> list[list[str]]:
    """Return, for each workload, the ratios to the first database: of requests a second, and of PostgreSQL's CPU.

    The CPU is that of the time in which requests were sent: jobs that work on them later are counted in part.
    """
    rows = [["requests/s; PostgreSQL CPU a request: ratio to one server", "one server", *names[1:]]]
    for workload in dict.fromkeys(each.workload for each in found):
        of = {name: [each for each in found if (each.workload, each.server) == (workload, name)] for name in names}
        cells = [f"{median(each.per_second for each in of[names[0]]):.0f}/s; {_ms(of[names[0]]):.2f} ms"]
        for name in names[1:]:
            rate = median(one.per_second / own.per_second for own, one in zip(of[names[0]], of[name], strict=True))
            cells.append(f"{rate:.2f}; {_ms(of[name]) / max(_ms(of[names[0]]), 1e-6):.1f}")
        rows.append([workload, *cells])
    return rows


def _ms(found: Sequence[Measurement]) -> float:
    return median(each.database_ms for each in found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--plain", required=True, metavar="URL", help="a database of one server")
    add("--citus", action="append", default=[], metavar="URL", help="a database on a coordinator; may be repeated")
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=4.0, help="duration of a measurement")
    add("--share", type=float, default=0.1, help="fraction of the 200,000 encounters")
    add("--rest", type=float, default=2.0, help="seconds without requests after each measurement")
    add("--connections", type=int, default=16)
    add("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="the same seed, the same requests")
    add("--output", type=Path, default=ROOT / "output" / "bench", help="folder for logs, raw numbers and the table")
    return parser.parse_args()


if __name__ == "__main__":
    # SIGTERM raises SystemExit, so that the started gateways are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
