"""Report the progress of an import and its refused lines.

The progress is a bar on a terminal, and otherwise a line every few seconds. Refused lines go to a file by number, rule
and reason, never with their content. So readers of that file need no permission to read patient data.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

import orjson

from gateway.importers.reader import STANDARD_INPUT, ImportStopped, LineReader, Refusal

MAX_PRINTED = 20
"""Refused lines that are also printed on the terminal if they are written to a file."""

BAR_SECONDS = 0.2
LINE_SECONDS = 5.0
BAR_CHARACTERS = 30


class Progress:
    """Report the progress of an import on standard error, and write refused lines to a file."""

    def __init__(self, lines: LineReader, rejects: Path | None, written: IO[bytes] | None) -> None:
        self._lines = lines
        self._rejects = rejects
        self._written = written
        self._refused = 0
        self._on_terminal = sys.stderr.isatty()
        self._pause_seconds = BAR_SECONDS if self._on_terminal else LINE_SECONDS
        self._began_at = time.monotonic()
        # Show the bar from the first lines on.
        self._printed_at = self._began_at - BAR_SECONDS

    @classmethod
    @contextmanager
    def of(cls, lines: LineReader, file: Path, rejects: Path | None) -> Iterator[Self]:
        """Yield the progress of the import of `file`.

        Raises `ImportStopped` if the file of refused lines cannot be written.

        Args:
            lines: The lines of `file`.
            file: The imported file, or `-` for standard input.
            rejects: File for refused lines; deleted at the end if it is empty. None: a file beside the imported one;
                lines of standard input are named on standard error.
        """
        if rejects is None and file != STANDARD_INPUT:
            rejects = file.with_name(f"{file.name}.rejects.jsonl")
        if rejects is None:
            progress = cls(lines, None, None)
            yield progress
            progress.clear()
            return
        if rejects.exists() and file.exists() and rejects.samefile(file):
            raise ImportStopped("the file for refused lines must not be the imported file")
        try:
            written = rejects.open("wb", buffering=0)
        except OSError as error:
            raise ImportStopped(
                f"{rejects} cannot be written ({error.strerror}); name another file for refused lines with --rejects"
            ) from error
        progress = cls(lines, rejects, written)
        try:
            with written:
                yield progress
        finally:
            progress.clear()
            if progress._refused:
                print(f"refused lines are in {rejects}", file=sys.stderr)
            elif rejects.is_file():
                rejects.unlink()

    def refuse(self, refusal: Refusal) -> None:
        """Record refused lines."""
        self._refused += 1
        if self._written:
            self._written.write(orjson.dumps(refusal.as_members()) + b"\n")
        if not self._written or self._refused <= MAX_PRINTED:
            self.print_message(refusal)

    def print_message(self, words: object) -> None:
        """Print a message on its own line."""
        self.clear()
        print(words, file=sys.stderr)

    def update(self, so_far: object) -> None:
        """Print the progress if it is due. `so_far` is, as text, the summary of the lines up to now."""
        now = time.monotonic()
        if now - self._printed_at < self._pause_seconds:
            return
        self._printed_at = now
        per_second = self._lines.number / (now - self._began_at)
        text = f"{self._lines.number:,} lines read, {per_second:,.0f} a second: {so_far}"
        if share := self._share():
            text = f"{share:4.0%} {text}"
        if self._on_terminal:
            done = round(BAR_CHARACTERS * (share or 0))
            sys.stderr.write(f"\r\x1b[K[{'#' * done}{'.' * (BAR_CHARACTERS - done)}] {text}")
            sys.stderr.flush()
        else:
            print(text.lstrip(), file=sys.stderr)

    def clear(self) -> None:
        """Clear the bar, so that a message can be printed."""
        if self._on_terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _share(self) -> float | None:
        """The fraction of the file that was read, or None if its length is unknown."""
        in_all = self._lines.bytes_in_all
        return min(1.0, self._lines.bytes_read / in_all) if in_all else None
