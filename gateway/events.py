"""Events on their way out, as an operator sees them: what a process sets going, how far it is, and how to replay."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import BigInteger, Table, Text, bindparam, delete, func, literal_column, null, select, update

from gateway.database import APP_ROLE, RELAY_ROLE, Database
from gateway.database_problems import told_plainly
from gateway.doorbell import APPENDED, MOVED, Doorbell
from gateway.duties import Duty, do_duties
from gateway.feed import Feed
from gateway.relay import prune_events, relay
from gateway.settings import PREFIX, Settings
from gateway.sinks import Line, Receiver
from gateway.subscriber_reads import ACQUIRE_SECONDS, POOL_SIZE, SubscriberReads
from gateway.webhooks import WebhookReceiver
from models import DeadLetter, OutboxEvent, Sink, Watermark
from resolvers.sql import Connection, Row, Statement

OUTBOX: Table = OutboxEvent.__table__  # type: ignore[attr-defined]
WATERMARK: Table = Watermark.__table__  # type: ignore[attr-defined]
SINKS: Table = Sink.__table__  # type: ignore[attr-defined]
DEAD_LETTERS: Table = DeadLetter.__table__  # type: ignore[attr-defined]

# How often the relay and the sinks look whether there is something to do when nobody rings.
LOOK_AGAIN_SECONDS = 1.0


# What a process sets going


@asynccontextmanager
async def passing_on(
    settings: Settings, url: str, database: Database, others: Sequence[Duty], after_seconds: float = 0.0
) -> AsyncIterator[Feed]:
    """Relay events, deliver them and lend the feed, for as long as the block lasts; beside the other duties.

    `database` acts as the relay's role, `url` is its address. The duties begin after so many seconds.
    """
    doorbell = Doorbell(url)
    reads = SubscriberReads(
        await Database.connect(
            url,
            "subscribers",
            role=APP_ROLE,
            size=POOL_SIZE,
            acquire_seconds=ACQUIRE_SECONDS,
            statement_seconds=settings.database_statement_seconds,
            opens_first=False,
        )
    )
    feed = Feed(database, doorbell, reads)
    receivers = receivers_of(settings)
    duties = [*others, *_duties(settings, doorbell, receivers)]
    running = [
        asyncio.create_task(work) for work in (doorbell.run(), feed.run(), do_duties(database, duties, after_seconds))
    ]
    try:
        yield feed
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await reads.close()
        await asyncio.gather(*(receiver.close() for receiver in receivers), return_exceptions=True)


def receivers_of(settings: Settings) -> list[Receiver]:
    """Give the way to each sink that the settings name."""
    source, seconds = settings.event_source, settings.webhook_seconds
    receivers: list[Receiver] = [
        WebhookReceiver(webhook, source=source, seconds=seconds) for webhook in settings.every_webhook
    ]
    if settings.nats_url is not None:
        # Imported here, because it is there only for those who use it.
        from gateway.jetstream import JetStreamReceiver

        url = settings.nats_url.get_secret_value()
        receivers.append(JetStreamReceiver(url, settings.nats_subject, source=source, seconds=seconds))
    return receivers


def _duties(settings: Settings, doorbell: Doorbell, receivers: Iterable[Receiver]) -> Iterable[Duty]:
    retry_for = timedelta(hours=settings.event_retry_hours)
    names = [receiver.name for receiver in receivers]
    prune = partial(prune_events, keep=timedelta(days=settings.event_days), sinks=names)
    yield Duty("relay", relay, pause_seconds=LOOK_AGAIN_SECONDS, bell=doorbell.wakes(asyncio.Event(), APPENDED))
    yield Duty("prune events", prune, pause_seconds=60)
    for receiver in receivers:
        line = Line(receiver, retry_for)
        bell = doorbell.wakes(asyncio.Event(), MOVED)
        yield Duty(f"sink {receiver.name}", line.work, pause_seconds=LOOK_AGAIN_SECONDS, bell=bell)


# How far it is


@dataclass(frozen=True, slots=True)
class SinkNumbers:
    """How far one sink is."""

    name: str
    position: int
    behind: int
    """Events that it has not been told of yet, those of brands it is not told of included."""
    oldest_seconds: float
    """How long the first of these has waited; 0 where there is none."""
    failures: int
    """Deliveries that failed in a row."""
    last_error: str | None
    next_attempt_at: datetime
    disabled_at: datetime | None
    dead_letters: int


@dataclass(frozen=True, slots=True)
class EventNumbers:
    """How far events have come."""

    waiting: int
    """Events that have no position yet."""
    oldest_seconds: float
    """How long the oldest of these has waited; 0 where there is none. Tells that no relay is at work."""
    position: int
    """The watermark: events up to here may be read."""
    unsettled: int
    """Events that have a position beyond the watermark. More than a moment of this is a fault."""
    pruned: int
    """Events up to here are no longer kept."""
    sinks: tuple[SinkNumbers, ...]


WAITING = Statement(
    select(func.count(), func.extract("epoch", func.now() - func.min(OUTBOX.c.created_at)).label("age")).where(
        OUTBOX.c.position.is_(None)
    )
)
FIND_WATERMARK = Statement(select(WATERMARK.c.stamped, WATERMARK.c.position, WATERMARK.c.pruned))
LIST_SINKS = Statement(select(SINKS).order_by(SINKS.c.name))
WAITED = Statement(
    select(func.extract("epoch", func.now() - OUTBOX.c.published_at).label("age"))
    .where(OUTBOX.c.position > bindparam("position"))
    .order_by(OUTBOX.c.position)
    .limit(literal_column("1"))
)
COUNT_DEAD_LETTERS = Statement(
    select(func.count()).select_from(DEAD_LETTERS).where(DEAD_LETTERS.c.sink == bindparam("sink", type_=Text))
)


async def event_numbers(database: Database) -> EventNumbers:
    """Say how far events have come. `database` acts as the relay's role. Raises `TemporarilyUnavailable`."""
    async with database.across_brands() as connection:
        waiting = await _one(connection, WAITING)
        mark = await _one(connection, FIND_WATERMARK)
        sinks = [await _sink_numbers(connection, sink, mark) for sink in await connection.fetch(LIST_SINKS)]
    return EventNumbers(
        waiting=waiting[0],
        oldest_seconds=float(waiting["age"] or 0),
        position=mark["position"],
        unsettled=mark["stamped"] - mark["position"],
        pruned=mark["pruned"],
        sinks=tuple(sinks),
    )


