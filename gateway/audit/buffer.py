"""Buffer audit records of refusals and reads, and insert them into the audit log in batches.

The queue is bounded and lives in memory. One task writes it over its own connection, so that no request waits for an
insert. While the database is unavailable, records stay queued. If the queue is full, the newest are dropped. Their
number is logged, and audited as soon as the database accepts writes again.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, Self
from uuid import UUID

import orjson
from sqlalchemy import text

from gateway.database.database import APP_ROLE, Database
from gateway.observability.logs import describe
from gateway.observability.metrics import AUDIT_DROPPED, AUDIT_WAITING
from resolvers.audit_notes import REQUEST_REFUSED, UNKNOWN
from resolvers.errors import GatewayError, RateLimited
from resolvers.ids import new_id
from resolvers.services import AuditRecord
from resolvers.sql import Statement

logger = logging.getLogger(__name__)

NOTES_DROPPED = "patient_graph.audit.dropped"

BATCH_SIZE = 500
"""Records in one batch; enough that statements cost little, few enough that they stay short."""

GATHER_SECONDS = 0.2
"""Seconds that a record waits for others; also the time whose records a killed process may lose."""

RETRY_SECONDS = 1.0
FLUSH_SECONDS = 5.0
"""Seconds; how long shutdown waits for the remaining records to be written."""

COUNT_SECONDS = 60.0
"""Seconds; rate-limit refusals of one client within this time become one entry with their count."""

LATE_SECONDS = 300.0
"""Seconds; an older record is dated at its insertion, and its details state the delay. The audit chain looks back over
`resolvers.audit_chain.LOOK_BACK`, so no entry may be dated earlier than that when it appears."""

# An entry is dated by the database's clock, like those of changes, minus the record's age by the local monotonic clock.
# A conflict is possible only with itself: an insert that is retried because its answer was lost writes no duplicate.
INSERT_RECORDS = Statement(
    text("""
INSERT INTO patient_graph.audit_log AS entry (
    patient_id, id, occurred_at, actor_type, actor_id, actor_brand_id,
    event_type, entity_type, entity_id, brand_id, request_id, details
)
SELECT
    note.patient_id, note.id, now() - make_interval(secs => note.age_seconds),
    note.actor_type, note.actor_id, note.actor_brand_id,
    note.event_type, note.entity_type, note.entity_id, CAST(:brand_id AS text), note.request_id, note.details
