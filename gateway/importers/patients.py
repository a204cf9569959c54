"""Making patients known from a file: CSV or JSON Lines, of any length, as often as one likes.

A line is a patient. One that breaks a rule is named by its number and the rule, never by its content, and the others
are registered all the same. Only one batch is held in memory, and each batch commits by itself, so an import that was
cut short is simply run again.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from gateway.database.database import Database
from gateway.database.migrate import migrate
from gateway.database.problems import PROBLEMS, reason_of
from gateway.importers.progress import Progress
from gateway.importers.reader import CsvFormat, ImportStopped, LineReader, Record, Refusal, Unknown, opened, records_of
from resolvers.commands import DEFAULT_LIMITS
from resolvers.errors import InvalidInput, TemporarilyUnavailable
from resolvers.patients import RegisterPatient, add_patients

BATCH_LINES = 1_000
"""How many lines commit together: enough that commits cost little, few enough to hold in memory."""

MAX_LINE_BYTES = 64 * 1024
"""The longest line that is read; a file without line ends must not fill the memory."""


@dataclass
class Imported:
    """What became of the lines, counted; as a text, the sentence that closes an import."""

    registered: int = 0
    known: int = 0
    refused: int = 0
    unknown: Unknown = field(default_factory=Unknown)

    def __str__(self) -> str:
        patients, lines = plural(self.registered, "patient"), plural(self.refused, "line")
        return f"{patients} registered, {self.known} known already, {lines} refused{self.unknown}"


async def import_patients(database_url: str, file: Path, rejects: Path | None = None) -> Imported:
    """Register the patients of `file` (`-` for standard input), leaving those known already as they are.

    The URL is the owner's: the tables are made if need be. Refused lines go to `rejects`, by default a file beside the
    one that is imported. Raises `ImportStopped`; what was committed before stays.
    """
    imported = Imported()
    # Reading blocks, and may: this process has nothing else to do.
    with opened(file) as stream, Progress.of(lines := LineReader(stream, MAX_LINE_BYTES), file, rejects) as progress:
        outcomes = _outcomes(records_of(lines, file, TABLE, imported.unknown))
        async with _database(database_url) as database:
            try:
                while batch := list(islice(outcomes, BATCH_LINES)):
                    await _import_batch(database, batch, imported, progress)
                    progress.tell(imported)
            except TemporarilyUnavailable as error:
                raise ImportStopped(f"the database was lost. Until then: {imported}. Run the import again.") from error
    return imported


def _members(values: dict[str, str]) -> dict[str, object]:
    patient = {"id": values.pop("id"), "brand_id": values.pop("brand_id")}
    return patient | {"external_ids": {name: value for name, value in values.items() if value}}


TABLE = CsvFormat(("id", "brand_id"), frozenset(RegisterPatient.model_fields), _members, others_are_members=True)


def _outcomes(records: Iterable[Record | Refusal]) -> Iterator[RegisterPatient | Refusal]:
    for record in records:
        try:
            yield record if isinstance(record, Refusal) else RegisterPatient.read(record.members, DEFAULT_LIMITS)
        except InvalidInput as error:
            yield Refusal.of(record.lines, error)


async def _import_batch(
    database: Database, batch: Iterable[RegisterPatient | Refusal], imported: Imported, progress: Progress
) -> None:
    lines_of_brand: dict[str, list[RegisterPatient]] = {}
    for outcome in batch:
        if isinstance(outcome, Refusal):
            progress.refuse(outcome)
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


@asynccontextmanager
async def _database(url: str) -> AsyncIterator[Database]:
    try:
        await migrate(url)
        # As the owner, who need not be a member of the role that serves.
        database = await Database.connect(url, role=None, size=1, acquire_seconds=10, statement_seconds=60)
    except PROBLEMS as error:
        raise ImportStopped(reason_of(error)) from error
    try:
        yield database
    finally:
        await database.close()


def plural(count: int, noun: str) -> str:
    """Say how many."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
