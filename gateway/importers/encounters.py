"""Record encounters from a CSV or JSON Lines file of any length, each line once however often the import runs.

A line has the form of a request, and passes through the same function. So it is validated, isolated by brand, audited
and published as an event like any recording. Each line has an idempotency key, so an interrupted import is simply run
again. Many lines are in flight at once and share statements and commits. Memory use does not depend on the file's size.
"""

import asyncio
import hashlib
import logging
import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Never, TypeVar

from pydantic import BeforeValidator

from gateway.app import services
from gateway.audit.buffer import AuditBuffer
from gateway.database.database import APP_ROLE, Database, Timeouts
from gateway.database.inspection import inspect_database, refuse_dangers
from gateway.database.migrate import migrate
from gateway.database.problems import translate_driver_errors
from gateway.events.feed import Feed
from gateway.events.notifier import Notifier
from gateway.events.subscriber_reads import SubscriberReads
from gateway.exporters.encounters import EMPTY_TEXTS, TEXTS
from gateway.importers.patients import plural
from gateway.importers.progress import Progress
from gateway.importers.reader import (
    STANDARD_INPUT,
    CsvFormat,
    ImportStopped,
    LineReader,
    Record,
    Refusal,
    Unknown,
    opened,
    records_of,
)
from gateway.observability.logs import describe
from gateway.settings import PREFIX, Settings
from resolvers import json_text
from resolvers.access import Caller, Permission, scopes_from
from resolvers.audit_notes import ENCOUNTERS_READ
from resolvers.commands import InputLimits, RecordEncounter, RestoredEncounter, Text, refuse_null
from resolvers.context import Context
from resolvers.encounters.record import Recorder, Recording, record_encounter, require_recorder
from resolvers.encounters.restore import restore_encounter
from resolvers.errors import (
    GatewayError,
    InvalidInput,
    InvalidToken,
    MalformedBody,
    ServerError,
    TemporarilyUnavailable,
    Violation,
)
from resolvers.idempotency import kept_keys
from resolvers.ids import new_id
from resolvers.rate_limits import Unlimited
from resolvers.services import AuditRecord, AuditSink

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 256
"""Lines in flight at once; enough for two full statements, and as many again that are ready when one is done."""

READ_AHEAD = 64
"""Lines that are read before they are queued."""

PAUSE_SECONDS = 0.5
"""Seconds between two attempts at a line while the database is unavailable."""

RESTORED_BYTES = 4 * 1024 * 1024
"""Bytes; the least limit of an exported record. Amended texts together may be longer than a request."""

ACQUIRE_SECONDS = 30.0
"""Seconds that a line waits for a connection; longer than for requests, because no client waits for the answer."""


@dataclass
class ImportSummary:
    """Counts of the lines by outcome; as text, the final sentence of an import."""

    recorded: int = 0
    already: int = 0
    """Lines recorded earlier under the same key, by a previous run or an attempt whose answer was lost."""
    refused: int = 0
    unknown: Unknown = field(default_factory=Unknown)

    def __str__(self) -> str:
        encounters, lines = plural(self.recorded, "encounter"), plural(self.refused, "line")
        return f"{encounters} recorded, {self.already} recorded already, {lines} refused{self.unknown}"


async def import_encounters(
    settings: Settings,
    file: Path,
    *,
    rejects: Path | None = None,
    name: str | None = None,
    client: str = "import",
    keep_keys_days: int = 90,
    retry_seconds: float = 300.0,
    restore: bool = False,
) -> ImportSummary:
    """Record the encounters of `file`, each line once.

    If the import stops, recorded encounters stay, and a second run continues from there. Raises `SettingsError` if the
    import cannot begin, and `ImportStopped`.

    Args:
        settings: The gateway's settings, which name the database and the limits.
        file: The file; `-` for standard input.
        rejects: File for refused lines. None: a file beside the imported one.
        name: Name of the import; distinguishes its lines without a key from those of others. None: the file's own name.
        client: Client id that owns the idempotency keys.
        keep_keys_days: Days that the keys are stored; a run after that would record the lines again.
        retry_seconds: Seconds to retry while the database is unavailable.
        restore: Whether the lines are those of an export, whose ids, times of recording and versions are kept.
    """
    settings = settings.model_copy(
        update={"idempotency_hours": keep_keys_days * 24, "database_acquire_seconds": ACQUIRE_SECONDS}
    )
    with opened(file) as stream:
        lines = LineReader(stream, max(settings.max_body_bytes, RESTORED_BYTES) if restore else settings.max_body_bytes)
        async with _context(settings, client) as context:
            with Progress.of(lines, file, rejects) as progress:
                limits = context.services.input_limits
                named = name or ("-" if file == STANDARD_INPUT else file.name)
                done = ImportSummary()
                records = records_of(lines, file, RESTORED_TABLE if restore else TABLE, done.unknown)
                encounters = _restored(records, limits) if restore else _encounters(records, limits, named)
                encounter_import = _EncounterImport(require_recorder(context), progress, retry_seconds, done, restore)
                return await encounter_import.record_all(encounters)