FROM json_to_recordset(CAST(:notes AS json)) AS note (
    patient_id text, id uuid, age_seconds float8, actor_type text, actor_id text, actor_brand_id text,
    event_type text, entity_type text, entity_id text, request_id text, details jsonb
)
ON CONFLICT DO NOTHING
""")
)


class QueuedRecord(NamedTuple):
    """An audit record, the id of its entry, and when it was recorded, in seconds of the monotonic clock."""

    note: AuditRecord
    id: UUID
    left_at: float


class AuditBuffer:
    """The audit sink of one process (`resolvers.services.AuditSink`). `database` must not be shared."""

    def __init__(self, database: Database, capacity: int) -> None:
        self._database = database
        self._capacity = capacity
        self._queue: deque[QueuedRecord] = deque()
        self._batch: list[QueuedRecord] = []
        self._rate_limited: dict[tuple[str, str | None], QueuedRecord] = {}
        """The first refusal of each brand's client whose count is not written yet."""
        self._counts: Counter[tuple[str, str | None]] = Counter()
        self._dropped: Counter[str] = Counter()
        self._unreported = 0
        self._wakeup = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, capacity: int, *, acquire_seconds: float, statement_seconds: float
    ) -> AsyncIterator[Self]:
        """Yield a buffer whose records are written in the background; flush it at the end of the block.

        Args:
            url: Address of the database.
            capacity: Maximum number of queued records.
            acquire_seconds: Seconds to wait for the connection.
            statement_seconds: Seconds that a statement may run.
        """
        database = await Database.connect(
            url, "audit", role=APP_ROLE, size=1, acquire_seconds=acquire_seconds, statement_seconds=statement_seconds
        )
        audit_buffer = cls(database, capacity)
        writing = asyncio.create_task(audit_buffer.write(), name="audit buffer")
        try:
            yield audit_buffer
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await audit_buffer.flush()
            await database.close()

    def record(self, note: AuditRecord) -> None:
        """Queue a record. Rate-limit refusals are counted, and a record that finds the queue full is dropped."""
        kept = QueuedRecord(note, new_id(), time.monotonic())
        if note.details.get("code") != RateLimited.code:
            self._enqueue(kept)
            return
        client = (note.brand_id, note.entity_id)
        if client not in self._rate_limited:
            self._rate_limited[client] = kept
            asyncio.get_running_loop().call_later(COUNT_SECONDS, self._enqueue_count, client)
        self._counts[client] += 1

    def _enqueue_count(self, client: tuple[str, str | None]) -> None:
        first = self._rate_limited.pop(client, None)
        if first is not None:
            details = {**first.note.details, "count": self._counts.pop(client)}
            self._enqueue(first._replace(note=first.note._replace(details=details)))

    def _enqueue(self, kept: QueuedRecord) -> None:
        # Refusals get at most half of the queue, so that many of them cannot displace audit records of reads.
        capacity = self._capacity if kept.note.event_type != REQUEST_REFUSED else (self._capacity + 1) // 2
        if len(self._queue) + len(self._batch) < capacity:
            self._queue.append(kept)
        else:
            self._drop(kept.note.brand_id, 1)
        if not self._wakeup.is_set():
            self._wakeup.set()

    async def write(self) -> None:
        """Write queued records until cancelled."""
        while True:
            await self._wakeup.wait()
            # A full batch is written at once; a pause would only let the queue grow.
            if len(self._queue) < BATCH_SIZE:
                await asyncio.sleep(GATHER_SECONDS)
            self._set_gauge()
            written = await self._write_batch()
            self._log_dropped()
            if not written:
                await asyncio.sleep(RETRY_SECONDS)
            elif not (self._queue or self._dropped):
                self._wakeup.clear()

    async def flush(self) -> None:
        """Write the remaining records within `FLUSH_SECONDS`; log the rest as dropped."""
        for client in list(self._rate_limited):
            self._enqueue_count(client)
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                while self._queue or self._batch or self._dropped:
                    if not await self._write_batch():
                        await asyncio.sleep(RETRY_SECONDS / 10)
        except TimeoutError:
            self._unreported += len(self._queue) + len(self._batch)
        self._log_dropped()

    async def _write_batch(self) -> bool:
        """Write a batch. Return False if the database is unavailable; unwritten records stay in the batch."""
        if not self._batch:
            self._batch = [self._queue.popleft() for _ in range(min(BATCH_SIZE, len(self._queue)))]
            losses, self._dropped = self._dropped, Counter()
            self._batch += [QueuedRecord(_record_of_loss(*loss), new_id(), time.monotonic()) for loss in losses.items()]
        while self._batch:
            brand_id = self._batch[0].note.brand_id
            of_brand = [kept for kept in self._batch if kept.note.brand_id == brand_id]
            try:
                await self._insert(brand_id, of_brand)
            except GatewayError:
                return False
            self._batch = [kept for kept in self._batch if kept.note.brand_id != brand_id]
            self._set_gauge()
        return True

    async def _insert(self, brand_id: str, notes: Sequence[QueuedRecord]) -> None:
        """Insert the records of one brand. If the database rejects the batch, insert each alone.

        A record that is rejected alone is dropped.
        """
        try:
            async with self._database.autocommit(brand_id) as connection:
                await connection.fetch(INSERT_RECORDS, brand_id=brand_id, notes=_written(notes))
        except GatewayError:
            raise
        except Exception as error:  # noqa: BLE001 - one record must not block those that follow
            if len(notes) > 1:
                for kept in notes:
                    await self._insert(brand_id, [kept])
            else:
                logger.error("trail", extra=describe(error))
                if notes[0].note.event_type != NOTES_DROPPED:
                    self._drop(brand_id, 1)

    def _drop(self, brand_id: str, number: int) -> None:
        self._dropped[brand_id] += number
        self._unreported += number
        AUDIT_DROPPED.inc(number)

    def _set_gauge(self) -> None:
        AUDIT_WAITING.set(len(self._queue) + len(self._batch))

    def _log_dropped(self) -> None:
        if self._unreported:
            logger.error("trail", extra={"dropped": self._unreported})
            self._unreported = 0


def _record_of_loss(brand_id: str, number: int) -> AuditRecord:
    return AuditRecord(
        event_type=NOTES_DROPPED,
        actor_type="system",
        actor_id="gateway",
        actor_brand_id=None,
        entity_type="audit_log",
        entity_id=None,
        patient_id=UNKNOWN,
        brand_id=brand_id,
        request_id="",
        details={"dropped": number},
    )


def _written(notes: Sequence[QueuedRecord]) -> bytes:
    # One JSON text costs half of the driver's work to encode eleven lists value by value.
    now = time.monotonic()
    return orjson.dumps([_entry(kept, now - kept.left_at) for kept in notes])


def _entry(kept: QueuedRecord, age_seconds: float) -> dict[str, object]:
    if age_seconds < LATE_SECONDS:
        return kept.note._asdict() | {"id": kept.id, "age_seconds": age_seconds}
    details = {**kept.note.details, "late_seconds": int(age_seconds)}
    return kept.note._asdict() | {"id": kept.id, "age_seconds": 0.0, "details": details}
