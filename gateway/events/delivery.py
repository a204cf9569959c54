"""Delivery to sinks: external receivers that get every event at least once and in order.

Each sink has its own queue, processed by one gateway at a time (`gateway/jobs.py`): deliver the event after the sink's
position, then advance the position. Failures are retried with exponential backoff. Later events wait, so that the
events of a patient stay in order. An event that fails until the retry limit becomes a dead letter, and the queue
advances.

Two gateways may deliver the same event if a lease was lost during a delivery. A position is advanced only by a
compare-and-set, so a receiver sees new events in order.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from sqlalchemy import BigInteger, Interval, Text, bindparam, func, literal_column, null, select, update
from sqlalchemy.dialects.postgresql import insert

from gateway.database.database import Database
from gateway.observability import traces
from gateway.observability.logs import describe
from models import DeadLetter, Sink, Watermark, table_of
from resolvers import json_text
from resolvers.outbox import Event, Mark, find_mark, read_events
from resolvers.sql import Connection, Row, Statement

logger = logging.getLogger(__name__)

SINKS = table_of(Sink)
DEAD_LETTERS = table_of(DeadLetter)
WATERMARK = table_of(Watermark)

BATCH = 100
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 600.0
# Seconds; the limit of a receiver's `Retry-After`, which it may have sent in milliseconds.
LONGEST_RETRY_AFTER_SECONDS = 24 * 3600.0


class DeliveryFailed(Exception):
    """The event did not arrive, or its arrival was not acknowledged. The reason is one of this program's own texts."""

    def __init__(self, reason: str, retry_after_seconds: float = 0.0) -> None:
        self.reason = reason
        self.retry_after_seconds = min(retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS)
        super().__init__(reason)


