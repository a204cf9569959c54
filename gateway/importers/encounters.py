"""Recording encounters from a file: CSV or JSON Lines, of any length, each line once however often it is run.

A line is what the doors are sent, and goes through the same function: it is checked, walled off by its brand, audited
and told of as any recording. Each has a key of its own, so an import that was cut short is simply run again. Many lines
are under way at once, and share statements and commits; nothing grows with the file.
"""

import asyncio
import hashlib
import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Never

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
from gateway.observability.logs import describe, log
from gateway.settings import PREFIX, Settings
from resolvers import json_text
from resolvers.access import Caller, Permission, scopes_from
from resolvers.audit_notes import ENCOUNTERS_READ
from resolvers.commands import InputLimits, RecordEncounter, Text, refuse_null
from resolvers.context import Context
from resolvers.encounters.record import record_encounter
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

UNDER_WAY = 256
"""Lines under way at once: as many as two full statements hold, and as many again that are ready when one is done."""

READ_TOGETHER = 64
"""Lines that are read before they are handed on."""

PAUSE_SECONDS = 0.5
"""Between two tries of a line while the database is away."""

ACQUIRE_SECONDS = 30.0
"""How long a line waits for a connection. Nobody waits for its answer, so it may be longer than at the doors."""


@dataclass
class ImportSummary:
    """What became of the lines, counted; as a text, the sentence that closes an import."""

    recorded: int = 0
    already: int = 0
    """Recorded under the same key before: by an earlier run, or by a try whose answer was lost."""
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
    patience_seconds: float = 300.0,
) -> ImportSummary:
    """Record the encounters of `file` (`-` for standard input), each line once.

    `name` says which import it is, by default the file's own name: lines without a key of their own are told by it from
    those of other imports. The keys are those of `client`, and are kept for so many days; run again later, the import
    would record its lines once more. Refused lines go to `rejects`, by default a file beside the one that is imported.
    While the database is away it is tried again, for at most `patience_seconds`. Raises `SettingsError` where it cannot
    begin, and `ImportStopped`; what was recorded before stays, and a second run goes on from there.
    """
    settings = settings.model_copy(
        update={"idempotency_hours": keep_keys_days * 24, "database_acquire_seconds": ACQUIRE_SECONDS}
    )
    with opened(file) as stream:
        lines = LineReader(stream, settings.max_body_bytes)
        async with _context(settings, client) as context:
            with Progress.of(lines, file, rejects) as progress:
                limits = context.services.input_limits
                named = name or ("-" if file == STANDARD_INPUT else file.name)
                done = ImportSummary()
                encounters = _encounters(records_of(lines, file, TABLE, done.unknown), limits, named)
                return await _Backfilling(context, progress, patience_seconds, done).record_all(encounters)


# Reading


class EncounterLine(RecordEncounter):
    """A line: what the REST door is sent as a body, whose encounter it is, and perhaps a key."""

    patient_id: Text
    key: Annotated[Text | None, BeforeValidator(refuse_null)] = None


class _Line(NamedTuple):
    """A line that breaks no rule."""

    lines: range
    patient_id: str
    members: Mapping[str, Any]
    key: str
    derived: bool
    """Whether the key was made of what the line means: then whoever has the key means the same."""


def _members(values: dict[str, str]) -> dict[str, Any]:
    """Give the members of a row: what is empty was left out, and `metadata` is JSON."""
    members: dict[str, Any] = {name: value for name, value in values.items() if value}
    if "metadata" in members:
        try:
            members["metadata"] = json_text.read(members["metadata"])
        except MalformedBody as error:
            place = " (line {}, column {} of it)".format(*error.place) if error.place else ""
            rule, told = error.violations[0].rule, f"must be JSON that has one meaning{place}"
            raise InvalidInput([Violation("/metadata", rule, told)]) from None
    return members


# What a person wrote has line breaks.
TABLE = CsvFormat(
    ("patient_id", "brand_id", "encounter_type"), frozenset(EncounterLine.model_fields), _members, breaks=True
)


