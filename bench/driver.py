"""The load generator: HTTP/1.1 requests on persistent connections, in a closed loop or at a fixed rate.

At a fixed rate each request has a due time. If no connection is free it waits, and its latency counts from the due
time, not from the time of sending. A server that stalls is thus charged for all requests that were due meanwhile.

A separate process, so that its CPU time is known and is not counted as the server's:

    python -m bench.driver < plan.json

It prints `begin` and `end`, at which the parent reads the CPU times, and then a line of JSON. It uses sockets and epoll
without a framework, to take little CPU from the measured servers.
"""

import json
import math
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

KEY = b"@key@"
"""Placeholder in a request, replaced by a distinct UUID each time the request is sent."""

PATIENCE_SECONDS = 10.0
"""Seconds; the wait for outstanding answers at the end, after which their latency is the time waited so far."""


_clock = time.perf_counter


@dataclass(frozen=True)
class Plan:
    """The requests and how to send them. `rate` in requests a second; None sends the next request after each answer."""

    host: str
    port: int
    requests: Sequence[str]
    connections: int
    seconds: float
    run: int
    rate: float | None = None


@dataclass
class Outcome:
    """The result of a run. Latencies and `late` (the driver's own delay) in milliseconds, CPU in seconds."""

    requests: int = 0
    failures: int = 0
    unanswered: int = 0
    first_failure: str = ""
    seconds: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    most: float = 0.0
    late_p99: float = 0.0
    driver_cpu: float = 0.0

    @property
    def answered(self) -> int:
        """Number of requests with a successful answer."""
        return self.requests - self.failures


class Connection:
    """A connection with at most one request in flight."""

    def __init__(self, plan: Plan) -> None:
        self.socket = socket.create_connection((plan.host, plan.port), timeout=PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._parts: list[bytes] = []
        self._missing: int | None = None

    def send(self, request: bytes, due: float) -> None:
        """Send a request whose latency counts from `due`."""
        self.due = due
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """Read the available bytes; return the answer once it is complete. Raises `ConnectionError`."""
        part = self.socket.recv(1 << 18)
        if not part:
            raise ConnectionError("closed in the middle")
        self._parts.append(part)
        if self._missing is None:
            answer = b"".join(self._parts)
            self._parts = [answer]
            self._missing = _missing(answer)
        else:
            self._missing -= len(part)
        if self._missing is None or self._missing > 0:
            return None
        answer = b"".join(self._parts)
        self._parts, self._missing = [], None
        return answer


def _missing(answer: bytes) -> int | None:
    """Return the number of missing bytes of an answer, or None while it is unknown."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = answer[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        stop = head.find(b"\r\n", at + 2)
        length = int(head[at + 17 : stop if stop > 0 else None])
        return end + 4 + length - len(answer)
    return 0 if answer.endswith(b"\r\n0\r\n\r\n") else None


class Drive:
    """One run. Free connections are in `_free`; a busy connection holds the due time of its request."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = _requests(plan)
        self._connections = {each.socket.fileno(): each for each in (Connection(plan) for _ in range(plan.connections))}
        self._free = deque(self._connections.values())
        self._poll = select.epoll()
        for number in self._connections:
            self._poll.register(number, select.EPOLLIN)
        self._asked = 0
        self._latencies: list[float] = []
        self._lateness: list[float] = []
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Send the requests as planned, and return the result."""
        print("begin", flush=True)
        before = os.times()
        self._start = _clock()
        self._end = self._start + self._plan.seconds
        while True:
            now, due = self._send()
            waiting = due < self._end
            if not (waiting or len(self._free) < len(self._connections)) or now > self._end + PATIENCE_SECONDS:
                break
            # epoll counts in milliseconds, select in microseconds; an epoll descriptor can itself be selected.
            select.select([self._poll], [], [], max(0.0, due - now) if self._free and waiting else 1.0)
            for number, _ in self._poll.poll(0):
                self._receive(self._connections[number])
        finished = _clock()
        after = os.times()
        print("end", flush=True)
        self._outcome.driver_cpu = after.user + after.system - before.user - before.system
        return self._summed_up(finished)

    def _send(self) -> tuple[float, float]:
        """Send the due requests while a connection is free; return the time, and when the next request is due."""
        now, rate = _clock(), self._plan.rate
        if rate is None:
            while self._free and now < self._end:
                self._free.popleft().send(next(self._requests), now)
            return now, self._end
        while (due := self._start + self._asked / rate) <= now and due < self._end and self._free:
            if len(self._free) > 1:
                # A connection was free, so this delay is the driver's own.
                self._lateness.append(now - due)
            self._free.popleft().send(next(self._requests), due)
            self._asked += 1
            now = _clock()
        return now, due

    def _receive(self, connection: Connection) -> None:
        answer = connection.receive()
        if answer is None:
            return
        self._latencies.append(_clock() - connection.due)
        self._free.append(connection)
        # Only a refusal that is a member of the answer states whether anything was recorded.
        if answer[9:11] != b"20" or b'"errors":' in answer[:1000] or b'"recorded":' in answer[:1000]:
            self._outcome.failures += 1
            self._outcome.first_failure = self._outcome.first_failure or answer[:2000].decode(errors="replace")

    def _summed_up(self, finished: float) -> Outcome:
        plan, outcome = self._plan, self._outcome
        outcome.requests, outcome.seconds = len(self._latencies), finished - self._start
        abandoned = [each.due for each in self._connections.values() if each not in self._free]
        if plan.rate is not None:
            never_sent = range(self._asked, math.ceil(plan.rate * plan.seconds))
            abandoned += [self._start + number / plan.rate for number in never_sent]
        outcome.unanswered = len(abandoned)
        latencies = sorted([*self._latencies, *(finished - due for due in abandoned)])
        outcome.p50, outcome.p90, outcome.p99, outcome.most = (_percentile(latencies, p) for p in (50, 90, 99, 100))
        outcome.late_p99 = _percentile(sorted(self._lateness), 99)
        for connection in self._connections.values():
            connection.socket.close()
        return outcome


def _requests(plan: Plan) -> Iterator[bytes]:
    """Yield the requests in a cycle, each with its own key; no two runs share a key."""
    templates = [each.encode().split(KEY) for each in plan.requests]
    number = 0
    while True:
        for template in templates:
            number += 1
            yield (b"%08x-%04x-4000-8000-%012x" % (plan.run, number >> 16, number)).join(template)


def _percentile(ordered: Sequence[float], percent: float) -> float:
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] * 1000 if ordered else 0.0


def main() -> None:
    """Read a plan, execute it, and print the result."""
    plan: dict[str, Any] = json.load(sys.stdin)
    print(json.dumps(asdict(Drive(Plan(**plan)).run())))


if __name__ == "__main__":
    main()
