"""Making patients known from a file: CSV or JSON Lines, of any length, as often as one likes.

A line is a patient. One that breaks a rule is named by its number and the rule, never by its content, and the others
are registered all the same. Only one batch is held in memory, and each batch commits by itself, so an import that was
cut short is simply run again.
"""

import csv
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any

import asyncpg

from gateway.database import Database
from gateway.migrate import migrate
from resolvers import json_text
from resolvers.commands import DEFAULT_LIMITS
from resolvers.errors import InvalidInput, MalformedBody, TemporarilyUnavailable
from resolvers.patients import RegisterPatient, add_patients

BATCH_LINES = 1_000
"""How many lines commit together: enough that commits cost little, few enough to hold in memory."""

MAX_LINE_BYTES = 64 * 1024
"""The longest line that is read; a file without line ends must not fill the memory."""

STANDARD_INPUT = Path("-")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
JSON_LINES = {".jsonl", ".ndjson"}


class ImportStopped(Exception):
    """The import could not begin or go on; the message says why."""


@dataclass
class Imported:
    """What became of the lines, counted; as a text, the sentence that closes an import."""

    registered: int = 0
    known: int = 0
    refused: int = 0

    def __str__(self) -> str:
        patients, lines = _plural(self.registered, "patient"), _plural(self.refused, "line")
        return f"{patients} registered, {self.known} known already, {lines} refused"


@dataclass(frozen=True)
class Refusal:
    """A record that breaks a rule: the numbers of its lines, and why."""

    lines: range
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        first, last = self.lines[0], self.lines[-1]
        place = f"line {first}" if first == last else f"lines {first} to {last}"
        return f"{place}: {'; '.join(self.reasons)}"


async def import_patients(database_url: str, file: Path) -> Imported:
    """Register the patients of `file` (`-` for standard input), leaving those known already as they are.

    The URL is the owner's: the tables are made if need be. Refused lines are named on standard error. Raises
    `ImportStopped`; what was committed before stays.
    """
    imported = Imported()
    # Reading blocks, and may: this process has nothing else to do.
    with _opened(file) as stream:
        lines = _Lines(stream)
        outcomes = _outcomes(lines, (_json_records if _is_json(stream, file) else _csv_records)(lines))
        async with _database(database_url) as database:
            try:
                while batch := list(islice(outcomes, BATCH_LINES)):
                    await _import_batch(database, batch, imported)
            except TemporarilyUnavailable as error:
                raise ImportStopped(f"the database was lost. Until then: {imported}. Run the import again.") from error
    return imported


async def _import_batch(database: Database, batch: Iterable[RegisterPatient | Refusal], imported: Imported) -> None:
    lines_of_brand: dict[str, list[RegisterPatient]] = {}
    for outcome in batch:
        if isinstance(outcome, Refusal):
            print(outcome, file=sys.stderr)
            imported.refused += len(outcome.lines)
        else:
            lines_of_brand.setdefault(outcome.brand_id, []).append(outcome)
    for brand_id, patients in lines_of_brand.items():
        # Of an id that comes twice the first line counts, as it would have in two batches.
        external_ids = {patient.id: patient.external_ids for patient in reversed(patients)}
        async with database.transaction(brand_id) as connection:
            new = await add_patients(connection, brand_id, external_ids)
        imported.registered += new
        imported.known += len(patients) - new


# Reading


