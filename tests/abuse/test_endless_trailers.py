"""Endless trailers without a token: they cost the sender's connection, and delay no other caller."""

import socket
import threading
import time
from contextlib import suppress

from tests.gateways import running_gateway

ATTACKERS = 4
CONNECTIONS = 200
"""Connections of each attacker, at most."""
SECONDS = 5.0
"""Latency of another caller on a busy machine, in seconds, at most."""
HEAD = b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: "
PIECE = b"a" * 2**20


def attack(port: int, over: threading.Event, sent: list[int]) -> None:
    """Send trailers until each connection is cut, and store how many bytes of each were sent."""
    for _ in range(CONNECTIONS):
        taken = 0
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(HEAD)
            while taken < 80 * len(PIECE) and not over.is_set():
                client.sendall(PIECE)
                taken += len(PIECE)
        sent.append(taken)
        if over.is_set():
            return


def seconds_to_healthz(port: int) -> float:
    """Return the seconds until `/healthz` answers."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    return time.monotonic() - started


def test_endless_trailers_are_cut_off_and_do_not_block_others(database_url: str) -> None:
    over, sent = threading.Event(), list[int]()
    with running_gateway(database_url) as origin:
        port = int(origin.rpartition(":")[2])
        attackers = [threading.Thread(target=attack, args=(port, over, sent)) for _ in range(ATTACKERS)]
        for attacker in attackers:
            attacker.start()
        waited = [seconds_to_healthz(port) for _ in range(100)]
        over.set()
        for attacker in attackers:
            attacker.join()

    # The buffers of two kernels, which are full when the connection is cut.
    assert max(sent) < 20 * len(PIECE)
    assert max(waited) < 1
