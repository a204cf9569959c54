"""The cost of a pooler: the gateway behind PgBouncer in each mode, compared with a direct connection."""

import argparse
import asyncio
import os
import random
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import psutil

from bench.benchmark import prepare
from bench.cpu_accounting import CpuAccounting, own_postmaster
from bench.load_test import LoadTest
from bench.seed import Population
from bench.servers import GATEWAY, Server, running, token_server
from bench.workloads import WORKLOADS, Workload
from gateway.database.roles import DATABASE, LOGIN
from gateway.embedded_postgres.cluster import PrivatePostgres

CONFIGURATION = """
[databases]
{database} = host={socket} user={login}
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
auth_type = any
pool_mode = {mode}
default_pool_size = 30
{extra}
"""

TRACKING_SINCE = (1, 21)

QUESTIONS = ("W1", "W3", "R4")
"""A recording over GraphQL, one encounter by id over GraphQL, and a page over REST."""


def compare_poolers(pgbouncer: Path, arguments: argparse.Namespace) -> None:
    """Measure each mode in turn with the direct connection, and print medians of the ratios of CPU and of p50."""
    version = subprocess.run([pgbouncer, "--version"], check=True, capture_output=True, text=True).stdout  # noqa: S603 - as named
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    modes = {"direct": ("", ""), "session": ("session", ""), "transaction": ("transaction", "pool_mode=transaction")}
    if found >= TRACKING_SINCE:
        modes["tracked"] = ("transaction", "pool_mode=transaction&prepared_statements=tracked")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="data-", dir=arguments.output))
        postgres = stack.enter_context(PrivatePostgres(Path(folder), connections=200))
        accounting = CpuAccounting(own_postmaster())
        population = asyncio.run(prepare(postgres, Population.share(arguments.share)))
        introspection = stack.enter_context(token_server())
        sides: dict[str, Side] = {}
        for name, (mode, parameters) in modes.items():
            logs = arguments.output / name
            logs.mkdir(exist_ok=True)
            settings: Mapping[str, str] = {}
            pooler = None
            if mode:
                pooler, url = stack.enter_context(_pgbouncer(pgbouncer, postgres, mode, tracked=name == "tracked"))
                settings = {"GATEWAY_DATABASE_URL": f"{url}&{parameters}".rstrip("&")}
            server = stack.enter_context(running(GATEWAY, postgres, introspection, logs, **settings))
            sides[name] = Side(server, LoadTest(accounting, arguments.rest), pooler)
        print(f"PgBouncer {'.'.join(map(str, found))}; medians of {arguments.rounds} rounds, relative to direct")
        for workload in QUESTIONS:
            _compare(WORKLOADS[workload], sides, population, arguments)


class Side(NamedTuple):
    """A gateway with its connection to the database. `pooler` is the process of PgBouncer, if there is one."""

    server: Server
    load_test: LoadTest
    pooler: psutil.Process | None


def _compare(
    workload: Workload, sides: Mapping[str, Side], population: Population, arguments: argparse.Namespace
) -> None:
    questions = workload.questions(random.Random(arguments.seed), population)  # noqa: S311 - made-up requests
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for server, load_test, _ in sides.values():
        load_test.warm_up(server, workload, questions, arguments.connections, arguments.warm_up)
    for round_ in range(arguments.rounds):
        for name, (server, load_test, pooler) in sides.items():
            before = _cpu(pooler)
            result = load_test(
                "closed", round_, server, workload, questions,
                connections=arguments.connections, seconds=arguments.seconds,
            )  # fmt: skip
            cpu = result.server_ms + result.database_ms + result.server_after_ms + result.database_after_ms
            rows[name].append((cpu + 1000 * (_cpu(pooler) - before) / result.outcome.answered, result.outcome.p50))
    for name in sides:
        ratios = [
            statistics.median(
                own[which] / direct[which] for own, direct in zip(rows[name], rows["direct"], strict=True)
            )
            for which in (0, 1)
        ]
        print(f"{workload.name} {name}: CPU {ratios[0]:.2f}, p50 {ratios[1]:.2f}", flush=True)


def _cpu(pooler: psutil.Process | None) -> float:
    if pooler is None:
        return 0.0
    spent = pooler.cpu_times()
    return float(spent.user + spent.system)


@contextmanager
def _pgbouncer(
    program: Path, postgres: PrivatePostgres, mode: str, *, tracked: bool
) -> Iterator[tuple[psutil.Process, str]]:
    """Start PgBouncer; yield its process and the gateway's URL through it."""
    socket = Path(parse_qs(urlsplit(postgres.url(LOGIN, DATABASE)).query)["host"][0])
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    folder.chmod(0o777)
    configuration = folder / "pgbouncer.ini"
    extra = "max_prepared_statements = 200" if tracked else ""
    configuration.write_text(
        CONFIGURATION.format(database=DATABASE, socket=socket, login=LOGIN, folder=folder, mode=mode, extra=extra)
    )
    # PgBouncer refuses to run as root, and only its owner can enter the folder of the server's socket.
    user = ["-u", socket.owner()] if os.geteuid() == 0 else []
    process = subprocess.Popen([program, *user, configuration], stderr=subprocess.DEVNULL)  # noqa: S603 - as named
    try:
        while not list(folder.glob(".s.PGSQL.*[0-9]")):
            time.sleep(0.05)
        yield psutil.Process(process.pid), f"postgresql://{LOGIN}@/{DATABASE}?host={folder}&port=6432"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)
