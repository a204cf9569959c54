"""Read a CSV or JSON Lines file of any length, one record after the other.

A record that cannot be parsed or violates a rule becomes a `Refusal`: the numbers of its lines and the reason, never
its content. Only one record is in memory.
"""

import csv
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, NamedTuple

from resolvers import json_text
from resolvers.commands import NAMES, misspelt
from resolvers.errors import GatewayError, InvalidInput, MalformedBody
from resolvers.rules import RuleId
from resolvers.spelling import MAX_NAMES, Ignored, near_miss, near_misses

STANDARD_INPUT = Path("-")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
JSON_LINES = {".jsonl", ".ndjson"}


class ImportStopped(Exception):
    """The import cannot begin or continue; the message says why."""


@dataclass(frozen=True)
class Refusal:
    """A refused record: the numbers of its lines and the reasons."""

    lines: range
    code: str
    rules: tuple[str, ...]
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, lines: range, error: GatewayError) -> "Refusal":
        """Return the refusal of these lines because of `error`."""
        if not isinstance(error, InvalidInput):
            return cls(lines, error.code, (), (error.message,))
        rules = tuple(dict.fromkeys(violation.rule for violation in error.violations))
        return cls(lines, error.code, rules, tuple(_reasons(error)))

    def __str__(self) -> str:
        first, last = self.lines[0], self.lines[-1]
        place = f"line {first}" if first == last else f"lines {first} to {last}"
        return f"{place}: {'; '.join(self.reasons)}"

    def as_members(self) -> dict[str, Any]:
        """Return the refusal in its machine-readable form."""
        last = {} if len(self.lines) == 1 else {"last_line": self.lines[-1]}
        reason = "; ".join(self.reasons)
        return {"line": self.lines[0], **last, "code": self.code, "rules": list(self.rules), "reason": reason}


def _reasons(error: InvalidInput) -> Iterator[str]:
    for violation in error.violations:
        # The rest of the pointer, after the member's name, is content of the file.
        member, *inner = violation.pointer.removeprefix("/").split("/")
        place = f"a part of {member}" if inner else member
        yield f"{place} {violation.message} ({violation.rule})".lstrip()


class Record(NamedTuple):
    """The members of a record and its line numbers."""

    lines: range
    members: dict[str, Any]


class CsvFormat(NamedTuple):
    """How the records of a file are interpreted."""

    needed: Collection[str]
    """The required columns."""
    known: Collection[str]
    """The members of a JSON line."""
    members: Callable[[dict[str, str]], dict[str, Any]]
    """Returns the members of a row from its values by column. Raises `InvalidInput`."""
    others_are_members: bool = False
    """Whether every further column of a CSV file is used, so that none is ignored."""
    breaks: bool = False
    """Whether a value may contain line breaks. If not, a line break in a value means an unclosed quotation mark."""


class Unknown:
    """Count the ignored columns or members; as text, the end of an import's final sentence."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._others = 0

    def note(self, names: Collection[str]) -> None:
        """Count unknown names."""
        ignored = Ignored.of(names, NAMES)
        self._names = tuple(dict.fromkeys(self._names + ignored.names))[:MAX_NAMES]
        self._others += ignored.others

    def __str__(self) -> str:
        others = [f"{self._others} other{'' if self._others == 1 else 's'}"] if self._others else []
        names = [*self._names, *others]
        return f"; ignored: {', '.join(names)}" if names else ""


class LineReader:
    """The lines of a stream, counted."""

    def __init__(self, stream: BufferedReader, max_bytes: int) -> None:
        self.stream = stream
        self.number = 0
        """Number of lines begun."""
        self.bytes_read = 0
        status = os.fstat(stream.fileno())
        self.bytes_in_all = status.st_size if stat.S_ISREG(status.st_mode) else None
        """Size of the file in bytes, or None if it is unknown."""
        self.max_bytes = max_bytes
        """Maximum size of a record in bytes."""
        self._is_within_line = False

    def read(self) -> bytes:
        """Return the next line, or a piece of a line longer than `max_bytes`; empty at the end of the stream."""
        piece = self.stream.readline(self.max_bytes + 1)
        self.bytes_read += len(piece)
        if piece and not self._is_within_line:
            self.number += 1
        if self.bytes_read == len(piece):
            piece = piece.removeprefix(BYTE_ORDER_MARK)
        self._is_within_line = not piece.endswith(b"\n")
        return piece

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the remaining lines, piece by piece."""
        return iter(self.read, b"")


