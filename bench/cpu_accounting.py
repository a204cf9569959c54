"""The CPU time of each server, and of PostgreSQL on its behalf, read from /proc."""

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.servers import Server

TICKS = os.sysconf("SC_CLK_TCK")
SLICE_SECONDS = 0.25
IDLE_SHARE = 0.1
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class CpuTime:
    """CPU seconds: the server's processes, and the backends of PostgreSQL that serve its login."""

    server: float
    database: float

    def __sub__(self, earlier: "CpuTime") -> "CpuTime":
        return CpuTime(self.server - earlier.server, self.database - earlier.database)

    def __add__(self, more: "CpuTime") -> "CpuTime":
        return CpuTime(self.server + more.server, self.database + more.database)

    @property
    def total(self) -> float:
        """The sum of both."""
        return self.server + self.database


class CpuAccounting:
    """Reads CPU times. A backend that has ended still counts with its last known value."""

    def __init__(self, postmaster: int) -> None:
        self._postmaster = psutil.Process(postmaster)
        self._backends: dict[tuple[int, float], tuple[str, float]] = {}

    def cpu_time(self, server: Server) -> CpuTime:
        """Return the CPU time of a server since its start, to 10 ms."""
        process = psutil.Process(server.process.pid)
        own = sum(cpu_of(each.pid) for each in (process, *process.children(recursive=True)))
        return CpuTime(own, self.database()[server.kind.login])

    def database(self) -> Counter[str]:
        """Return PostgreSQL's CPU time for each login, and under "" that of its shared helper processes."""
        for process in self._postmaster.children():
            try:
                title = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().rstrip("\0")
                # postgres: login database [local] activity
                words = title.split()
                login = words[1] if "[local]" in words else ""
                self._backends[process.pid, process.create_time()] = login, cpu_of(process.pid)
            except (OSError, psutil.NoSuchProcess):
                continue
        spent: Counter[str] = Counter()
        for login, seconds in self._backends.values():
            spent[login] += seconds  # type: ignore[assignment]
        return spent

    def wait_until_quiet(self, server: Server, quiet_seconds: float) -> None:
        """Return when a server has been idle for `quiet_seconds`, or after `PATIENCE_SECONDS`."""
        began = quiet_since = time.monotonic()
        before = self.cpu_time(server)
        while (now := time.monotonic()) - quiet_since < quiet_seconds:
            if now - began > PATIENCE_SECONDS:
                return
            time.sleep(SLICE_SECONDS)
            after = self.cpu_time(server)
            if (after - before).total > IDLE_SHARE * SLICE_SECONDS:
                quiet_since = time.monotonic()
            before = after


def memory_bytes(server: Server) -> int:
    """Return the resident memory of a server and its child processes, in bytes."""
    process = psutil.Process(server.process.pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def own_postmaster() -> int:
    """Return the process id of the PostgreSQL that this process started."""
    ours = psutil.Process().children()
    # A child started by `unshare` becomes postgres by exec, so it is found by its current name.
    return next(int(each.pid) for each in ours if each.name() == "postgres")


def cpu_of(pid: int, *, ended_children: bool = False) -> float:
    """Return the CPU seconds of a process; with `ended_children`, also of its children that have ended."""
    # After the program's name in brackets, which may contain any character. Source: proc(5), fields 14 to 17.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if ended_children else 13])) / TICKS