# Parsing


class EncounterLine(RecordEncounter):
    """A line: the body of a REST request, the patient's id, and optionally a key."""

    patient_id: Text
    key: Annotated[Text | None, BeforeValidator(refuse_null)] = None


class RestoredLine(RestoredEncounter):
    """A line of an export: the encounter and the patient's id."""

    patient_id: Text


class _Line(NamedTuple):
    """A valid line."""

    lines: range
    patient_id: str
    members: Mapping[str, Any]
    key: str
    derived: bool
    """Whether the key was derived from the line's content. If so, a stored key proves that the same content was
    recorded."""


def _members(values: dict[str, str]) -> dict[str, Any]:
    """Return the members of a row: empty values are omitted, and objects are parsed as JSON."""
    members: dict[str, Any] = {name: value for name, value in values.items() if value}
    for name in ("metadata", "external_ids"):
        if name in members:
            try:
                members[name] = json_text.read(members[name])
            except MalformedBody as error:
                place = " (line {}, column {} of it)".format(*error.place) if error.place else ""
                rule, message = error.violations[0].rule, f"must be unambiguous JSON (RFC 7493){place}"
                raise InvalidInput([Violation(f"/{name}", rule, message)]) from None
    return members


# Free text may contain line breaks.
TABLE = CsvFormat(
    ("patient_id", "brand_id", "encounter_type"), frozenset(EncounterLine.model_fields), _members, breaks=True
)


def _restored_members(values: dict[str, str]) -> dict[str, Any]:
    members = _members(values)
    if members.get("version", "").isdecimal():
        members["version"] = json_text.number(members["version"])
    empty = members.pop(EMPTY_TEXTS, "").split()
    return members | {name: "" for name in empty if name in TEXTS}


RESTORED_TABLE = CsvFormat(
    tuple(name for name, field in RestoredLine.model_fields.items() if field.is_required()),
    frozenset({*RestoredLine.model_fields, EMPTY_TEXTS}),
    _restored_members,
    breaks=True,
)


AnyLine = TypeVar("AnyLine", EncounterLine, RestoredLine)


def _lines(
    records: Iterator[Record | Refusal],
    line_type: type[AnyLine],
    limits: InputLimits,
    key_of: Callable[[AnyLine], tuple[str, bool]],
) -> Generator[_Line | Refusal, None, None]:
    """Yield each valid line or its refusal. `key_of` returns the key of a line, and whether it is derived."""
    for record in records:
        if isinstance(record, Refusal):
            yield record
            continue
        try:
            line = line_type.read(record.members, limits)
        except InvalidInput as error:
            yield Refusal.of(record.lines, error)
            continue
        key, derived = key_of(line)
        yield _Line(record.lines, line.patient_id, record.members, key, derived=derived)


def _restored(records: Iterator[Record | Refusal], limits: InputLimits) -> Generator[_Line | Refusal, None, None]:
    return _lines(records, RestoredLine, limits, lambda line: (str(line.id), False))


def _encounters(
    records: Iterator[Record | Refusal], limits: InputLimits, name: str
) -> Generator[_Line | Refusal, None, None]:
    with closing(_DuplicateCounter()) as alike:

        def key_of(line: EncounterLine) -> tuple[str, bool]:
            if line.key is not None:
                return line.key, False
            meaning = json_text.write(line.model_dump(mode="json", exclude_none=True))
            return derived_key(name, meaning, alike.count(meaning)), True

        yield from _lines(records, EncounterLine, limits, key_of)