class _Lines(Iterator[str]):
    """The lines of a stream. Goes on after the error of a line that is too long or not UTF-8."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream = stream
        self.number = 0
        """How many lines were read."""

    def __next__(self) -> str:
        line = self._stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._stream.readline(MAX_LINE_BYTES)
            raise MalformedBody("too_long", f"must have at most {MAX_LINE_BYTES} bytes")
        try:
            return line.removeprefix(BYTE_ORDER_MARK if self.number == 1 else b"").decode()
        except UnicodeDecodeError:
            raise MalformedBody("utf8", "must be UTF-8") from None


def _outcomes(lines: _Lines, records: Iterator[dict[str, Any] | None]) -> Iterator[RegisterPatient | Refusal]:
    """Give what each record says, or why it is refused. `records` are read from `lines`, None where one is blank."""
    while True:
        before = lines.number
        try:
            members = next(records)
            # A quotation mark that is left open swallows lines which may well be patients: say so, never guess.
            if lines.number > before + 1:
                raise MalformedBody("line_break", "a quoted value must end on the line it began on")
            if members is not None:
                yield RegisterPatient.read(members, DEFAULT_LIMITS)
        except StopIteration:
            return
        except InvalidInput as error:
            yield Refusal(range(before + 1, lines.number + 1), tuple(_reasons(error)))


def _reasons(error: InvalidInput) -> Iterator[str]:
    for violation in error.violations:
        # What follows the member's name in the pointer is the file's own.
        member, *inner = violation.pointer.removeprefix("/").split("/")
        place = f"a part of {member}" if inner else member
        yield f"{place} {violation.message} ({violation.rule})".lstrip()


# Neither is a generator: that would end at its first error, and these go on with the next line.


def _json_records(lines: _Lines) -> Iterator[dict[str, Any] | None]:
    return map(_json_record, lines)


def _json_record(line: str) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        members = json_text.read(line)
    except MalformedBody as error:
        raise MalformedBody(error.violations[0].rule, "must be JSON that has one meaning") from None
    if not isinstance(members, dict):
        raise MalformedBody("object", "must be a JSON object")
    return members


def _csv_records(lines: _Lines) -> Iterator[dict[str, Any] | None]:
    """Give the patients of the lines after the first. Raises `ImportStopped` if that does not name the columns."""
    rows = _Rows(lines)
    try:
        columns = next(rows, [])
    except InvalidInput:
        columns = []
    if not {"id", "brand_id"} <= set(columns) or "" in columns or len(set(columns)) != len(columns):
        raise ImportStopped(
            "line 1 must name the columns, each once and with commas between them, `id` and `brand_id` among them"
        )
    return map(partial(_csv_record, columns), rows)


class _Rows(Iterator[list[str]]):
    """The rows of a CSV text, with its errors in this project's words."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._reader = csv.reader(lines, strict=True)

    def __next__(self) -> list[str]:
        try:
            return next(self._reader)
        except csv.Error:
            raise MalformedBody("csv", "must be CSV: quotation marks around whole values, doubled inside") from None


def _csv_record(columns: list[str], row: list[str]) -> dict[str, Any] | None:
    if not row:
        return None
    if len(row) != len(columns):
        raise MalformedBody("columns", f"must have {len(columns)} values, as line 1 has")
    values = dict(zip(columns, row, strict=True))
    patient = {"id": values.pop("id"), "brand_id": values.pop("brand_id")}
    return patient | {"external_ids": {name: value for name, value in values.items() if value}}


def _is_json(stream: BufferedReader, file: Path) -> bool:
    if file.suffix.lower() in {".csv", *JSON_LINES}:
        return file.suffix.lower() in JSON_LINES
    return stream.peek(1).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{")


@contextmanager
def _opened(file: Path) -> Iterator[BufferedReader]:
    if file == STANDARD_INPUT:
        assert isinstance(sys.stdin.buffer, BufferedReader)
        yield sys.stdin.buffer
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise ImportStopped(f"{file} cannot be read ({error.strerror})") from error
    with stream:
        yield stream


@asynccontextmanager
async def _database(url: str) -> AsyncIterator[Database]:
    try:
        await migrate(url)
        # As the owner, who need not be a member of the role that serves.
        database = await Database.connect(url, role=None, size=1, acquire_seconds=10, statement_seconds=60)
    except (OSError, asyncpg.PostgresError) as error:
        # The driver's message may hold the password that was refused.
        raise ImportStopped(f"the database cannot be used ({type(error).__name__})") from error
    try:
        yield database
    finally:
        await database.close()


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
