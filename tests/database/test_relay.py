"""Every event gets one place in the feed, whoever commits late and whichever relay dies where."""

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta
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
from tests.event_helpers import Gateway, append, cursor_v1, fresh_database, rows
from tests.waiting import wait_until

BEGINNING = cursor_v1()
PATIENTS = [f"patient-{number}" for number in range(8)]

POSITIONS = "SELECT position FROM patient_graph.outbox ORDER BY position"
WATERMARK = "SELECT stamped, position, pruned FROM gateway.watermark"


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


@pytest.fixture
async def still(url: str) -> AsyncIterator[Gateway]:
    """A gateway whose relay does nothing: the test relays."""
    async with Gateway.running(url, relays=False) as gateway:
        yield gateway


async def write_late(gateway: Gateway, rounds: int) -> dict[str, list[UUID]]:
    """Open a transaction for each patient, commit them in any order, and so on; give each patient's encounters."""
    recorded = defaultdict(list)
    chance = random.Random(7)
    for _ in range(rounds):
        held = [(patient_id, await gateway.begin(patient_id)) for patient_id in PATIENTS]
        chance.shuffle(held)
        for patient_id, transaction in held:
            recorded[patient_id].append(await transaction.commit())
            gateway.feed.notify()
            # Somebody else's turn: readers read between any two commits.
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
    return recorded


def assert_told(told: list[UUID], recorded: dict[str, list[UUID]]) -> None:
    """Nothing lost, nothing twice, and each patient's in the order of recording."""
    assert len(told) == len(set(told))
    assert set(told) == {encounter for encounters in recorded.values() for encounter in encounters}
    for encounters in recorded.values():
        assert [encounter for encounter in told if encounter in set(encounters)] == encounters


async def positions(url: str) -> list[int | None]:
    return [row["position"] for row in await rows(url, POSITIONS)]


async def test_late_commits_are_neither_lost_nor_repeated_nor_out_of_order(url: str) -> None:
    async with Gateway.running(url) as one, Gateway.running(url) as other:
        subscribers = [gateway.subscribe(BEGINNING) for gateway in (one, other) for _ in range(3)]
        written = await asyncio.gather(*(write_late(gateway, 15) for gateway in (one, other)))
        count = 2 * 15 * len(PATIENTS)

        await wait_until(lambda: all(len(subscriber.events) >= count for subscriber in subscribers))

        for subscriber in subscribers:
            assert subscriber.encounters == subscribers[0].encounters
            for recorded in written:
                mine = {encounter for encounters in recorded.values() for encounter in encounters}
                assert_told([encounter for encounter in subscriber.encounters if encounter in mine], recorded)
        assert await positions(url) == list(range(1, count + 1))
        for subscriber in subscribers:
            await subscriber.stop()


async def test_relays_that_lose_the_lease_in_the_middle_take_turns(
    still: Gateway, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LEASE_TIME", timedelta(milliseconds=3))
    monkeypatch.setattr(relay, "STAMP_AT_MOST", 3)
    relays = [
        await Database.connect(url, role=RELAY_ROLE, size=2, acquire_seconds=10, statement_seconds=20) for _ in range(3)
    ]
    at_work: set[int] = set()

    def fighter(number: int) -> LeasedJob:
        async def round_(database: Database) -> bool:
            at_work.add(number)
            return await relay.relay(database)

        return LeasedJob("fight", round_, pause_seconds=0.001)

    async def disturb() -> None:
        while True:
            await rows(url, "UPDATE gateway.leases SET expires_at = '-infinity' WHERE name = 'fight'")

    fighting = [asyncio.create_task(run_jobs(database, [fighter(number)])) for number, database in enumerate(relays)]
    fighting.append(asyncio.create_task(disturb()))
    subscriber = still.subscribe(BEGINNING)
    recorded: dict[str, list[UUID]] = defaultdict(list)
    for _ in range(20):
        for patient_id, encounters in (await write_late(still, 4)).items():
            recorded[patient_id] += encounters
        if len(at_work) == len(relays):
            break
    count = sum(map(len, recorded.values()))
    await wait_until(lambda: len(subscriber.events) >= count)

    for task in fighting:
        task.cancel()
    await asyncio.gather(*fighting, return_exceptions=True)
    assert len(at_work) == len(relays)
    assert_told(subscriber.encounters, recorded)
    assert await positions(url) == list(range(1, count + 1))
    await subscriber.stop()
    for database in relays:
        await database.close()


async def test_relays_at_once_without_any_lease_take_turns(still: Gateway, url: str) -> None:
    subscriber = still.subscribe(BEGINNING)
    writing = asyncio.create_task(write_late(still, 15))
    while not writing.done():
        await asyncio.gather(*(relay.relay(still.relay) for _ in range(4)))
    recorded = await writing
    await relay.relay(still.relay)

    await wait_until(lambda: len(subscriber.events) == 15 * len(PATIENTS))

    assert_told(subscriber.encounters, recorded)
    assert await positions(url) == list(range(1, 15 * len(PATIENTS) + 1))
    await subscriber.stop()


async def test_a_relay_that_dies_between_stamp_and_watermark_loses_nothing(still: Gateway, url: str) -> None:
    subscriber = still.subscribe(BEGINNING)
    first = await still.record("patient")
    assert await stamp_events(still.relay) == 1
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(1, 0, 0)]
    second = await still.record("patient")

    await relay.relay(still.relay)

    await wait_until(lambda: len(subscriber.events) == 2)
    assert subscriber.encounters == [first, second]
    await subscriber.stop()