async def _sink_numbers(connection: Connection, sink: Row, mark: Row) -> SinkNumbers:
    waited = await connection.fetch_one(WAITED, position=sink["position"])
    dead_letters = await _one(connection, COUNT_DEAD_LETTERS, sink=sink["name"])
    same = ("name", "position", "failures", "last_error", "next_attempt_at", "disabled_at")
    return SinkNumbers(
        **{name: sink[name] for name in same},
        behind=max(0, mark["position"] - sink["position"]),
        oldest_seconds=float(waited["age"]) if waited else 0.0,
        dead_letters=dead_letters[0],
    )


async def _one(connection: Connection, statement: Statement, **values: object) -> Row:
    row = await connection.fetch_one(statement, **values)
    assert row is not None
    return row


def told(numbers: EventNumbers) -> str:
    """Say the numbers to a person, a line for each sink."""
    lines = [
        f"events up to position {numbers.position}, kept from {numbers.pruned + 1}",
        f"{numbers.waiting} waiting for a position, the oldest for {numbers.oldest_seconds:.0f} s"
        + (f"; {numbers.unsettled} not settled" if numbers.unsettled else ""),
    ]
    for sink in numbers.sinks:
        words = [f"sink {sink.name}: at {sink.position}, {sink.behind} behind by {sink.oldest_seconds:.0f} s"]
        if sink.disabled_at:
            words.append(f"disabled {sink.disabled_at:%Y-%m-%dT%H:%M:%SZ} ({sink.last_error})")
        elif sink.failures:
            again = f"{sink.next_attempt_at:%Y-%m-%dT%H:%M:%SZ}"
            words.append(f"failed {sink.failures} times in a row ({sink.last_error}), again at {again}")
        if sink.dead_letters:
            words.append(f"{sink.dead_letters} dead letters")
        lines.append(", ".join(words))
    return "\n".join(lines)


# Replaying


class NoReplay(Exception):
    """What was asked for cannot be replayed; the message says why."""


REPLAY = Statement(
    update(SINKS)
    .values(
        position=bindparam("position", type_=BigInteger),
        since=func.now(),
        failures=literal_column("0"),
        next_attempt_at=func.now(),
        last_error=null(),
        disabled_at=null(),
        updated_at=func.now(),
    )
    .where(SINKS.c.name == bindparam("sink", type_=Text))
)
FORGET_DEAD_LETTERS = Statement(
    delete(DEAD_LETTERS).where(
        DEAD_LETTERS.c.sink == bindparam("sink", type_=Text), DEAD_LETTERS.c.position > bindparam("position")
    )
)


async def replay(database: Database, sink: str, first: int | None) -> int:
    """Let a sink be told from position `first` on, or go on from where it is; give that position.

    A sink that was disabled is told again, and a wait is over. Dead letters among what is told again are forgotten.
    Raises `NoReplay` for a sink nobody knows, or events that are no longer kept or do not exist yet.
    """
    async with database.transaction(None) as connection:
        sinks = {row["name"]: row["position"] for row in await connection.fetch(LIST_SINKS)}
        if sink not in sinks:
            raise NoReplay(f"no sink {sink}; there are: {', '.join(sinks) or 'none'}")
        mark = await _one(connection, FIND_WATERMARK)
        before = sinks[sink] if first is None else first - 1
        if not mark["pruned"] <= before <= mark["position"]:
            raise NoReplay(f"a replay may begin from {mark['pruned'] + 1} to {mark['position'] + 1}")
        await connection.fetch(REPLAY, sink=sink, position=before)
        await connection.fetch(FORGET_DEAD_LETTERS, sink=sink, position=before)
    return before + 1


# At the command line


async def on_relays_behalf(settings: Settings, work: Callable[[Database], Awaitable[None]]) -> None:
    """Do something with the relay's rights. Raises `SettingsError` when the database cannot be used."""
    assert settings.database_url is not None, "whoever asks has found or started a database"
    url = settings.database_url.get_secret_value()
    with told_plainly(f"{PREFIX}DATABASE_URL"):
        database = await Database.connect(
            url,
            role=RELAY_ROLE,
            size=1,
            acquire_seconds=settings.database_acquire_seconds,
            statement_seconds=settings.database_statement_seconds,
        )
        try:
            await work(database)
        finally:
            await database.close()


async def print_status(database: Database) -> None:
    """Print the numbers."""
    print(told(await event_numbers(database)))


async def print_replay(database: Database, sink: str, first: int | None) -> None:
    """Replay, and print from where."""
    print(f"{sink} is told from position {await replay(database, sink, first)}")
