"""The results of a run: its measurements, and the machine."""

from dataclasses import dataclass, field
from typing import Any

from bench.driver import Outcome


@dataclass(frozen=True)
class Measurement:
    """One measurement. CPU in ms a request: while requests were answered, and afterwards until the server was idle."""

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
        """The server's CPU a request, including its later work."""
        return self.server_ms + self.server_after_ms

    @property
    def cpu_with_database(self) -> float:
        """Like `cpu`, with that of PostgreSQL's backends for the server."""
        return self.cpu + self.database_ms + self.database_after_ms

    @property
    def per_second(self) -> float:
        """Requests answered per second."""
        return self.outcome.answered / self.outcome.seconds


@dataclass
class Run:
    """The results of one run, and the machine."""

    seed: int
    arguments: dict[str, Any]
    machine: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    idle_mib: dict[str, float] = field(default_factory=dict)
    loaded_mib: dict[str, float] = field(default_factory=dict)
    cold_seconds: dict[str, list[float]] = field(default_factory=dict)
    pgbench_per_second: list[float] = field(default_factory=list)