@pytest.mark.parametrize("statements", range(9))
async def test_wherever_a_relay_dies_another_goes_on(
    still: Gateway, url: str, monkeypatch: pytest.MonkeyPatch, statements: int
) -> None:
    recorded = [await still.record("patient") for _ in range(3)]
    with monkeypatch.context() as patch:
        left = statements

        async def dying(original, self, statement, **values):
            nonlocal left
            if left == 0:
                raise asyncio.CancelledError
            left -= 1
            return await original(self, statement, **values)

        for name in ("fetch", "fetch_one"):
            original = getattr(PoolConnection, name)
            patch.setattr(PoolConnection, name, lambda *a, original=original, **k: dying(original, *a, **k))
        with contextlib.suppress(asyncio.CancelledError):
            await relay.relay(still.relay)
    recorded.append(await still.record("patient"))

    await relay.relay(still.relay)

    assert await positions(url) == [1, 2, 3, 4]
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(4, 4, 0)]
    subscriber = still.subscribe(BEGINNING)
    await wait_until(lambda: len(subscriber.events) == 4)
    assert subscriber.encounters == recorded
    await subscriber.stop()


@pytest.mark.parametrize("commits", [True, False])
async def test_a_relay_that_was_paused_in_the_middle_is_waited_for(still: Gateway, url: str, commits: bool) -> None:
    for _ in range(3):
        await still.record("patient")
    paused = await asyncpg.connect(url, server_settings={"role": RELAY_ROLE})
    transaction = paused.transaction()
    await transaction.start()
    await paused.execute(LOCK_WATERMARK.text)
    await paused.execute(
        "UPDATE patient_graph.outbox SET position = 1 WHERE id = (SELECT min(id::text)::uuid FROM patient_graph.outbox)"
    )
    await paused.execute("UPDATE gateway.watermark SET stamped = 1")

    other = asyncio.create_task(relay.relay(still.relay))
    await wait_until(lambda: rows(url, "SELECT FROM pg_locks WHERE NOT granted"))
    assert not other.done()
    await (transaction.commit() if commits else transaction.rollback())
    await paused.close()
    await other

    assert await positions(url) == [1, 2, 3]
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(3, 3, 0)]


async def test_a_relay_whose_events_were_stamped_meanwhile_leaves_it_at_that(still: Gateway, url: str) -> None:
    # As on a cluster, where a commit that is over may still be coming in.
    for _ in range(2):
        await still.record("patient")
    late = await asyncpg.connect(url)
    async with late.transaction():
        await late.execute(
            "UPDATE patient_graph.outbox SET position = 1"
            " WHERE created_at = (SELECT min(created_at) FROM patient_graph.outbox)"
        )
        other = asyncio.create_task(relay.relay(still.relay))
        await wait_until(lambda: rows(url, "SELECT FROM pg_locks WHERE NOT granted"))
    await late.close()

    with pytest.raises(TemporarilyUnavailable):
        await other
    await relay.relay(still.relay)
    assert await positions(url) == [1, 2]
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(2, 2, 0)]


