"""Every event gets one position in the feed, even if writers commit late or relays die."""

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
from statistics import median
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import func, select

from gateway import jobs
from gateway.database.database import RELAY_ROLE, Database, PoolConnection
from gateway.events import notifier
from gateway.events.status import event_numbers
from gateway.jobs import LeasedJob, run_jobs
from resolvers import relay
from resolvers.errors import TemporarilyUnavailable
from resolvers.relay import LOCK_WATERMARK, move_watermark, prune_events, stamp_events
from resolvers.sql import Statement
from tests import citus
from tests.conftest import fresh_database
from tests.event_helpers import Gateway, append, cursor_v1, rows
from tests.waiting import wait_until

BEGINNING = cursor_v1()
PATIENTS = [f"patient-{number}" for number in range(8)]

POSITIONS = "SELECT position FROM patient_graph.outbox ORDER BY position"
WATERMARK = "SELECT stamped, position, pruned FROM gateway.watermark"


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


@pytest.fixture
async def without_relay(url: str) -> AsyncIterator[Gateway]:
    """A gateway whose relay is off, so that the test relays."""
    async with Gateway.running(url, relays=False) as gateway:
        yield gateway


async def write_late(gateway: Gateway, rounds: int) -> dict[str, list[UUID]]:
    """Commit `rounds` transactions of each patient in random order; return each patient's encounters."""
    recorded = defaultdict(list)
    chance = random.Random(7)
    for _ in range(rounds):
        held = [(patient_id, await gateway.begin(patient_id)) for patient_id in PATIENTS]
        chance.shuffle(held)
        for patient_id, transaction in held:
            recorded[patient_id].append(await transaction.commit())
            gateway.feed.notify()
            # Let readers run between any two commits.
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
    return recorded


def assert_received(received: list[UUID], recorded: dict[str, list[UUID]]) -> None:
    """Assert that each encounter was received once, and those of a patient in the order of recording."""
    assert len(received) == len(set(received))
    assert set(received) == {encounter for encounters in recorded.values() for encounter in encounters}
    for encounters in recorded.values():
        assert [encounter for encounter in received if encounter in set(encounters)] == encounters


async def positions(url: str) -> list[int | None]:
    return [row["position"] for row in await rows(url, POSITIONS)]


async def test_late_commits_are_neither_lost_repeated_nor_out_of_order(url: str) -> None:
    async with Gateway.running(url) as one, Gateway.running(url) as other:
        subscribers = [gateway.subscribe(BEGINNING) for gateway in (one, other) for _ in range(3)]
        written = await asyncio.gather(*(write_late(gateway, 15) for gateway in (one, other)))
        count = 2 * 15 * len(PATIENTS)

        await wait_until(lambda: all(len(subscriber.events) >= count for subscriber in subscribers))

        for subscriber in subscribers:
            assert subscriber.encounters == subscribers[0].encounters
            for recorded in written:
                mine = {encounter for encounters in recorded.values() for encounter in encounters}
                assert_received([encounter for encounter in subscriber.encounters if encounter in mine], recorded)
        assert await positions(url) == list(range(1, count + 1))
        for subscriber in subscribers:
            await subscriber.stop()


