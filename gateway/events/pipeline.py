"""Events on their way out, as an operator sees them: what a process sets going, how far it is, and how to replay."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

from sqlalchemy import Table

from gateway.database.database import APP_ROLE, RELAY_ROLE, Database
from gateway.database.problems import translate_driver_errors
from gateway.events.delivery import DeliveryQueue, Receiver
from gateway.events.feed import Feed
from gateway.events.notifier import Notifier
from gateway.events.subscriber_reads import ACQUIRE_SECONDS, POOL_SIZE, SubscriberReads
from gateway.events.webhooks import WebhookReceiver
from gateway.jobs import LeasedJob, run_jobs
from gateway.settings import PREFIX, Settings
from models import DeadLetter, OutboxEvent, Sink, Watermark
from resolvers.outbox import APPENDED, MOVED
from resolvers.relay import prune_events, relay

OUTBOX: Table = OutboxEvent.__table__  # type: ignore[attr-defined]
WATERMARK: Table = Watermark.__table__  # type: ignore[attr-defined]
SINKS: Table = Sink.__table__  # type: ignore[attr-defined]
DEAD_LETTERS: Table = DeadLetter.__table__  # type: ignore[attr-defined]

# How often the relay and the sinks look whether there is something to do when nobody rings.
LOOK_AGAIN_SECONDS = 1.0


# What a process sets going


@asynccontextmanager
async def event_pipeline(
    settings: Settings, url: str, database: Database, others: Sequence[LeasedJob], after_seconds: float = 0.0
) -> AsyncIterator[Feed]:
    """Relay events, deliver them and lend the feed, for as long as the block lasts; beside the other duties.

    `database` acts as the relay's role, `url` is its address. The duties begin after so many seconds.
    """
    notifier = Notifier(url)
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
    feed = Feed(database, notifier, reads)
    receivers = receivers_of(settings)
    jobs = [*others, *_duties(settings, notifier, receivers)]
    running = [
        asyncio.create_task(work) for work in (notifier.run(), feed.run(), run_jobs(database, jobs, after_seconds))
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
        from gateway.events.jetstream import JetStreamReceiver

        url = settings.nats_url.get_secret_value()
        receivers.append(JetStreamReceiver(url, settings.nats_subject, source=source, seconds=seconds))
    return receivers


def _duties(settings: Settings, notifier: Notifier, receivers: Iterable[Receiver]) -> Iterable[LeasedJob]:
    retry_for = timedelta(hours=settings.event_retry_hours)
    names = [receiver.name for receiver in receivers]
    prune = partial(prune_events, keep=timedelta(days=settings.event_days), sinks=names)
    yield LeasedJob(
        "relay", relay, pause_seconds=LOOK_AGAIN_SECONDS, wakeup=notifier.subscribe(asyncio.Event(), APPENDED)
    )
    yield LeasedJob("prune events", prune, pause_seconds=60)
    for receiver in receivers:
        line = DeliveryQueue(receiver, retry_for)
        wakeup = notifier.subscribe(asyncio.Event(), MOVED)
        yield LeasedJob(f"sink {receiver.name}", line.work, pause_seconds=LOOK_AGAIN_SECONDS, wakeup=wakeup)


# How far it is


# Replaying


# At the command line


async def with_relay_role(settings: Settings, work: Callable[[Database], Awaitable[None]]) -> None:
    """Do something with the relay's rights. Raises `SettingsError` when the database cannot be used."""
    assert settings.database_url is not None, "whoever asks has found or started a database"
    url = settings.database_url.get_secret_value()
    with translate_driver_errors(f"{PREFIX}DATABASE_URL"):
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