async def test_positions_go_on_from_those_that_are_there(still: Gateway, url: str) -> None:
    # As after a crash of a cluster's coordinator: a shard has committed what the coordinator has forgotten.
    await still.record("patient")
    await stamp_events(still.relay)
    await rows(url, "UPDATE gateway.watermark SET stamped = 0")
    await still.record("patient")

    await relay.relay(still.relay)

    assert await positions(url) == [1, 2]
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(2, 2, 0)]


async def test_the_watermark_waits_for_what_is_stamped_and_not_yet_seen(still: Gateway, url: str) -> None:
    # As on a cluster, between the two halves of a commit.
    await still.record("patient")
    await stamp_events(still.relay)
    await rows(url, "UPDATE gateway.watermark SET stamped = 2")

    await move_watermark(still.relay)
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(2, 0, 0)]
    assert (await event_numbers(still.relay)).unsettled == 2

    await still.record("patient")
    await rows(url, "UPDATE patient_graph.outbox SET position = 2 WHERE position IS NULL")
    await move_watermark(still.relay)
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(2, 2, 0)]


async def test_of_two_changes_of_one_record_the_one_that_waited_comes_second(still: Gateway, url: str) -> None:
    async with contextlib.AsyncExitStack() as waiting:
        # It begins first, and would wait for the record that the other one is changing.
        connection = await waiting.enter_async_context(still.app.transaction("loop"))
        await connection.fetch(Statement(select(func.now())))
        first = await still.record("patient")
        second = await append(connection, "patient")

    await relay.relay(still.relay)

    told = await rows(url, "SELECT payload->>'encounter_id' AS id FROM patient_graph.outbox ORDER BY position")
    assert [row["id"] for row in told] == [str(first), str(second)]


async def test_another_gateways_relay_is_woken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody polls: what arrives, arrives because a bell was rung.
    monkeypatch.setattr("gateway.events.feed.POLL_SECONDS", 600)
    monkeypatch.setattr(notifier, "LONGEST_SILENCE_SECONDS", 600)
    async with Gateway.running(url) as relaying, Gateway.running(url) as recording:
        subscribers = [gateway.subscribe() for gateway in (relaying, recording)]
        recorded = []
        for _ in range(3):
            recorded.append(await recording.record("patient"))
            await wait_until(lambda: all(subscriber.encounters == recorded for subscriber in subscribers))
        for subscriber in subscribers:
            await subscriber.stop()


async def test_old_events_are_pruned_unless_a_sink_waits_for_them(still: Gateway, url: str) -> None:
    for _ in range(6):
        await still.record("patient")
    await relay.relay(still.relay)
    await rows(url, "UPDATE patient_graph.outbox SET published_at = now() - '31 days'::interval WHERE position <= 4")
    await rows(
        url, "INSERT INTO gateway.sinks (name, position, updated_at) VALUES ('here', 2, now() - '40 days'::interval)"
    )
    await rows(url, "INSERT INTO gateway.sinks (name, position, disabled_at) VALUES ('gone', 0, now())")

    await prune_events(still.relay, timedelta(days=30), ["here"])
    assert await positions(url) == [3, 4, 5, 6]
    await prune_events(still.relay, timedelta(days=30), [])
    assert await positions(url) == [5, 6]
    assert [tuple(row) for row in await rows(url, WATERMARK)] == [(6, 6, 4)]


async def test_the_numbers_tell_what_waits(still: Gateway, url: str) -> None:
    for _ in range(2):
        await still.record("patient")
    await rows(url, "UPDATE patient_graph.outbox SET created_at = now() - '1 minute'::interval")

    numbers = await event_numbers(still.relay)
    assert (numbers.waiting, numbers.position) == (2, 0)
    assert 60 <= numbers.oldest_seconds < 120

    await relay.relay(still.relay)
    numbers = await event_numbers(still.relay)
    assert (numbers.waiting, numbers.position, numbers.oldest_seconds) == (0, 2, 0)