def records_of(lines: LineReader, file: Path, table: CsvFormat, unknown: Unknown) -> Iterator[Record | Refusal]:
    """Yield each record, or the reason why it cannot be parsed. Raises `ImportStopped` if no record can be read.

    Args:
        lines: The lines of the file.
        file: The file; its suffix, or else its first character, decides between JSON Lines and CSV.
        table: How the records are interpreted.
        unknown: Counts the ignored columns or members.
    """
    members = _JsonLines(lines, table, unknown) if _is_json(lines.stream, file) else _CsvRows(lines, table, unknown)
    while True:
        before = lines.number
        try:
            each = next(members)
            # An unclosed quotation mark may swallow lines that are records. Refuse them instead of guessing.
            if lines.number > before + 1 and not table.breaks:
                raise MalformedBody("line_break", "a quoted value must end on the line on which it begins")
            if each is not None:
                yield Record(range(before + 1, lines.number + 1), each)
        except StopIteration:
            return
        except InvalidInput as error:
            yield Refusal.of(range(before + 1, lines.number + 1), error)


def _text(record: bytes) -> str:
    try:
        return record.decode()
    except UnicodeDecodeError:
        raise MalformedBody("utf8", "must be UTF-8") from None


def _too_long(lines: LineReader) -> MalformedBody:
    return MalformedBody("too_long", f"must have at most {lines.max_bytes} bytes")


# Neither class is a generator, because a generator ends at its first error. These continue with the next record. None
# stands for a blank line.


class _JsonLines(Iterator[dict[str, Any] | None]):
    """The members of each line. A JSON string never contains a raw line break, so a record is exactly one line."""

    def __init__(self, lines: LineReader, table: CsvFormat, unknown: Unknown) -> None:
        self._lines = lines
        self._known = table.known
        self._unknown = unknown

    def __next__(self) -> dict[str, Any] | None:
        line = piece = self._lines.read()
        if not line:
            raise StopIteration
        if len(line) > self._lines.max_bytes:
            while piece and not piece.endswith(b"\n"):
                piece = self._lines.read()
            raise _too_long(self._lines)
        text = _text(line)
        return self._members(text) if text.strip() else None

    def _members(self, line: str) -> dict[str, Any]:
        try:
            members = json_text.read(line)
        except MalformedBody as error:
            column = "" if error.place is None else f" (column {error.place[1]})"
            raise MalformedBody(error.violations[0].rule, f"must be unambiguous JSON (RFC 7493){column}") from None
        if not isinstance(members, dict):
            raise MalformedBody("object", "must be a JSON object")
        if unknown := [name for name in members if name not in self._known]:
            if nearly := near_misses(unknown, self._known):
                raise InvalidInput([misspelt(right) for right in nearly])
            self._unknown.note(unknown)
        return members


class _CsvRows(Iterator[dict[str, Any] | None]):
    """The members of each row.

    A misplaced quotation mark, or a wrong number of values in a row with quotation marks, may be free text that was
    quoted wrongly. Its next line would be parsed as a row, so nothing after it is read. After any other fault the next
    row is read, because the quotation marks show where it begins.
    """

    def __init__(self, lines: LineReader, table: CsvFormat, unknown: Unknown) -> None:
        self._lines = lines
        self._table = table
        self._columns = self._header()
        _require_columns(self._columns, table)
        if not table.others_are_members:
            unknown.note([name for name in self._columns if name not in table.known])
        # Only the record's size limits a value here; the rules of each member limit its length.
        csv.field_size_limit(max(csv.field_size_limit(), lines.max_bytes))

    def _header(self) -> list[str]:
        try:
            return _values(self._record())
        except (InvalidInput, StopIteration):
            return []

    def __next__(self) -> dict[str, Any] | None:
        record = self._record()
        values = _values(record)
        if not values:
            return None
        if len(values) != len(self._columns):
            message = f"must have {len(self._columns)} values, like line 1"
            raise self._skip_rest("columns", message) if b'"' in record else MalformedBody("columns", message)
        return self._table.members(dict(zip(self._columns, values, strict=True)))

    def _record(self) -> bytes:
        """Return the lines of the next record. Raises `StopIteration` at the end."""
        quoting = _Quoting()
        pieces: list[bytes] = []
        size = 0
        for piece in self._lines:
            size += len(piece)
            if size <= self._lines.max_bytes:
                pieces.append(piece)
            try:
                if quoting.read(piece):
                    break
            except ValueError:
                raise self._skip_rest("csv", CSV_RULE) from None
        if not size:
            raise StopIteration
        if quoting.is_open:
            raise MalformedBody("csv", "must end its last quoted value")
        if size > self._lines.max_bytes:
            raise _too_long(self._lines)
        return b"".join(pieces)

    def _skip_rest(self, rule: RuleId, message: str) -> MalformedBody:
        """Skip the rest of the file, and return the error of a record whose end is unknown."""
        for _ in self._lines:
            pass  # counted: these lines are refused with the record
        return MalformedBody(rule, f"{message}; its end is unknown, so no further row is read")


