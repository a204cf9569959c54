"""Register patients from a CSV or JSON Lines file of any length. The import may be repeated.

A line is a patient. A refused line is reported by its number and the rule, never by its content, and the other lines
are still registered. Only one batch is in memory, and each batch commits by itself. An interrupted import is simply run
again.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from gateway.database.database import Database
from gateway.database.migrate import migrate
from gateway.database.problems import PROBLEMS, reason_of
from gateway.importers.progress import Progress
from gateway.importers.reader import CsvFormat, ImportStopped, LineReader, Record, Refusal, Unknown, opened, records_of
from resolvers.commands import DEFAULT_LIMITS
from resolvers.errors import InvalidInput, TemporarilyUnavailable
from resolvers.patients import IdErased, RegisterPatient, add_patients

BATCH_LINES = 1_000
"""Lines in one commit; enough that commits cost little, few enough to hold in memory."""

MAX_LINE_BYTES = 64 * 1024
"""Bytes; the longest line that is read, so that a file without line ends does not fill the memory."""


@dataclass
class Imported:
    """Counts of the lines by outcome; as text, the final sentence of an import."""

    registered: int = 0
    known: int = 0
    refused: int = 0
    unknown: Unknown = field(default_factory=Unknown)

    def __str__(self) -> str:
        patients, lines = plural(self.registered, "patient"), plural(self.refused, "line")
        return f"{patients} registered, {self.known} known already, {lines} refused{self.unknown}"


async def import_patients(database_url: str, file: Path, rejects: Path | None = None) -> Imported:
    """Register the patients of `file`, leaving known patients unchanged.

    Committed batches stay if the import stops. Raises `ImportStopped`.

    Args:
        database_url: URL of the owner: the tables are created if they are missing.
        file: The file; `-` for standard input.
        rejects: File for refused lines. None: a file beside the imported one.
    """
    imported = Imported()
    # Blocking reads are acceptable, because this process has no other work.
    with opened(file) as stream, Progress.of(lines := LineReader(stream, MAX_LINE_BYTES), file, rejects) as progress:
        outcomes = _outcomes(records_of(lines, file, TABLE, imported.unknown))
        async with _database(database_url) as database:
            try:
                while batch := list(islice(outcomes, BATCH_LINES)):
                    await _import_batch(database, batch, imported, progress)
                    progress.update(imported)
            except TemporarilyUnavailable as error:
                raise ImportStopped(
                    f"the database connection was lost. Until then: {imported}. Run the import again."
                ) from error
    return imported


def _members(values: dict[str, str]) -> dict[str, object]:
    patient = {"id": values.pop("id"), "brand_id": values.pop("brand_id")}
    return patient | {"external_ids": {name: value for name, value in values.items() if value}}


TABLE = CsvFormat(("id", "brand_id"), frozenset(RegisterPatient.model_fields), _members, others_are_members=True)


class _Line(NamedTuple):
    """A valid patient, and the numbers of its lines."""

    lines: range
    patient: RegisterPatient


def _outcomes(records: Iterable[Record | Refusal]) -> Iterator[_Line | Refusal]:
    for record in records:
        if isinstance(record, Refusal):
            yield record
            continue
        try:
            yield _Line(record.lines, RegisterPatient.read(record.members, DEFAULT_LIMITS))
        except InvalidInput as error:
            yield Refusal.of(record.lines, error)


async def _import_batch(
    database: Database, batch: Iterable[_Line | Refusal], imported: Imported, progress: Progress
) -> None:
    def refuse(refusal: Refusal) -> None:
        progress.refuse(refusal)
        imported.refused += len(refusal.lines)

    lines_of_brand: dict[str, list[_Line]] = {}
    for outcome in batch:
        if isinstance(outcome, Refusal):
            refuse(outcome)
        else:
            lines_of_brand.setdefault(outcome.patient.brand_id, []).append(outcome)
    for brand_id, lines in lines_of_brand.items():
        try:
            new = await _add(database, brand_id, lines)
        except IdErased as erased:
            for line in lines:
                if line.patient.id in erased.ids:
                    refuse(Refusal.of(line.lines, erased.refusal))
            lines = [line for line in lines if line.patient.id not in erased.ids]  # noqa: PLW2901 - the rest of them
            new = await _add(database, brand_id, lines)
        imported.registered += new
        imported.known += len(lines) - new


async def _add(database: Database, brand_id: str, lines: Sequence[_Line]) -> int:
    """Insert the patients of lines in one transaction, and return their number. Raises `IdErased`."""
    # The first line of a repeated id is used, as it would be if the two were in different batches.
    external_ids = {line.patient.id: line.patient.external_ids for line in reversed(lines)}
    async with database.transaction(brand_id) as connection:
        return await add_patients(connection, brand_id, external_ids)


@asynccontextmanager
async def _database(url: str) -> AsyncIterator[Database]:
    try:
        await migrate(url)
        # Connect as the owner, which need not be a member of the role that serves.
        database = await Database.connect(url, role=None, size=1, acquire_seconds=10, statement_seconds=60)
    except PROBLEMS as error:
        raise ImportStopped(reason_of(error)) from error
    try:
        yield database
    finally:
        await database.close()


def plural(count: int, noun: str) -> str:
    """Return the count and the noun in its grammatical number."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
