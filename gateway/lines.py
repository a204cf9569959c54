"""Reading a file to import: CSV or JSON Lines, of any length, one record after the other.

A record that cannot be read, or breaks a rule, becomes a `Refusal`: the numbers of its lines and why, never its
content. Only one record is held in memory.
"""

import csv
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from resolvers import json_text
from resolvers.errors import GatewayError, InvalidInput, MalformedBody

STANDARD_INPUT = Path("-")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
JSON_LINES = {".jsonl", ".ndjson"}


class ImportStopped(Exception):
    """The import could not begin or go on; the message says why."""


@dataclass(frozen=True)
class Refusal:
    """A record that is refused: the numbers of its lines, and why."""

    lines: range
    code: str
    rules: tuple[str, ...]
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, lines: range, error: GatewayError) -> "Refusal":
        """Say of these lines what is wrong with them."""
        if not isinstance(error, InvalidInput):
            return cls(lines, error.code, (), (error.message,))
        rules = tuple(dict.fromkeys(violation.rule for violation in error.violations))
        return cls(lines, error.code, rules, tuple(_reasons(error)))

    def __str__(self) -> str:
        first, last = self.lines[0], self.lines[-1]
        place = f"line {first}" if first == last else f"lines {first} to {last}"
        return f"{place}: {'; '.join(self.reasons)}"

    def told(self) -> dict[str, Any]:
        """Give what is written of it for a program."""
        last = {} if len(self.lines) == 1 else {"last_line": self.lines[-1]}
        reason = "; ".join(self.reasons)
        return {"line": self.lines[0], **last, "code": self.code, "rules": list(self.rules), "reason": reason}


def _reasons(error: InvalidInput) -> Iterator[str]:
    for violation in error.violations:
        # What follows the member's name in the pointer is the file's own.
        member, *inner = violation.pointer.removeprefix("/").split("/")
        place = f"a part of {member}" if inner else member
        yield f"{place} {violation.message} ({violation.rule})".lstrip()


class Record(NamedTuple):
    """What a record says, and where it stands."""

    lines: range
    members: dict[str, Any]


class Table(NamedTuple):
    """How the rows of a CSV file are understood."""

    needed: Collection[str]
    """The columns without which nothing can be imported."""
    members: Callable[[dict[str, str]], dict[str, Any]]
    """Gives the members of a row from its values by column. Raises `InvalidInput`."""
    breaks: bool = False
    """Whether a value may hold line breaks. Where none ever does, one is a quotation mark that somebody left open."""


class Lines(Iterator[str]):
    """The lines of a stream. Goes on after the error of a line that is too long or not UTF-8."""

    def __init__(self, stream: BufferedReader, max_bytes: int) -> None:
        self.stream = stream
        self.number = 0
        """How many lines were read."""
        self.bytes_read = 0
        status = os.fstat(stream.fileno())
        self.bytes_in_all = status.st_size if stat.S_ISREG(status.st_mode) else None
        """How long the file is, or None where that cannot be known."""
        self._max_bytes = max_bytes

    def __next__(self) -> str:
        line = self._read(self._max_bytes + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > self._max_bytes:
            while line and not line.endswith(b"\n"):
                line = self._read(self._max_bytes)
            raise MalformedBody("too_long", f"must have at most {self._max_bytes} bytes")
        try:
            return line.removeprefix(BYTE_ORDER_MARK if self.number == 1 else b"").decode()
        except UnicodeDecodeError:
            raise MalformedBody("utf8", "must be UTF-8") from None

    def _read(self, most: int) -> bytes:
        line = self.stream.readline(most)
        self.bytes_read += len(line)
        return line


def records_of(lines: Lines, file: Path, table: Table) -> Iterator[Record | Refusal]:
    """Give what each record says, or why it cannot be read. Raises `ImportStopped` where no record can."""
    members = _json_members(lines) if _is_json(lines.stream, file) else _csv_members(lines, table)
    while True:
        before = lines.number
        try:
            each = next(members)
            # A quotation mark that is left open swallows lines which may well be records: say so, never guess.
            if lines.number > before + 1 and not table.breaks:
                raise MalformedBody("line_break", "a quoted value must end on the line it began on")
            if each is not None:
                yield Record(range(before + 1, lines.number + 1), each)
        except StopIteration:
            return
        except InvalidInput as error:
            yield Refusal.of(range(before + 1, lines.number + 1), error)


# Neither is a generator: that would end at its first error, and these go on with the next line. None is a blank line.


def _json_members(lines: Lines) -> Iterator[dict[str, Any] | None]:
    return map(_of_json, lines)


def _of_json(line: str) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        members = json_text.read(line)
    except MalformedBody as error:
        raise MalformedBody(error.violations[0].rule, "must be JSON that has one meaning") from None
    if not isinstance(members, dict):
        raise MalformedBody("object", "must be a JSON object")
    return members


def _csv_members(lines: Lines, table: Table) -> Iterator[dict[str, Any] | None]:
    rows = _Rows(lines)
    try:
        columns = next(rows, [])
    except InvalidInput:
        columns = []
    if not set(table.needed) <= set(columns) or "" in columns or len(set(columns)) != len(columns):
        *others, last = (f"`{name}`" for name in table.needed)
        raise ImportStopped(
            f"line 1 must name the columns, each once and with commas between them, {', '.join(others)} and {last} "
            "among them"
        )
    return map(partial(_of_row, columns, table), rows)


class _Rows(Iterator[list[str]]):
    """The rows of a CSV text, with its errors in this project's words."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._reader = csv.reader(lines, strict=True)

    def __next__(self) -> list[str]:
        try:
            return next(self._reader)
        except csv.Error:
            raise MalformedBody("csv", "must be CSV: quotation marks around whole values, doubled inside") from None


def _of_row(columns: list[str], table: Table, row: list[str]) -> dict[str, Any] | None:
    if not row:
        return None
    if len(row) != len(columns):
        raise MalformedBody("columns", f"must have {len(columns)} values, as line 1 has")
    return table.members(dict(zip(columns, row, strict=True)))


def _is_json(stream: BufferedReader, file: Path) -> bool:
    if file.suffix.lower() in {".csv", *JSON_LINES}:
        return file.suffix.lower() in JSON_LINES
    return stream.peek(1).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{")


@contextmanager
def opened(file: Path) -> Iterator[BufferedReader]:
    """Open the file, or standard input for `-`. Raises `ImportStopped`."""
    if file == STANDARD_INPUT:
        # Neither `sys.stdin` nor ever closed: a thread that still waits for a line would hold up the end.
        yield open(0, "rb", closefd=False)  # noqa: SIM115
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise ImportStopped(f"{file} cannot be read ({error.strerror})") from error
    with stream:
        yield stream