def _values(record: bytes) -> list[str]:
    text = _text(record)
    try:
        # The quotation marks are valid here. A lone carriage return may not be.
        (values,) = csv.reader([text], strict=True)
    except csv.Error:
        raise MalformedBody("csv", CSV_RULE) from None
    return values


CSV_RULE = "must be CSV: quotation marks enclose whole values, and are doubled inside them"


def _require_columns(columns: Sequence[str], table: CsvFormat) -> None:
    """Return if line 1 names the columns. Raises `ImportStopped`, also for a near miss of a known column."""
    if not set(table.needed) <= set(columns) or "" in columns or len(set(columns)) != len(columns):
        *others, last = (f"`{name}`" for name in table.needed)
        raise ImportStopped(
            f"line 1 must name the columns, each once, separated by commas, including {', '.join(others)} and {last}"
        )
    known = table.needed if table.others_are_members else table.known
    for place, name in enumerate(columns, 1):
        if name not in known and (right := near_miss(name, known)):
            raise ImportStopped(
                f"line 1: column {place} is a misspelling of `{right}` and would be ignored; correct it, or give it a "
                "different name"
            )


State = Literal["begin", "bare", "within", "after", "return", "end"]
"""State of the parser. `begin`: before a value. `bare`: in an unquoted value. `within`: in a quoted value. `after`:
after a quotation mark that closes the value or begins a doubled one. `return`: after a carriage return behind it.
`end`: at the end of the record."""

_NEXT: Mapping[tuple[State, bytes], State] = {
    ("begin", b'"'): "within",
    ("after", b'"'): "within",
    ("after", b","): "begin",
    ("after", b"\r"): "return",
    ("after", b"\n"): "end",
    ("return", b"\n"): "end",
}
_MARK_OR_COMMA = re.compile(rb'[",]')


class _Quoting:
    """State machine for the quotation marks of a record; it finds the record's end. Source: RFC 4180, section 2.

    Only quotation marks, commas and line ends matter. So bytes that are not UTF-8 and pieces of any length are handled
    alike.
    """

    def __init__(self) -> None:
        self._state: State = "begin"

    @property
    def is_open(self) -> bool:
        """Whether a quoted value has begun and not ended."""
        return self._state == "within"

    def read(self, piece: bytes) -> bool:
        """Return whether the record ends with this piece. Raises `ValueError` for a misplaced quotation mark."""
        place = 0
        while place < len(piece):
            if self._state == "within":
                mark = piece.find(b'"', place)
                if mark < 0:
                    break
                self._state, place = "after", mark + 1
            elif self._state == "bare":
                stop = _MARK_OR_COMMA.search(piece, place)
                if stop is None:
                    break
                if stop[0] == b'"':
                    raise ValueError
                self._state, place = "begin", stop.end()
            elif self._state == "begin" and not piece.startswith(b'"', place):
                self._state = "bare"
            else:
                following = _NEXT.get((self._state, piece[place : place + 1]))
                if following is None:
                    raise ValueError
                self._state, place = following, place + 1
        return piece.endswith(b"\n") and not self.is_open


def _is_json(stream: BufferedReader, file: Path) -> bool:
    if file.suffix.lower() in {".csv", *JSON_LINES}:
        return file.suffix.lower() in JSON_LINES
    return stream.peek(1).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{")


@contextmanager
def opened(file: Path) -> Iterator[BufferedReader]:
    """Open the file, or standard input for `-`. Raises `ImportStopped`."""
    if file == STANDARD_INPUT:
        # Neither `sys.stdin` nor ever closed: a thread that is still reading a line would block the exit.
        yield open(0, "rb", closefd=False)  # noqa: SIM115
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise ImportStopped(f"{file} cannot be read ({error.strerror})") from error
    with stream:
        yield stream
