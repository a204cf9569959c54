"""A bounded queue of log lines and the thread that writes them, so that a slow reader of the log delays no request.

A pipe holds 64 KiB. When its reader stops, a write blocks the thread that calls it, and that must not be the one that
serves. Lines that find the queue full are dropped and counted; the count is logged once the reader goes on.
"""

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from queue import Empty, SimpleQueue

import orjson

MAX_LINES = 10_000
"""Lines that wait, at most: some 3 MB, and several seconds of a busy process."""

# POSIX writes this many bytes to a pipe in one piece, so the lines of several workers never mix. Source: pipe(7).
MAX_WRITE_BYTES = select.PIPE_BUF


class QueuedWriter:
    """Writes lines to a file descriptor in a thread of its own. `put` never blocks.

    Args:
        descriptor: Where to write. It stays open for as long as the process runs.
        on_drop: Called for each line that is dropped, in the thread that logs or in the one that writes.
        max_lines: Lines that wait, at most.
    """

    def __init__(
        self, descriptor: int, *, on_drop: Callable[[], None] = lambda: None, max_lines: int = MAX_LINES
    ) -> None:
        self._descriptor = descriptor
        self._on_drop = on_drop
        self._max_lines = max_lines
        self._dropped = 0
        self._dropping = threading.Lock()
        self._start()
        # A fork has the queue but not the thread, and its lines are the parent's to write.
        os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        self._dropping = threading.Lock()
        self._lines: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        threading.Thread(target=self._write_lines, name="writer", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Queue a line, or drop it where the queue is full. Never blocks."""
        if self._lines.qsize() < self._max_lines:
            self._lines.put(line)
        else:
            self._drop(1)

    def flush(self, seconds: float) -> bool:
        """Return whether the lines queued so far were written, or dropped, within so many seconds."""
        written = threading.Event()
        self._lines.put(written)
        return written.wait(seconds)

    def _drop(self, lines: int) -> None:
        with self._dropping:
            self._dropped += lines
        for _ in range(lines):
            self._on_drop()

    def _write_lines(self) -> None:
        batch: list[bytes] = []
        waiting = self._lines
        while True:
            entry = waiting.get()
            # Each write costs a system call: what waits goes out together, as far as that stays in one piece.
            size = 0
            while isinstance(entry, bytes):
                if batch and size + len(entry) > MAX_WRITE_BYTES:
                    self._write(batch)
                    size = 0
                batch.append(entry)
                size += len(entry)
                try:
                    entry = waiting.get_nowait()
                except Empty:
                    break
            if batch:
                self._write(batch)
            if isinstance(entry, threading.Event):
                entry.set()

    def _write(self, batch: list[bytes]) -> None:
        """Write the batch and empty it; after that, tell how many lines were dropped before."""
        try:
            self._write_all(b"".join(batch))
        except OSError:
            # The reader is gone, or the disk is full. The next batch may find it otherwise.
            self._drop(len(batch))
        else:
            self._tell_dropped()
        batch.clear()

    def _tell_dropped(self) -> None:
        with self._dropping:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            told = {"event": "log_dropped", "level": "warning", "lines": dropped, "timestamp": datetime.now(UTC)}
            with suppress(OSError):
                self._write_all(orjson.dumps(told, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                # A terminal or pipe that another program made non-blocking.
                select.select([], [self._descriptor], [])