def derived_key(name: str, meaning: str, place: int) -> str:
    """Return the key of a line without one: the same in every run, and different for each duplicate line.

    Like the hash of an idempotency claim, it covers the meaning and not the notation. So a line may be reformatted or
    moved.

    Args:
        name: Name of the import.
        meaning: Canonical JSON of the line.
        place: The 1-based occurrence number of this content.
    """
    content = f"{name}\n{place}\n{meaning}".encode("utf-8", "surrogatepass")
    return f"import-{hashlib.sha256(content).hexdigest()}"


class _DuplicateCounter:
    """Count lines with the same content, on disk, because in memory the counts would grow with the file.

    Use it from one thread at a time.
    """

    def __init__(self) -> None:
        # Without a name, SQLite uses a temporary file that has no name and is deleted with the process. Its content is
        # hashed with a secret of this process, so that a reader of the file cannot test guesses. The thread that drops
        # the last reference to the lines closes it, which may be the thread that waited for them.
        self._counts = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._counts.execute("PRAGMA journal_mode = OFF")
        self._counts.execute("CREATE TABLE counts (meaning BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        self._secret = os.urandom(32)

    def count(self, meaning: str) -> int:
        """Return the 1-based occurrence number of this content."""
        digest = hashlib.blake2b(meaning.encode(), digest_size=16, key=self._secret).digest()
        (number,) = self._counts.execute(
            "INSERT INTO counts VALUES (?, 1) ON CONFLICT DO UPDATE SET number = number + 1 RETURNING number", (digest,)
        ).fetchone()
        assert isinstance(number, int)
        return number

    def close(self) -> None:
        """Delete the counts."""
        self._counts.close()


# Recording


class _EncounterImport:
    """One import: many workers take lines from one queue, which a thread fills."""

    def __init__(
        self,
        context: Recorder,
        progress: Progress,
        retry_seconds: float,
        done: ImportSummary,
        restore: bool,
    ) -> None:
        self._restore = restore
        self._context = context
        self._progress = progress
        self._retry_seconds = retry_seconds
        self._unavailable_since: float | None = None
        """Time when the database became unavailable, or None if a line has been recorded since."""
        self._queue: asyncio.Queue[_Line | Refusal | Exception | None] = asyncio.Queue(READ_AHEAD)
        self._done = done

    async def record_all(self, encounters: Iterator[_Line | Refusal]) -> ImportSummary:
        """Record the lines and return the summary."""
        # A thread, so that a slow file does not block the lines in flight. It is a daemon, so that shutdown does not
        # wait for it.
        reading = threading.Thread(target=self._read, args=(encounters, asyncio.get_running_loop()), daemon=True)
        reading.start()
        stopped: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(MAX_IN_FLIGHT):
                    workers.create_task(self._work())
        except* ImportStopped as errors:
            stopped = next(_leaves(errors))
        if stopped is not None:
            # Raised inside the handler, Python before 3.11.4 would wrap it in another group.
            raise stopped
        return self._done

    def _read(self, encounters: Iterator[_Line | Refusal], loop: asyncio.AbstractEventLoop) -> None:
        """Fill the queue as fast as it is emptied. Runs in its own thread."""

        def hand_on(each: Sequence[_Line | Refusal | Exception | None]) -> None:
            asyncio.run_coroutine_threadsafe(self._put(each), loop).result()

        # The import has ended, so nothing waits for lines.
        with suppress(CancelledError, RuntimeError):
            try:
                while together := list(islice(encounters, READ_AHEAD)):
                    hand_on(together)
                hand_on([None])
            except Exception as error:  # noqa: BLE001 - the consumer of the lines gets any error
                hand_on([error])

    async def _put(self, together: Sequence[_Line | Refusal | Exception | None]) -> None:
        """Queue the lines that are not recorded yet, so that a second run quickly skips those of the first."""
        done = await self._recorded_already([each for each in together if isinstance(each, _Line) and each.derived])
        self._done.already += len(done)
        for each in together:
            if not (isinstance(each, _Line) and each.key in done):
                await self._queue.put(each)
        self._progress.update(self._done)

    async def _recorded_already(self, lines: Sequence[_Line]) -> set[str]:
        """Return the keys under which lines are recorded already; none if the database is unavailable."""
        keys_of_brand = defaultdict[str, list[str]](list)
        for line in lines:
            keys_of_brand[line.members["brand_id"]].append(line.key)
        done: set[str] = set()
        with suppress(TemporarilyUnavailable):
            for brand_id, keys in keys_of_brand.items():
                async with self._context.database.connection(brand_id) as connection:
                    done |= await kept_keys(connection, brand_id, self._context.caller.client_id, keys)
        return done

    async def _work(self) -> None:
        while (each := await self._queue.get()) is not None:
            if isinstance(each, Exception):
                raise each
            refusal = each if isinstance(each, Refusal) else await self._record(each)
            if refusal:
                self._progress.refuse(refusal)
                self._done.refused += len(refusal.lines)
            self._progress.update(self._done)
        # Pass the end marker on: the other workers wait for it too.
        await self._queue.put(None)

    async def _record(self, line: _Line) -> Refusal | None:
        """Record a line, retrying as often as needed. Return the reason if it is refused.

        Raises `ImportStopped` if the database stays unavailable.
        """
        while True:
            try:
                recording = await self._record_line(line)
            except TemporarilyUnavailable:
                # The encounter may have been recorded. The key makes the retry safe.
                await self._wait_for_the_database()
                continue
            except GatewayError as error:
                self._unavailable_since = None
                self._context.note_refusal(error)
                return Refusal.of(line.lines, error)
            except Exception as error:  # noqa: BLE001 - one line must not block those that follow
                logger.error(
                    "import", extra={"request_id": self._context.request_id, "line": line.lines[0], **describe(error)}
                )
                return Refusal.of(line.lines, ServerError())
            self._unavailable_since = None
            self._done.recorded += not recording.replayed
            self._done.already += recording.replayed
            return None

    async def _record_line(self, line: _Line) -> Recording:
        if self._restore:
            return await restore_encounter(self._context, line.patient_id, line.members)
        return await record_encounter(self._context, line.patient_id, line.members, line.key)

    async def _wait_for_the_database(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._unavailable_since is None:
            self._unavailable_since = now
            self._progress.print_message(f"the database is unavailable; retrying for {self._retry_seconds:.0f} s")
        if now - self._unavailable_since >= self._retry_seconds:
            raise ImportStopped(
                f"the database has been unavailable for {now - self._unavailable_since:.0f} s. Until then: "
                f"{self._done}. To continue, run the import again under the same name."
            )
        await asyncio.sleep(PAUSE_SECONDS)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        yield from _leaves(error) if isinstance(error, BaseExceptionGroup) else (error,)


# The context of the import


@asynccontextmanager
async def _context(settings: Settings, client: str) -> AsyncIterator[Context]:
    """Yield the context of an operator's program, which acts for the brand of each line and may only record.

    Raises `SettingsError` if the database cannot be used or is not safe.
    """
    url = settings.serving_url
    timeouts: Timeouts = {"acquire_seconds": ACQUIRE_SECONDS, "statement_seconds": settings.database_statement_seconds}
    with translate_driver_errors(f"{PREFIX}DATABASE_URL"):
        await migrate(settings.owner_url)
        dangers, *_ = await inspect_database(url)
        refuse_dangers(dangers, settings)
        database = await Database.connect(url, role=APP_ROLE, size=settings.database_pool_size, **timeouts)
    # The import sends no notifications: the relay of a running gateway polls every second.
    feed = Feed(database, Notifier(url), SubscriberReads(database))
    scopes = frozenset(scopes_from(settings.scopes)[Permission.RECORD_ENCOUNTER])
    try:
        async with AuditBuffer.open(url, settings.audit_queue, **timeouts) as audit_sink:
            shared = services(
                settings,
                database,
                audit_sink=_NoReadAudit(audit_sink),
                feed=feed,
                verify=_refuse_token,
                rates=Unlimited(),
            )
            yield Context(Caller(client, scopes), None, f"import-{new_id()}", shared)
    finally:
        await database.close()


class _NoReadAudit:
    """An audit sink that omits reads: an import does not show the encounters that it finds recorded already."""

    def __init__(self, audit_sink: AuditSink) -> None:
        self._audit_sink = audit_sink

    def record(self, note: AuditRecord) -> None:
        """Record everything but reads of encounters."""
        if note.event_type != ENCOUNTERS_READ:
            self._audit_sink.record(note)


async def _refuse_token(_token: str) -> Never:
    raise InvalidToken
