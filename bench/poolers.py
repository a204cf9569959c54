"""The gateway behind PgBouncer in transaction mode: CPU per request, as a ratio to a direct connection.

    python -m bench.poolers

Only one gateway runs at a time, because the background jobs of another would work on its events.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from urllib.parse import quote

import asyncpg
import psutil

from bench import report
from bench.benchmark import prepare
from bench.correctness import check
from bench.cpu_accounting import CpuAccounting, own_postmaster
from bench.driver import Outcome
from bench.load_test import LoadTest
from bench.seed import Population
from bench.servers import GATEWAY, ROOT, STARTUP_SECONDS, Server, running, token_server
from bench.targets import spread
from bench.workloads import WORKLOADS, Question
from gateway.connection_url import parse
from gateway.database.roles import DATABASE, LOGIN, OWNER
from gateway.embedded_postgres.cluster import PrivatePostgres
from gateway.embedded_postgres.os_account import choose_account

# Debian installs it outside the PATH of ordinary users.
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
TRACKS_STATEMENTS = (1, 21)
"""First version of PgBouncer that tracks prepared statements."""

PORT = 6432
"""Names the socket of PgBouncer; no TCP port is opened."""

CONFIGURATION = """
[databases]
{database} = host='{server}' port=5432 user={login}
[pgbouncer]
unix_socket_dir = {folder}
listen_port = {port}
auth_type = any
pool_mode = transaction
"""

NAMES = ("W1", "W2", "R4", "R5")
DIRECT, IDLE = "direct", "idle"
Cpu = tuple[float, float, float]
"""CPU seconds of the gateway, of its backends in PostgreSQL and of PgBouncer."""


@dataclass(frozen=True)
class Cost:
    """CPU of a way to PostgreSQL in one round: ms a request of a workload, or ms a second without requests (`IDLE`)."""

    round: int
    workload: str
    way: str
    gateway: float
    postgres: float
    pgbouncer: float
    outcome: Outcome | None

    @property
    def total(self) -> float:
        """The sum of all three."""
        return self.gateway + self.postgres + self.pgbouncer


def main() -> None:
    """Measure each way to PostgreSQL in each round, and write the costs."""
    arguments = _arguments()
    if PGBOUNCER is None:
        sys.exit("PgBouncer is not installed: apt-get install pgbouncer")
    version = _version(PGBOUNCER)
    ways = [DIRECT, "untracked", *(["tracked"] if version >= TRACKS_STATEMENTS else [])]
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(
        f"PgBouncer {'.'.join(map(str, version))}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True
    )
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-poolers"
    chance = random.Random(arguments.seed)  # noqa: S311 - the same seed, the same requests
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="data-", dir=arguments.output))
        postgres = stack.enter_context(PrivatePostgres(Path(folder)))
        population = asyncio.run(prepare(postgres, Population.share(arguments.share), [GATEWAY]))
        questions = {name: WORKLOADS[name].questions(chance, population) for name in NAMES}
        introspection_url = stack.enter_context(token_server())
        accounting = CpuAccounting(own_postmaster())
        load_test = LoadTest(accounting, arguments.rest)
        costs: list[Cost] = []
        for round_ in range(1, arguments.rounds + 1):
            for way in chance.sample(ways, len(ways)):
                with ExitStack() as started:
                    pooler, url = None, postgres.url(LOGIN, DATABASE)
                    if way != DIRECT:
                        pgbouncer = _pgbouncer(PGBOUNCER, version, postgres, way, arguments.output)
                        pooler, url = started.enter_context(pgbouncer)
                    server = started.enter_context(
                        running(GATEWAY, postgres, introspection_url, arguments.output, database_url=url)
                    )
                    asyncio.run(_require_right_answers(postgres, server, questions))
                    send = partial(_send, load_test, server, questions, arguments.connections)
                    read_cpu = partial(_cpu, accounting, server, pooler)
                    for cost in _costs(arguments, round_, way, read_cpu, send):
                        costs.append(cost)
                        refused = cost.outcome.failures if cost.outcome else 0
                        print(
                            f"{round_} {way:9} {cost.workload:4} {cost.total:8.3f} ms  {refused} turned away",
                            flush=True,
                        )
                # Written after each way, so that a failure loses no figure.
                raw = [asdict(each) for each in costs]
                (arguments.output / f"{name}.json").write_text(json.dumps(raw, indent=1))
    table = _table(costs, ways)
    (arguments.output / f"{name}.md").write_text(table + "\n")
    print(f"\n{table}\n\nraw numbers and table: {arguments.output / name}*")


@contextmanager
def _pgbouncer(
    program: str, version: tuple[int, ...], postgres: PrivatePostgres, way: str, logs: Path
) -> Iterator[tuple[psutil.Process, str]]:
    """Start PgBouncer; yield its process and the URL through it, once it listens. Raises `RuntimeError`."""
    server = parse(postgres.url()).parameters["host"]
    # PgBouncer refuses to run as root. Only the account of PostgreSQL can enter the folder of its socket.
    account = choose_account(Path(program), Path(server))
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as folder, (logs / "pgbouncer.log").open("ab") as log:
        os.chown(folder, account.uid, account.gid)
        configuration = Path(folder, "pgbouncer.ini")
        text = CONFIGURATION.format(database=DATABASE, server=server, login=LOGIN, folder=folder, port=PORT)
        if version >= TRACKS_STATEMENTS:
            text += f"max_prepared_statements = {200 if way == 'tracked' else 0}\n"
        configuration.write_text(text)
        process = subprocess.Popen(  # noqa: S603 - the command line is our own
            [*account.wrapper, program, configuration],
            user=account.uid, group=account.gid, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + STARTUP_SECONDS
            while not Path(folder, f".s.PGSQL.{PORT}").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PgBouncer did not start: see {log.name}")
                time.sleep(0.01)
            url = f"postgresql://{LOGIN}@/{DATABASE}?host={quote(folder)}&port={PORT}"
            yield psutil.Process(process.pid), f"{url}&pool_mode=transaction&prepared_statements={way}"
        finally:
            process.kill()
            process.wait()


def _costs(
    arguments: argparse.Namespace,
    round_: int,
    way: str,
    read_cpu: Callable[[], Cpu],
    send: Callable[[str, float], Outcome],
) -> Iterator[Cost]:
    """Yield the cost of an idle second, and of a request of each workload without the idle cost of its duration.

    `LoadTest` waits until the gateway is idle. A gateway that polls may not become idle, and its polling would be
    counted for two minutes. Here the wait is `--rest` seconds, and the CPU of polling is subtracted.
    """
    for name in NAMES:
        send(name, arguments.warm_up)
    time.sleep(arguments.rest)
    idle: Cpu = (0.0, 0.0, 0.0)
    for name in (IDLE, *NAMES):
        began, before = time.monotonic(), read_cpu()
        outcome = send(name, arguments.seconds) if name != IDLE else None
        time.sleep(arguments.rest)
        after, seconds = read_cpu(), time.monotonic() - began
        gateway, postgres, pgbouncer = (
            1000 * (last - first - each * seconds) for first, last, each in zip(before, after, idle, strict=True)
        )
        if outcome is None:
            idle = (gateway / 1000 / seconds, postgres / 1000 / seconds, pgbouncer / 1000 / seconds)
            number = seconds
        elif outcome.answered and (not outcome.failures or "temporarily_unavailable" in outcome.first_failure):
            number = outcome.answered
        else:
            raise RuntimeError(
                f"{way}, {name}: {outcome.failures} wrong answers; the first was {outcome.first_failure}"
            )
        yield Cost(round_, name, way, gateway / number, postgres / number, pgbouncer / number, outcome)


def _send(
    load_test: LoadTest,
    server: Server,
    questions: Mapping[str, Sequence[Question]],
    connections: int,
    name: str,
    seconds: float,
) -> Outcome:
    return load_test.send(server, WORKLOADS[name], questions[name], connections, seconds)


async def _require_right_answers(
    postgres: PrivatePostgres, server: Server, questions: Mapping[str, Sequence[Question]]
) -> None:
    connection = await asyncpg.connect(postgres.url(OWNER, DATABASE))
    for name, asked in questions.items():
        if wrong := await check(connection, server, WORKLOADS[name], asked):
            raise RuntimeError("\n".join(wrong))
    await connection.close()


def _cpu(accounting: CpuAccounting, server: Server, pooler: psutil.Process | None) -> Cpu:
    """Return the CPU time since the start of each, to 10 ms; that of PgBouncer is 0 without it."""
    spent = accounting.cpu_time(server)
    times = pooler.cpu_times() if pooler else None
    return spent.server, spent.database, times.user + times.system if times else 0.0


def _table(costs: Sequence[Cost], ways: Sequence[str]) -> str:
    """Return the CPU of each workload and way: the parts in ms, and the total as a ratio to `DIRECT`."""
    rows = [["workload", "way", "gateway ms", "PostgreSQL ms", "PgBouncer ms", "total ms", "to direct"]]
    for name in dict.fromkeys(each.workload for each in costs):
        found = {way: [each for each in costs if (each.workload, each.way) == (name, way)] for way in ways}
        direct = {each.round: each.total for each in found[DIRECT]}
        for way, of in found.items():
            parts = [[each.gateway, each.postgres, each.pgbouncer, each.total] for each in of]
            middle = [f"{median(part):.3f}" for part in zip(*parts, strict=True)]
            # A short run may take less CPU than the 10 ms that are counted.
            ratios = [each.total / direct[each.round] for each in of if way != DIRECT and direct[each.round] > 0]
            title = "idle, a second" if name == IDLE else f"{name} {WORKLOADS[name].title}"
            rows.append([title, way, *middle, spread(ratios) if ratios else ""])
    return "\n".join(report.aligned(rows))


def _version(program: str) -> tuple[int, ...]:
    printed = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout  # noqa: S603
    return tuple(map(int, re.findall(r"\d+", printed)[:3]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.poolers", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=4.0, help="duration of a measurement")
    add("--warm-up", type=float, default=2.0, help="seconds of requests before the measurements, for each workload")
    add("--share", type=float, default=1.0, help="fraction of the 200,000 encounters")
    add("--rest", type=float, default=5.5, help="seconds of idling after which the background work is done")
    add("--connections", type=int, default=8, help="the gateway's own pool has 10")
    add("--seed", type=int, default=1, help="the same seed, the same requests")
    add("--output", type=Path, default=ROOT / "output" / "bench", help="folder for logs, raw numbers and the table")
    return parser.parse_args()


if __name__ == "__main__":
    # SIGTERM raises SystemExit, so that the started processes are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    main()
