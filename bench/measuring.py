"""One measurement: a server is asked for a while, and what that cost is read from the clocks until it rests again."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.clocks import Clocks, memory_bytes
from bench.driver import Outcome, Plan
from bench.servers import ROOT, Server
from bench.workloads import Question, Workload

AT_REST_SECONDS = 0.5
"""So long a server that has rested after the last measurement must be seen to rest before the next."""


@dataclass(frozen=True)
class Measurement:
    """What was measured. CPU in ms a request: while it was answered, and afterwards until the server rested."""

    part: str
    round: int
    server: str
    workload: str
    connections: int
    rate: float | None
    outcome: Outcome
    server_ms: float
    database_ms: float
    server_after_ms: float
    database_after_ms: float
    helpers_ms: float
    memory_mib: float

    @property
    def cpu(self) -> float:
        """The server's CPU a request, with what it does afterwards."""
        return self.server_ms + self.server_after_ms

    @property
    def cpu_with_database(self) -> float:
        """The same, and PostgreSQL's backends for it."""
        return self.cpu + self.database_ms + self.database_after_ms

    @property
    def per_second(self) -> float:
        """How many requests were answered in a second."""
        return self.outcome.answered / self.outcome.seconds

    def as_json(self) -> dict[str, Any]:
        """Give everything, for whoever wants to reckon anew."""
        return asdict(self)


class Measure:
    """Measures. Each run of the driver has a number of its own, so that no key comes twice."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._runs = 0

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
        """Ask a server for some seconds. Raises `RuntimeError` on a wrong answer.

        A server that is too busy may say so; what it turned away is counted, and shared out over what it answered.
        """
        requests = workload.requests(server, questions)
        self._runs += 1
        plan = Plan(server.host, server.port, requests, connections, seconds, self._runs, rate)
        self._clocks.wait_until_quiet(server, AT_REST_SECONDS)
        with subprocess.Popen(
            [sys.executable, "-m", "bench.driver"],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as driver:  # fmt: skip
            assert driver.stdin is not None and driver.stdout is not None  # noqa: PT018
            json.dump(asdict(plan), driver.stdin)
            driver.stdin.close()
            _wait_for(driver, "begin")
            before, helpers = self._clocks.spent(server), self._clocks.database()[""]
            _wait_for(driver, "end")
            during = self._clocks.spent(server) - before
            memory = memory_bytes(server)
            outcome = Outcome(**json.loads(driver.stdout.read()))
        if not outcome.answered or (outcome.failures and "temporarily_unavailable" not in outcome.first_failure):
            raise RuntimeError(
                f"{server.kind.name}, {workload.name}: {outcome.failures} wrong answers of {outcome.requests}; "
                f"the first was\n{outcome.first_failure}"
            )
        self._clocks.wait_until_quiet(server, server.kind.quiet_seconds)
        after = self._clocks.spent(server) - before - during
        helpers = self._clocks.database()[""] - helpers
        each = [
            1000 * cpu / outcome.answered
            for cpu in (during.server, during.database, after.server, after.database, helpers)
        ]
        return Measurement(
            part, round_, server.kind.name, workload.name, connections, rate, outcome, *each, memory / 2**20
        )


def _wait_for(driver: subprocess.Popen[str], word: str) -> None:
    assert driver.stdout is not None
    line = driver.stdout.readline().strip()
    if line != word:
        raise RuntimeError(f"the driver ended: {line}")