def _encounters(
    records: Iterator[Record | Refusal], limits: InputLimits, name: str
) -> Generator[_Line | Refusal, None, None]:
    with closing(_DuplicateCounter()) as alike:
        for record in records:
            if isinstance(record, Refusal):
                yield record
                continue
            try:
                line = EncounterLine.read(record.members, limits)
            except InvalidInput as error:
                yield Refusal.of(record.lines, error)
                continue
            key = line.key
            if key is None:
                meaning = json_text.write(line.model_dump(mode="json", exclude_none=True))
                key = derived_key(name, meaning, alike.count(meaning))
            yield _Line(record.lines, line.patient_id, record.members, key, derived=line.key is None)


def derived_key(name: str, meaning: str, place: int) -> str:
    """Give the key of a line that has none: the same in every run, and another for each line that is alike.

    Like a claim's hash it covers what is meant, not how it is written, so a line may be written anew or moved.
    """
    told = f"{name}\n{place}\n{meaning}".encode("utf-8", "surrogatepass")
    return f"import-{hashlib.sha256(told).hexdigest()}"


class _DuplicateCounter:
    """Counts lines that mean the same, on disk: in memory it would grow with the file. For one thread at a time."""

    def __init__(self) -> None:
        # Without a name SQLite keeps it in a file that is nobody's, and gone with the process. What is written there is
        # hashed with a secret of this process, so that nobody who finds it can try what was meant.
        # Whoever lets go of the lines last closes it, which may be the thread that waited for them.
        self._counts = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._counts.execute("PRAGMA journal_mode = OFF")
        self._counts.execute("CREATE TABLE counts (meaning BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        self._secret = os.urandom(32)

    def count(self, meaning: str) -> int:
        """Say the how-manieth line of this meaning it is, from 1."""
        digest = hashlib.blake2b(meaning.encode(), digest_size=16, key=self._secret).digest()
        (number,) = self._counts.execute(
            "INSERT INTO counts VALUES (?, 1) ON CONFLICT DO UPDATE SET number = number + 1 RETURNING number", (digest,)
        ).fetchone()
        assert isinstance(number, int)
        return number

    def close(self) -> None:
        """Forget them."""
        self._counts.close()


# Recording


class _Backfilling:
    """One import: many workers take lines from one queue, which a thread fills."""

    def __init__(self, context: Context, progress: Progress, patience_seconds: float, done: ImportSummary) -> None:
        self._context = context
        self._progress = progress
        self._patience_seconds = patience_seconds
        self._away_since: float | None = None
        """When the database was found to be away, as long as no line has got through since."""
        self._queue: asyncio.Queue[_Line | Refusal | Exception | None] = asyncio.Queue(READ_TOGETHER)
        self._done = done

    async def record_all(self, encounters: Iterator[_Line | Refusal]) -> ImportSummary:
        """Record what is read, and say what became of it."""
        # A thread, so that a file that comes slowly does not hold up what is under way; one that does not have to be
        # waited for when the process is told to stop.
        reading = threading.Thread(target=self._read, args=(encounters, asyncio.get_running_loop()), daemon=True)
        reading.start()
        stopped: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(UNDER_WAY):
                    workers.create_task(self._work())
        except* ImportStopped as errors:
            stopped = next(_leaves(errors))
        if stopped is not None:
            # Raised in there, Python before 3.11.4 would wrap it in a group of its own.
            raise stopped
        return self._done

    def _read(self, encounters: Iterator[_Line | Refusal], loop: asyncio.AbstractEventLoop) -> None:
        """Fill the queue, as fast as it is emptied. Runs in a thread of its own."""

        def hand_on(each: Sequence[_Line | Refusal | Exception | None]) -> None:
            asyncio.run_coroutine_threadsafe(self._put(each), loop).result()

        # Where nobody waits for lines any more, there is nobody to tell.
        with suppress(CancelledError, RuntimeError):
            try:
                while together := list(islice(encounters, READ_TOGETHER)):
                    hand_on(together)
                hand_on([None])
            except Exception as error:  # noqa: BLE001 - whoever waits for lines must be told, whatever it is
                hand_on([error])

    async def _put(self, together: Sequence[_Line | Refusal | Exception | None]) -> None:
        """Queue what is left to do: a second run passes quickly by what the first has recorded."""
        done = await self._recorded_already([each for each in together if isinstance(each, _Line) and each.derived])
        self._done.already += len(done)
        for each in together:
            if not (isinstance(each, _Line) and each.key in done):
                await self._queue.put(each)
        self._progress.tell(self._done)

    async def _recorded_already(self, lines: Sequence[_Line]) -> set[str]:
        """Give the keys under which lines are recorded already; none where the database is away."""
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
            self._progress.tell(self._done)
        # It was the last: the others wait for it too.
        await self._queue.put(None)

    async def _record(self, line: _Line) -> Refusal | None:
        """Record a line, however often that takes. Gives why it cannot be; raises `ImportStopped` if nothing can."""
        while True:
            try:
                recording = await record_encounter(self._context, line.patient_id, line.members, line.key)
            except TemporarilyUnavailable:
                # Whether or not it was kept: under its key it is, once.
                await self._wait_for_the_database()
                continue
            except GatewayError as error:
                self._away_since = None
                self._context.note_refusal(error)
                return Refusal.of(line.lines, error)
            except Exception as error:  # noqa: BLE001 - one line must not stand in the way of all that follow
                log.error("import", request_id=self._context.request_id, line=line.lines[0], **describe(error))
                return Refusal.of(line.lines, ServerError())
            self._away_since = None
            self._done.recorded += not recording.replayed
            self._done.already += recording.replayed
            return None

    async def _wait_for_the_database(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._away_since is None:
            self._away_since = now
            self._progress.say(f"the database is away; trying again for {self._patience_seconds:.0f} s")
        if now - self._away_since >= self._patience_seconds:
            raise ImportStopped(
                f"the database has been away for {now - self._away_since:.0f} s. Until then: {self._done}. "
                "Run the import again, under the same name: it goes on from there."
            )
        await asyncio.sleep(PAUSE_SECONDS)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        yield from _leaves(error) if isinstance(error, BaseExceptionGroup) else (error,)


# On whose behalf


@asynccontextmanager
async def _context(settings: Settings, client: str) -> AsyncIterator[Context]:
    """Give the context of an operator's program, which acts for the brand of each line and may record, no more.

    Raises `SettingsError` when the database cannot be used or must not be.
    """
    assert settings.database_url is not None, "whoever imports has found or started a database"
    url = settings.database_url.get_secret_value()
    timeouts: Timeouts = {"acquire_seconds": ACQUIRE_SECONDS, "statement_seconds": settings.database_statement_seconds}
    with translate_driver_errors(f"{PREFIX}DATABASE_URL"):
        await migrate(settings.owner_url)
        dangers, _ = await inspect_database(url)
        refuse_dangers(dangers, settings)
        database = await Database.connect(url, role=APP_ROLE, size=settings.database_pool_size, **timeouts)
    # Nobody rings for so many: the relay of whichever gateway runs looks every second by itself.
    feed = Feed(database, Notifier(url), SubscriberReads(database))
    scopes = frozenset(scopes_from(settings.scopes)[Permission.RECORD_ENCOUNTER])
    try:
        async with AuditBuffer.open(url, settings.audit_queue, **timeouts) as audit_sink:
            lent = services(
                settings, database, audit_sink=_NoReadAudit(audit_sink), feed=feed, verify=_nobody, rates=Unlimited()
            )
            yield Context(Caller(client, scopes), None, f"import-{new_id()}", lent)
    finally:
        await database.close()


class _NoReadAudit:
    """A trail on which reads are not noted: of what was recorded already an import shows nobody anything."""

    def __init__(self, audit_sink: AuditSink) -> None:
        self._audit_sink = audit_sink

    def record(self, note: AuditRecord) -> None:
        """Leave a note of anything else."""
        if note.event_type != ENCOUNTERS_READ:
            self._audit_sink.record(note)


async def _nobody(_token: str) -> Never:
    raise InvalidToken
