"""The event pipeline of a process: relay, delivery to sinks, pruning and the live feed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

from gateway.database.database import APP_ROLE, RELAY_ROLE, Database
from gateway.database.problems import translate_driver_errors
from gateway.events.delivery import DeliveryQueue, Receiver
from gateway.events.feed import Feed
from gateway.events.notifier import Notifier
from gateway.events.subscriber_reads import ACQUIRE_SECONDS, POOL_SIZE, SubscriberReads
from gateway.events.webhooks import WebhookReceiver
from gateway.jobs import LeasedJob, run_jobs
from gateway.settings import PREFIX, Settings
from models import DeadLetter, OutboxEvent, Sink, Watermark, table_of
from resolvers.outbox import APPENDED, MOVED
from resolvers.relay import prune_events, relay

OUTBOX = table_of(OutboxEvent)
WATERMARK = table_of(Watermark)
SINKS = table_of(Sink)
DEAD_LETTERS = table_of(DeadLetter)

# Seconds; the polling interval of the relay and the sinks without notifications.
LOOK_AGAIN_SECONDS = 1.0


# The pipeline


@asynccontextmanager
async def event_pipeline(
    settings: Settings, url: str, database: Database, others: Sequence[LeasedJob], after_seconds: float = 0.0
) -> AsyncIterator[Feed]:
    """Relay and deliver events, run the other jobs, and yield the feed until the block ends.

    Args:
        settings: The gateway's settings, which name the sinks.
        url: Address of the database, for the notifier and the subscribers' pool.
        database: Acts as the relay's role.
        others: Further leased jobs.
        after_seconds: Delay before the jobs start.
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
    """Return a receiver for each sink in the settings."""
    source, seconds = settings.event_source, settings.webhook_seconds
    receivers: list[Receiver] = [
        WebhookReceiver(webhook, source=source, seconds=seconds) for webhook in settings.every_webhook
    ]
    if settings.nats_url is not None:
        # Imported here, because the dependency is an optional extra.
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


# At the command line


async def with_relay_role(settings: Settings, work: Callable[[Database], Awaitable[None]]) -> None:
    """Run `work` with the relay's role. Raises `SettingsError` if the database cannot be used."""
    url = settings.serving_url
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
