"""What asks: requests over HTTP/1.1 on connections that stay open, as many at once as there are connections, or at a rate.

At a rate each request has its time. When no connection is free it waits, and its latency counts from when it was due,
not from when it was sent: a server that stalls is charged for everyone who would have come meanwhile.

A process of its own, so that what it costs is known and is not the server's:

    python -m bench.driver < plan.json

Says `begin` and `end` for whoever reads the clocks, then a line of JSON. Sockets and epoll without a framework: 15 us a
request, and less of the machine is taken from what is measured.
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
"""Where a request holds this, each that is sent has a UUID of its own."""

PATIENCE_SECONDS = 30.0
"""How long an answer may take at the end before it is given up."""


@dataclass(frozen=True)
class Plan:
    """What to ask and how. `rate` in requests a second; None asks again as soon as it is answered."""

    host: str
    port: int
    requests: Sequence[str]
    connections: int
    seconds: float
    run: int
    rate: float | None = None


@dataclass
class Outcome:
    """What came of it. Latencies and `late` (how late the driver itself was) in milliseconds, CPU in seconds."""

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
        """How many had what they asked for."""
        return self.requests - self.failures


class Connection:
    """A connection with at most one request under way."""

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
        """Read what is there; give the whole answer once it is whole. Raises `ConnectionError`."""
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
    """Say how many bytes of an answer have not come; None where that cannot be known yet."""
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


def drive(plan: Plan) -> Outcome:
    """Ask as planned, and say what came of it."""
    requests = _requests(plan)
    connections = {each.socket.fileno(): each for each in (Connection(plan) for _ in range(plan.connections))}
    poll = select.epoll()
    for number in connections:
        poll.register(number, select.EPOLLIN)
    outcome, latencies, lateness = Outcome(), [], []
    clock = time.perf_counter

    print("begin", flush=True)
    before = os.times()
    start = clock()
    end = start + plan.seconds
    free = deque(connections.values())
    asked, under_way = 0, 0
    while True:
        now = clock()
        if plan.rate is None:
            while free and now < end:
                free.popleft().send(next(requests), now)
                under_way += 1
            due = end
        else:
            due = start + asked / plan.rate
            while free and due <= now and due < end:
                free.popleft().send(next(requests), due)
                if under_way < plan.connections - 1:
                    lateness.append(now - due)
                asked, under_way = asked + 1, under_way + 1
                due = start + asked / plan.rate
                now = clock()
        waiting = plan.rate is not None and due < end
        if (not under_way and not waiting) or now > end + PATIENCE_SECONDS:
            break
        # epoll counts in milliseconds, select in microseconds; and an epoll is itself a file one can wait for.
        select.select([poll], [], [], max(0.0, due - now) if free and waiting else 1.0)
        for number, _ in poll.poll(0):
            connection = connections[number]
            answer = connection.receive()
            if answer is None:
                continue
            arrived = clock()
            latencies.append(arrived - connection.due)
            under_way -= 1
            free.append(connection)
            if answer[9:11] != b"20" or b'"errors"' in answer[:600]:
                outcome.failures += 1
                outcome.first_failure = outcome.first_failure or answer[:2000].decode(errors="replace")
    finished = clock()
    print("end", flush=True)
    after = os.times()

    for connection in connections.values():
        connection.socket.close()
    outcome.requests, outcome.seconds, outcome.unanswered = len(latencies), finished - start, under_way
    outcome.driver_cpu = after.user + after.system - before.user - before.system
    latencies.sort()
    outcome.p50, outcome.p90, outcome.p99, outcome.most = (_percentile(latencies, p) for p in (50, 90, 99, 100))
    outcome.late_p99 = _percentile(sorted(lateness), 99)
    return outcome


def _requests(plan: Plan) -> Iterator[bytes]:
    """Give the requests in turn for ever, each with a key of its own; no two runs share one."""
    templates = [each.encode().split(KEY) for each in plan.requests]
    number = 0
    while True:
        for template in templates:
            number += 1
            yield (b"%08x-%04x-4000-8000-%012x" % (plan.run, number >> 16, number)).join(template)


def _percentile(ordered: Sequence[float], percent: float) -> float:
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] * 1000 if ordered else 0.0


def main() -> None:
    """Read a plan, follow it, print what came of it."""
    plan: dict[str, Any] = json.load(sys.stdin)
    print(json.dumps(asdict(drive(Plan(**plan)))))


if __name__ == "__main__":
    main()
