"""A bounded queue of log lines and a thread that writes them, so that a slow reader of the log delays no request.

A pipe holds 64 KiB. When its reader stops, a write blocks the calling thread, which must not be the event loop's. Lines
are dropped and counted while the queue is full. The count is logged once the reader continues.
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
"""Lines in the queue; some 3 MB, and several seconds of a busy process."""

# Bytes; POSIX writes up to this many to a pipe atomically, so the lines of several workers never mix. Source: pipe(7).
MAX_WRITE_BYTES = select.PIPE_BUF


class QueuedWriter:
    """Write lines to a file descriptor in a separate thread. `put` never blocks.

    Args:
        descriptor: File descriptor; it stays open for as long as the process runs.
        on_drop: Called for each dropped line, in the thread that logs or in the one that writes.
        max_lines: Maximum number of queued lines.
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
        # A forked child has the queue but not the thread. The parent writes the queued lines.
        os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        self._dropping = threading.Lock()
        self._lines: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        threading.Thread(target=self._write_lines, name="writer", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Queue a line, or drop it if the queue is full. Never blocks."""
        if self._lines.qsize() < self._max_lines:
            self._lines.put(line)
        else:
            self._drop(1)

    def flush(self, seconds: float) -> bool:
        """Return whether the lines queued so far were written, or dropped, within `seconds`."""
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
            # Each write costs a system call, so queued lines are written together, up to the size of an atomic write.
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
        """Write the batch and clear it; then log how many lines were dropped before."""
        try:
            self._write_all(b"".join(batch))
        except OSError:
            # The reader is gone, or the disk is full. The next batch may succeed.
            self._drop(len(batch))
        else:
            self._log_dropped()
        batch.clear()

    def _log_dropped(self) -> None:
        with self._dropping:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            members = {"event": "log_dropped", "level": "warning", "lines": dropped, "timestamp": datetime.now(UTC)}
            with suppress(OSError):
                self._write_all(orjson.dumps(members, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                # Another program made the terminal or pipe non-blocking.
                select.select([], [self._descriptor], [])
