"""One measurement: send requests to a server for some time, and read its CPU time until it is idle again."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from bench.cpu_accounting import CpuAccounting, memory_bytes
from bench.driver import Outcome, Plan
from bench.results import Measurement
from bench.servers import ROOT, Server
from bench.workloads import Question, Workload

AT_REST_SECONDS = 0.5
"""Seconds for which a server without background work must be idle."""


class LoadTest:
    """Measures servers. Each run of the driver has its own number, so that no key repeats.

    A server with background work has finished it when it has been idle for `rest_seconds`. `runs_before` is the number
    of runs whose keys a database has already.
    """

    def __init__(self, accounting: CpuAccounting, rest_seconds: float, runs_before: int = 0) -> None:
        self._accounting = accounting
        self._rest_seconds = rest_seconds
        self._runs = runs_before

    def send(
        self, server: Server, workload: Workload, questions: Sequence[Question], connections: int, seconds: float
    ) -> Outcome:
        """Send requests without reading the CPU time of the server."""
        with self._driver(server, workload, questions, connections, seconds) as driver:
            printed, _ = driver.communicate()
        return Outcome(**json.loads(printed.splitlines()[-1]))

    @contextmanager
    def _driver(
        self,
        server: Server,
        workload: Workload,
        questions: Sequence[Question],
        connections: int,
        seconds: float,
        rate: float | None = None,
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a driver, and wait for it at the end of the block."""
        self._runs += 1
        requests = workload.requests(server, questions)
        plan = Plan(server.host, server.port, requests, connections, seconds, self._runs, rate)
        with subprocess.Popen(
            [sys.executable, "-m", "bench.driver"],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as driver:  # fmt: skip
            assert driver.stdin is not None
            json.dump(asdict(plan), driver.stdin)
            driver.stdin.close()
            driver.stdin = None
            yield driver

    def __call__(
        self,
        part: str,
        round_: int,
        server: Server,
        workload: Workload,
        questions: Sequence[Question],
        *,
        connections: int,
        seconds: float,
        rate: float | None = None,
    ) -> Measurement:
        """Send requests to a server for some seconds. Raises `RuntimeError` on a wrong answer.

        An overloaded server may refuse requests. The refusals are counted, and their cost is distributed over the
        answered requests.
        """
        self._accounting.wait_until_quiet(server, AT_REST_SECONDS)
        with self._driver(server, workload, questions, connections, seconds, rate) as driver:
            _wait_for(driver, "begin")
            before, helpers = self._accounting.cpu_time(server), self._accounting.database()[""]
            _wait_for(driver, "end")
            during = self._accounting.cpu_time(server) - before
            memory = memory_bytes(server)
            assert driver.stdout is not None
            outcome = Outcome(**json.loads(driver.stdout.read()))
        if not outcome.answered or (outcome.failures and "temporarily_unavailable" not in outcome.first_failure):
            raise RuntimeError(
                f"{server.kind.name}, {workload.name}: {outcome.failures} wrong answers of {outcome.requests}; "
                f"the first was\n{outcome.first_failure}"
            )
        idle_seconds = self._rest_seconds if server.kind.has_background_jobs else AT_REST_SECONDS
        self._accounting.wait_until_quiet(server, idle_seconds)
        after = self._accounting.cpu_time(server) - before - during
        helpers = self._accounting.database()[""] - helpers

        def ms(seconds: float) -> float:
            return 1000 * seconds / outcome.answered

        return Measurement(
            part=part,
            round=round_,
            server=server.kind.name,
            workload=workload.name,
            connections=connections,
            rate=rate,
            outcome=outcome,
            server_ms=ms(during.server),
            database_ms=ms(during.database),
            server_after_ms=ms(after.server),
            database_after_ms=ms(after.database),
            helpers_ms=ms(helpers),
            memory_mib=memory / 2**20,
        )


def _wait_for(driver: subprocess.Popen[str], word: str) -> None:
    assert driver.stdout is not None
    line = driver.stdout.readline().strip()
    if line != word:
        raise RuntimeError(f"the driver ended: {line}")