async def test_relays_that_lose_the_lease_during_a_run_do_not_interfere(
    without_relay: Gateway, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LEASE_TIME", timedelta(milliseconds=3))
    monkeypatch.setattr(relay, "STAMP_AT_MOST", 3)
    relays = [
        await Database.connect(url, role=RELAY_ROLE, size=2, acquire_seconds=10, statement_seconds=20) for _ in range(3)
    ]
    have_run: set[int] = set()

    def competing_job(number: int) -> LeasedJob:
        async def run_once(database: Database) -> bool:
            have_run.add(number)
            return await relay.relay(database)

        return LeasedJob("compete", run_once, pause_seconds=0.001)

    async def expire_leases() -> None:
        while True:
            await rows(url, "UPDATE gateway.leases SET expires_at = '-infinity' WHERE name = 'compete'")

    competing = [
        asyncio.create_task(run_jobs(database, [competing_job(number)])) for number, database in enumerate(relays)
    ]
    competing.append(asyncio.create_task(expire_leases()))
    subscriber = without_relay.subscribe(BEGINNING)
    recorded: dict[str, list[UUID]] = defaultdict(list)
    for _ in range(20):
        for patient_id, encounters in (await write_late(without_relay, 4)).items():
            recorded[patient_id] += encounters
        if len(have_run) == len(relays):
            break
    count = sum(map(len, recorded.values()))
    await wait_until(lambda: len(subscriber.events) >= count)

    for task in competing:
        task.cancel()
    await asyncio.gather(*competing, return_exceptions=True)
    assert len(have_run) == len(relays)
    assert_received(subscriber.encounters, recorded)
    assert await positions(url) == list(range(1, count + 1))
    await subscriber.stop()
    for database in relays:
        await database.close()


async def test_concurrent_relays_without_a_lease_do_not_interfere(without_relay: Gateway, url: str) -> None:
    subscriber = without_relay.subscribe(BEGINNING)
    writing = asyncio.create_task(write_late(without_relay, 15))
    while not writing.done():
        await asyncio.gather(*(relay.relay(without_relay.relay) for _ in range(4)))
    recorded = await writing
    await relay.relay(without_relay.relay)

    await wait_until(lambda: len(subscriber.events) == 15 * len(PATIENTS))

    assert_received(subscriber.encounters, recorded)
    assert await positions(url) == list(range(1, 15 * len(PATIENTS) + 1))
    await subscriber.stop()


async def test_a_relay_that_dies_before_moving_the_watermark_loses_nothing(without_relay: Gateway, url: str) -> None:
    subscriber = without_relay.subscribe(BEGINNING)
    first = await without_relay.record("patient")
    assert await stamp_events(without_relay.relay) == 1
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(1, 0, 0)]
    second = await without_relay.record("patient")

    await relay.relay(without_relay.relay)

    await wait_until(lambda: len(subscriber.events) == 2)
    assert subscriber.encounters == [first, second]
    await subscriber.stop()


@pytest.mark.parametrize("statements", range(9))
async def test_a_relay_that_dies_after_any_statement_is_continued_by_another(
    without_relay: Gateway, url: str, monkeypatch: pytest.MonkeyPatch, statements: int
) -> None:
    recorded = [await without_relay.record("patient") for _ in range(3)]
    with monkeypatch.context() as patch:
        left = statements

        async def die_after(original, self, statement, **values):
            nonlocal left
            if left == 0:
                raise asyncio.CancelledError
            left -= 1
            return await original(self, statement, **values)

        for name in ("fetch", "fetch_one"):
            original = getattr(PoolConnection, name)
            patch.setattr(PoolConnection, name, lambda *a, original=original, **k: die_after(original, *a, **k))
        with contextlib.suppress(asyncio.CancelledError):
            await relay.relay(without_relay.relay)
    recorded.append(await without_relay.record("patient"))

    await relay.relay(without_relay.relay)

    assert await positions(url) == [1, 2, 3, 4]
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(4, 4, 0)]
    subscriber = without_relay.subscribe(BEGINNING)
    await wait_until(lambda: len(subscriber.events) == 4)
    assert subscriber.encounters == recorded
    await subscriber.stop()


@pytest.mark.parametrize("commits", [True, False])
async def test_a_relay_waits_for_a_paused_one(without_relay: Gateway, url: str, commits: bool) -> None:
    for _ in range(3):
        await without_relay.record("patient")
    paused = await asyncpg.connect(url, server_settings={"role": RELAY_ROLE})
    transaction = paused.transaction()
    await transaction.start()
    await paused.execute(LOCK_WATERMARK.text)
    await paused.execute(
        "UPDATE patient_graph.outbox SET position = 1 WHERE id = (SELECT min(id::text)::uuid FROM patient_graph.outbox)"
    )
    await paused.execute("UPDATE gateway.watermark SET stamped = 1")

    other = asyncio.create_task(relay.relay(without_relay.relay))
    await wait_until(lambda: rows(url, f"{citus.WAITING_SESSIONS} HAVING count(*) > 0"))
    assert not other.done()
    await (transaction.commit() if commits else transaction.rollback())
    await paused.close()
    await other

    assert await positions(url) == [1, 2, 3]
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(3, 3, 0)]


async def test_a_relay_gives_up_events_that_were_stamped_concurrently(without_relay: Gateway, url: str) -> None:
    # As on a cluster, where a finished commit may become visible later.
    for _ in range(2):
        await without_relay.record("patient")
    late = await asyncpg.connect(url)
    async with late.transaction():
        await late.execute(
            "UPDATE patient_graph.outbox SET position = 1"
            " WHERE created_at = (SELECT min(created_at) FROM patient_graph.outbox)"
        )
        other = asyncio.create_task(relay.relay(without_relay.relay))
        await wait_until(lambda: rows(url, f"{citus.WAITING_SESSIONS} HAVING count(*) > 0"))
    await late.close()

    with pytest.raises(TemporarilyUnavailable):
        await other
    await relay.relay(without_relay.relay)
    assert await positions(url) == [1, 2]
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(2, 2, 0)]


