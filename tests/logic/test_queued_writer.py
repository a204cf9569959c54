"""The queued log writer: a thread writes lines complete and in order, and logging never blocks."""

import os
import re
import threading
from collections.abc import Iterator

import orjson
import pytest

from gateway.observability.queued_writer import MAX_WRITE_BYTES, QueuedWriter

PIPE_BYTES = 64 * 1024


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(writer)


class Reader:
    """Reads a pipe to its end, in a thread, after `start()`."""

    def __init__(self, descriptor: int) -> None:
        self.read = b""
        self._descriptor = descriptor
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def lines_until(self, wanted: bytes) -> list[bytes]:
        """Return the lines up to `wanted`, waiting for it."""
        for _ in range(10_000):
            if wanted in self.read:
                return self.read.splitlines()
            self._thread.join(0.002)
        raise AssertionError(f"never read: {wanted!r}")

    def _run(self) -> None:
        with os.fdopen(self._descriptor, "rb", buffering=0) as stream:
            while part := stream.read(PIPE_BYTES):
                self.read += part


def test_lines_are_written_complete_and_in_order(pipe) -> None:
    reader = Reader(pipe[0])
    reader.start()
    queued = QueuedWriter(pipe[1])
    lines = [b"%d %s" % (number, b"x" * (number % 7_000)) for number in range(2_000)]

    for line in lines:
        queued.put(line + b"\n")

    assert queued.flush(20)
    assert reader.lines_until(lines[-1]) == lines


def test_no_write_exceeds_the_atomic_size_of_a_pipe(pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = os.write

    def write_and_measure(descriptor: int, data: bytes) -> int:
        written.append(len(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_and_measure)
    reader = Reader(pipe[0])
    reader.start()
    queued = QueuedWriter(pipe[1])

    for _ in range(1_000):
        queued.put(b"x" * 300 + b"\n")

    assert queued.flush(20)
    assert max(written) <= MAX_WRITE_BYTES
    assert len(written) < 1_000


def test_lines_over_the_limit_are_dropped_and_counted_later(pipe) -> None:
    dropped: list[None] = []
    queued = QueuedWriter(pipe[1], on_drop=lambda: dropped.append(None), max_lines=100)
    put = 2_000

    for _ in range(put):
        queued.put(b"x" * 1_000 + b"\n")
    assert not queued.flush(0.05)
    reader = Reader(pipe[0])
    reader.start()

    assert queued.flush(20)
    reader.lines_until(b"log_dropped")
    queued.put(b"the end\n")
    lines = reader.lines_until(b"the end")
    notices = [orjson.loads(line) for line in lines if line.startswith(b"{")]
    assert sum(line["lines"] for line in notices) == len(dropped) > 0
    assert len(lines) - len(notices) - 1 == put - len(dropped)
    assert all(re.fullmatch(rb"x{1000}|\{.*\}|the end", line) for line in lines)


def test_a_closed_reader_loses_lines_and_nothing_else(pipe) -> None:
    os.close(pipe[0])
    dropped: list[None] = []
    queued = QueuedWriter(pipe[1], on_drop=lambda: dropped.append(None))

    for _ in range(10):
        queued.put(b"line\n")

    assert queued.flush(20)
    assert len(dropped) == 10


def test_a_non_blocking_pipe_gets_every_line(pipe) -> None:
    os.set_blocking(pipe[1], False)
    queued = QueuedWriter(pipe[1])
    for _ in range(500):
        queued.put(b"x" * 999 + b"\n")
    reader = Reader(pipe[0])
    reader.start()

    assert queued.flush(20)
    queued.put(b"the end\n")
    assert len(reader.lines_until(b"the end")) == 501


def test_a_forked_process_writes_only_its_own_lines(pipe) -> None:
    queued = QueuedWriter(pipe[1])
    queued.put(b"parent\n")
    assert queued.flush(20)

    child = os.fork()
    if child == 0:
        queued.put(b"child\n")
        os._exit(0 if queued.flush(20) else 1)

    assert os.waitpid(child, 0)[1] == 0
    assert os.read(pipe[0], 100) == b"parent\nchild\n"
    os.close(pipe[0])
