"""The order in which the servers are measured."""

import argparse
import asyncio
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import asyncpg

from bench import report
from bench.correctness import ask, check
from bench.cpu_accounting import CpuAccounting, memory_bytes, own_postmaster
from bench.load_test import LoadTest
from bench.pgbench import pgbench_per_second
from bench.results import Run
from bench.seed import Population, seed
from bench.servers import FULL_MERCURIUS, GATEWAY, Kind, Server, create_peer_logins, seconds_to_first_answer
from bench.workloads import WORKLOADS, Question, Workload
from gateway.database.migrate import migrate
from gateway.database.roles import DATABASE, OWNER, create_database
from gateway.embedded_postgres.cluster import PrivatePostgres

SHARE_OF_HIGHEST = 0.7
"""Fraction of the full Mercurius' highest rate. At a rate near a server's maximum, only queues would be measured."""


async def prepare(postgres: PrivatePostgres, population: Population, kinds: Sequence[Kind]) -> Population:
    """Create the databases, the encounters and the peers' logins; return the population with its encounters' ids."""
    await create_database(postgres)
    owner_url = postgres.url(OWNER, DATABASE)
    await migrate(owner_url)
    await seed(owner_url, population)
    await create_peer_logins(postgres, kinds)
    connection = await asyncpg.connect(owner_url)
    try:
        rows = await connection.fetch("SELECT id FROM patient_graph.encounters ORDER BY id")
        return replace(population, ids=[str(row["id"]) for row in rows])
    finally:
        await connection.close()


class Benchmark:
    """The running servers, the questions sent to them, and the run that collects the results."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        run: Run,
        postgres: PrivatePostgres,
        servers: Sequence[Server],
        population: Population,
    ) -> None:
        self._arguments, self._run, self._postgres, self._servers = arguments, run, postgres, servers
        self._population = population
        self._chance = random.Random(run.seed)  # noqa: S311 - the same seed selects the same questions
        self._questions: dict[str, list[Question]] = {}
        self._measure = LoadTest(CpuAccounting(own_postmaster()), arguments.rest)

    def choose_questions(self) -> None:
        """Choose the questions of each workload."""
        for name in self._arguments.workloads:
            self._questions[name] = WORKLOADS[name].questions(self._chance, self._population)

    async def require_equal_answers(self) -> None:
        """Exit the program unless all servers answer alike."""
        wrong = []
        for server in self._servers:
            connection = await asyncpg.connect(self._postgres.url(OWNER, server.kind.database))
            for name, questions in self._questions.items():
                wrong += await check(connection, server, WORKLOADS[name], questions)
            await connection.close()
        if wrong:
            sys.exit("They do not answer alike:\n" + "\n".join(wrong))
        print(f"all answer alike: {', '.join(self._questions)}", flush=True)

    def warm_up(self) -> None:
        """Send requests until code is compiled, caches are filled and statements are prepared."""
        self._run.idle_mib = self._memory()
        for server, name in self._pairs(self._arguments.workloads):
            self._measure.send(
                server, WORKLOADS[name], self._questions[name], self._arguments.connections, self._arguments.warm_up
            )

    def closed(self, round_: int) -> None:
        """Measure all workloads on all servers in a closed loop, in random order."""
        for server, name in self._pairs(self._arguments.workloads):
            self._note("closed", round_, server, name, self._arguments.connections)

    def single_connection(self, round_: int) -> None:
        """Record encounters one after another: batching must not make a single caller slower."""
        for server, name in self._pairs([name for name in self._arguments.workloads if WORKLOADS[name].is_write]):
            self._note("single", round_, server, name, 1)

    def pgbench(self, _round: int) -> None:
        """Measure pgbench inserting the rows that W2 records."""
        asyncio.run(self._checkpoint())
        found = pgbench_per_second(self._postgres, self._arguments.connections, self._arguments.seconds)
        self._run.pgbench_per_second.append(found)
        print(f"pgbench {found:.0f}/s", flush=True)

    def rate(self, round_: int) -> None:
        """Measure the gateway and the full Mercurius at 0.7 of that one's highest rate."""
        for server, name in self._pairs(self._arguments.workloads):
            highest = [
                each.per_second
                for each in self._run.measurements
                if (each.part, each.server, each.workload) == ("closed", FULL_MERCURIUS.name, name)
            ]
            if highest and server.kind in (GATEWAY, FULL_MERCURIUS):
                rate = SHARE_OF_HIGHEST * median(highest)
                self._note("rate", round_, server, name, self._arguments.connections, rate)

    def read_memory(self) -> None:
        """Store the memory of every server after the load."""
        self._run.loaded_mib = self._memory()

    def cold(self, kinds: Sequence[Kind], introspection_url: str, logs: Path) -> None:
        """Start another process of each kind, and store the time to its first answer."""
        for kind in self._chance.sample(kinds, len(kinds)):
            workload = WORKLOADS[kind.cold_question]
            found = seconds_to_first_answer(kind, self._postgres, introspection_url, logs, self._first(workload))
            self._run.cold_seconds.setdefault(kind.name, []).append(found)
            print(f"cold   {kind.name:12} {found:.2f} s", flush=True)

    def _memory(self) -> dict[str, float]:
        return {server.kind.name: memory_bytes(server) / 2**20 for server in self._servers}

    def _first(self, workload: Workload) -> Callable[[Server], None]:
        question = workload.questions(self._chance, self._population)[0]

        def first(server: Server) -> None:
            status, answer = ask(server, workload.requests(server, [question])[0])
            assert status == 200, answer

        return first

    def _pairs(self, names: Sequence[str]) -> list[tuple[Server, str]]:
        pairs = [
            (server, name)
            for server in self._servers
            for name in names
            if WORKLOADS[name].dialect_of(server) is not None
        ]
        self._chance.shuffle(pairs)
        return pairs

    def _note(
        self, part: str, round_: int, server: Server, name: str, connections: int, rate: float | None = None
    ) -> None:
        asyncio.run(self._checkpoint())
        measured = self._measure(
            part, round_, server, WORKLOADS[name], self._questions[name],
            connections=connections, seconds=self._arguments.seconds, rate=rate,
        )  # fmt: skip
        self._run.measurements.append(measured)
        print(report.line(measured), flush=True)

    async def _checkpoint(self) -> None:
        # A full-page image is written at the first change of each page after a checkpoint, so each server pays its own.
        connection = await asyncpg.connect(self._postgres.url(database=DATABASE))
        await connection.execute("CHECKPOINT")
        await connection.close()