async def test_positions_continue_after_the_highest_existing_one(without_relay: Gateway, url: str) -> None:
    # As after a crash of a cluster's coordinator: a shard has committed what the coordinator lost.
    await without_relay.record("patient")
    await stamp_events(without_relay.relay)
    await rows(url, "UPDATE gateway.watermark SET stamped = 0")
    await without_relay.record("patient")

    await relay.relay(without_relay.relay)

    assert await positions(url) == [1, 2]
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(2, 2, 0)]


async def test_the_watermark_waits_for_stamped_events_that_are_not_visible(without_relay: Gateway, url: str) -> None:
    # As on a cluster, between the two phases of a commit.
    await without_relay.record("patient")
    await stamp_events(without_relay.relay)
    await rows(url, "UPDATE gateway.watermark SET stamped = 2")

    await move_watermark(without_relay.relay)
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(2, 0, 0)]
    assert (await event_numbers(without_relay.relay)).unsettled == 2

    await without_relay.record("patient")
    await rows(url, "UPDATE patient_graph.outbox SET position = 2 WHERE position IS NULL")
    await move_watermark(without_relay.relay)
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(2, 2, 0)]


async def test_a_change_recorded_later_in_an_earlier_transaction_comes_second(without_relay: Gateway, url: str) -> None:
    async with contextlib.AsyncExitStack() as waiting:
        # This transaction begins first, and records after the other one.
        connection = await waiting.enter_async_context(without_relay.app.transaction("loop"))
        await connection.fetch(Statement(select(func.now())))
        first = await without_relay.record("patient")
        second = await append(connection, "patient")

    await relay.relay(without_relay.relay)

    events = await rows(url, "SELECT payload->>'encounter_id' AS id FROM patient_graph.outbox ORDER BY position")
    assert [row["id"] for row in events] == [str(first), str(second)]


async def test_a_recording_notifies_the_relay_of_another_gateway(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Polling is rare, so an event that arrives soon does so because of a notification.
    monkeypatch.setattr("gateway.events.feed.POLL_SECONDS", 15)
    monkeypatch.setattr(notifier, "LONGEST_SILENCE_SECONDS", 600)
    async with Gateway.running(url) as relaying, Gateway.running(url) as recording:
        subscribers = [gateway.subscribe() for gateway in (relaying, recording)]
        recorded, waited = [], []
        for _ in range(5):
            begun = time.monotonic()
            recorded.append(await recording.record("patient"))
            await wait_until(lambda: all(subscriber.encounters == recorded for subscriber in subscribers))
            waited.append(time.monotonic() - begun)
        for subscriber in subscribers:
            await subscriber.stop()

    # A notification may be lost on a busy machine: the database was unavailable for a moment.
    assert median(waited) < 5


async def test_old_events_are_deleted_unless_a_sink_needs_them(without_relay: Gateway, url: str) -> None:
    for _ in range(6):
        await without_relay.record("patient")
    await relay.relay(without_relay.relay)
    await rows(url, "UPDATE patient_graph.outbox SET published_at = now() - '31 days'::interval WHERE position <= 4")
    await rows(
        url, "INSERT INTO gateway.sinks (name, position, updated_at) VALUES ('here', 2, now() - '40 days'::interval)"
    )
    await rows(url, "INSERT INTO gateway.sinks (name, position, disabled_at) VALUES ('gone', 0, now())")

    await prune_events(without_relay.relay, timedelta(days=30), ["here"])
    assert await positions(url) == [3, 4, 5, 6]
    await prune_events(without_relay.relay, timedelta(days=30), [])
    assert await positions(url) == [5, 6]
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(6, 6, 4)]


async def test_event_numbers_report_waiting_events_and_their_age(without_relay: Gateway, url: str) -> None:
    for _ in range(2):
        await without_relay.record("patient")
    await rows(url, "UPDATE patient_graph.outbox SET created_at = now() - '1 minute'::interval")

    numbers = await event_numbers(without_relay.relay)
    assert (numbers.waiting, numbers.position) == (2, 0)
    assert 60 <= numbers.oldest_seconds < 120

    await relay.relay(without_relay.relay)
    numbers = await event_numbers(without_relay.relay)
    assert (numbers.waiting, numbers.position, numbers.oldest_seconds) == (0, 2, 0)