class SinkGone(Exception):
    """The receiver permanently refuses events."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Receiver(Protocol):
    """The connection to a sink."""

    name: str
    brand_id: str | None
    """The brand whose events are delivered. None: all brands."""

    async def deliver(self, event: Event) -> None:
        """Deliver the event; return once the receiver has acknowledged it. Raises `DeliveryFailed` or `SinkGone`."""

    async def close(self) -> None:
        """Close the connections."""


def envelope(event: Event, source: str) -> bytes:
    """Return the event as JSON: a CloudEvents envelope around its members. The same event gives the same bytes.

    Source: CloudEvents 1.0.2, sections 3.1 and 3.2; JSON Event Format 1.0.2, section 3.
    """
    payload = json_text.read(event.payload)
    written = {
        "specversion": "1.0",
        "id": str(event.id),
        "source": source,
        "type": event.event_type,
        "subject": payload["encounter_id"] if event.concerns_encounter else event.patient_id,
        "time": event.created_at.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        # Source: CloudEvents, distributed tracing extension.
        **({"traceparent": event.traceparent} if event.traceparent is not None else {}),
        "data": payload,
    }
    return json_text.write(written).encode()


MEDIA_TYPE = "application/cloudevents+json; charset=utf-8"


# Positions of the sinks

FIND_SINK = Statement(
    select(SINKS, (SINKS.c.next_attempt_at <= func.now()).label("due")).where(
        SINKS.c.name == bindparam("name", type_=Text)
    )
)
# A new sink starts at the watermark. Earlier events are delivered only by a replay.
ADD_SINK = Statement(
    insert(SINKS)
    .from_select(
        ["name", "position"], select(bindparam("name", type_=Text), WATERMARK.c.position), include_defaults=False
    )
    .on_conflict_do_nothing()
)


def _moving(**values: object) -> Statement:
    """Return a statement that updates a sink if its position is still `was`."""
    return Statement(
        update(SINKS)
        .values({"position": bindparam("position", type_=BigInteger), "updated_at": func.now(), **values})
        .where(SINKS.c.name == bindparam("name", type_=Text), SINKS.c.position == bindparam("was", type_=BigInteger))
        .returning(SINKS.c.name)
    )


MOVE_ON = _moving(failures=literal_column("0"), last_error=null())
SCHEDULE_RETRY = _moving(
    failures=SINKS.c.failures + literal_column("1"),
    last_error=bindparam("reason", type_=Text),
    next_attempt_at=func.now() + bindparam("delay", type_=Interval),
)
DISABLE = _moving(last_error=bindparam("reason", type_=Text), disabled_at=func.now())

INSERT_DEAD_LETTER = Statement(
    insert(DEAD_LETTERS)
    .values({name: bindparam(name, type_=column.type) for name, column in DEAD_LETTERS.c.items() if name != "died_at"})
    .on_conflict_do_nothing()
)


@dataclass
class DeliveryQueue:
    """The queue of events for one sink."""

    receiver: Receiver
    retry_for: timedelta
    """How long an event is retried, from the time it could first be delivered."""

    @property
    def name(self) -> str:
        """The name of the sink."""
        return self.receiver.name

    async def work(self, database: Database) -> bool:
        """Deliver a batch of events, or retry the first one if it is due; return whether more are waiting."""
        async with database.unscoped() as connection:
            sink = await self._sink(connection)
            if sink["disabled_at"] or not sink["due"]:
                return False
            mark = await find_mark(connection)
            events = await self._events(connection, sink["position"], mark)
        position: int = sink["position"]
        for event in events:
            try:
                await self._deliver(event)
            except DeliveryFailed as failure:
                await self._schedule_retry(database, sink, position, event, failure)
                return False
            except SinkGone as gone:
                await self._move(database, DISABLE, position, position, reason=gone.reason)
                logger.error("sink disabled", extra={"sink": self.name, "reason": gone.reason})
                return False
            if not await self._move(database, MOVE_ON, position, event.position):
                return True
            position = event.position
        if len(events) < BATCH and position < mark.position:
            # The remaining events belong to other brands.
            await self._move(database, MOVE_ON, position, mark.position)
        return len(events) == BATCH

    async def _deliver(self, event: Event) -> None:
        try:
            with traces.delivery(self.name, event):
                await self.receiver.deliver(event)
        except (DeliveryFailed, SinkGone):
            raise
        except Exception as error:  # noqa: BLE001 - an unexpected error must not stop the queue
            logger.error("delivery", extra={"sink": self.name, "event_id": str(event.id), **describe(error)})
            raise DeliveryFailed(type(error).__name__) from None

    async def _sink(self, connection: Connection) -> Row:
        sink = await connection.fetch_one(FIND_SINK, name=self.name)
        if sink is None:
            await connection.fetch(ADD_SINK, name=self.name)
            sink = await connection.fetch_one(FIND_SINK, name=self.name)
        return sink

    async def _events(self, connection: Connection, position: int, mark: Mark) -> Sequence[Event]:
        if mark.pruned > position:
            logger.error("sink missed events", extra={"sink": self.name, "after": position, "until": mark.pruned})
        return await read_events(connection, position, mark.position, BATCH, brand_id=self.receiver.brand_id)

    async def _schedule_retry(
        self, database: Database, sink: Row, position: int, event: Event, failure: DeliveryFailed
    ) -> None:
        failures = sink["failures"] + 1 if position == sink["position"] else 1
        delay = timedelta(seconds=max(failure.retry_after_seconds, retry_seconds(failures)))
        if datetime.now(UTC) - max(event.published_at, sink["since"]) < self.retry_for:
            await self._move(database, SCHEDULE_RETRY, position, position, reason=failure.reason, delay=delay)
            logger.warning(
                "delivery failed", extra={"sink": self.name, "event_id": str(event.id), "reason": failure.reason}
            )
            return
        async with database.transaction(None) as connection:
            there = {"name": self.name, "was": position, "position": event.position}
            moved = await connection.fetch_one(SCHEDULE_RETRY, **there, reason=failure.reason, delay=delay)
            if moved:
                columns = {name: getattr(event, name) for name in Event.__slots__ if name in DEAD_LETTERS.c}
                await connection.fetch(INSERT_DEAD_LETTER, sink=self.name, reason=failure.reason, **columns)
        if moved:
            logger.error("dead letter", extra={"sink": self.name, "event_id": str(event.id), "reason": failure.reason})

    async def _move(self, database: Database, statement: Statement, was: int, position: int, **values: object) -> bool:
        async with database.unscoped() as connection:
            moved = await connection.fetch_one(statement, name=self.name, was=was, position=position, **values)
        return moved is not None


def retry_seconds(failures: int) -> float:
    """Return the delay after `failures` consecutive failures.

    It doubles with each failure, up to `LONGEST_RETRY_SECONDS`. Random jitter keeps sinks from retrying at the same
    time.
    """
    longest: float = min(FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 30), LONGEST_RETRY_SECONDS)
    return longest * random.uniform(0.5, 1)  # noqa: S311 - the delay is not a secret
