"""Reads that subscribers share: sent once, kept for a moment, and no one subscriber's to spoil."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.database.database import APP_ROLE, Database
from gateway.events import subscriber_reads
from gateway.events.subscriber_reads import POOL_SIZE, EventReads, SubscriberReads
from resolvers.errors import TemporarilyUnavailable
from resolvers.sql import Row, Statement
from tests.waiting import wait_until

# A new value each time it is sent.
SENT = Statement("SELECT gen_random_uuid(), repeat('x', $1::int)", ["length"])
SLOW = Statement("SELECT gen_random_uuid(), pg_sleep(0.3)")
BROKEN = Statement("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'admin_shutdown'; END $$")


@pytest.fixture
async def reads(database_url: str) -> AsyncIterator[SubscriberReads]:
    database = await Database.connect(
        database_url, role=APP_ROLE, size=POOL_SIZE, acquire_seconds=5, statement_seconds=5, opens_first=False
    )
    reads = SubscriberReads(database)
    yield reads
    await reads.close()


async def sent(reads: SubscriberReads, position: int = 1, brand_id: str = "loop", length: int = 0) -> list[Row]:
    async with EventReads(reads, position).connection(brand_id) as connection:
        return await connection.fetch(SENT, length=length)


async def test_the_same_read_of_one_event_is_sent_once(reads: SubscriberReads) -> None:
    told = await asyncio.gather(*(sent(reads) for _ in range(50)))

    assert len({each[0][0] for each in told}) == 1
    assert await sent(reads) == told[0]


async def test_another_event_brand_or_argument_is_another_read(reads: SubscriberReads) -> None:
    told = [
        await sent(reads),
        await sent(reads, position=2),
        await sent(reads, brand_id="loopbio"),
        await sent(reads, length=1),
    ]

    assert len({each[0][0] for each in told}) == 4


async def test_a_subscriber_that_goes_takes_no_rows_of_others_with_it(reads: SubscriberReads) -> None:
    async def slow() -> list[Row]:
        async with EventReads(reads, 1).connection("loop") as connection:
            return await connection.fetch(SLOW)

    first, second = asyncio.ensure_future(slow()), asyncio.ensure_future(slow())
    await wait_until(lambda: reads._under_way)
    first.cancel()

    assert len(await second) == 1


async def test_what_failed_is_told_to_all_and_tried_anew_by_the_next(reads: SubscriberReads) -> None:
    async with EventReads(reads, 1).connection("loop") as connection:
        failed = await asyncio.gather(*(connection.fetch(BROKEN) for _ in range(5)), return_exceptions=True)

        assert {type(each) for each in failed} == {TemporarilyUnavailable}
        assert not reads._kept
        assert not reads._under_way
    assert await sent(reads)


async def test_what_is_kept_is_bounded_and_let_go_of(reads: SubscriberReads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber_reads, "KEPT_BYTES", 10_000)
    first = await sent(reads, length=4_000)
    for position in range(2, 6):
        await sent(reads, position, length=4_000)
        assert reads._kept_bytes <= 10_000
    assert await sent(reads, length=4_000) != first

    monkeypatch.setattr(subscriber_reads, "KEPT_SECONDS", 0.05)
    await sent(reads, 9)
    await wait_until(lambda: not reads._kept)
    assert reads._kept_bytes == 0


async def test_those_who_catch_up_leave_a_connection_to_the_reader(reads: SubscriberReads) -> None:
    holding = asyncio.Event()

    async def hold() -> None:
        async with reads.turn("loop"):
            await holding.wait()

    held = [asyncio.ensure_future(hold()) for _ in range(10 * POOL_SIZE)]
    await wait_until(lambda: len(reads.database._pool._in_use_connections) == POOL_SIZE - 1)
    async with asyncio.timeout(1), reads.database.connection("loop"):
        pass

    holding.set()
    await asyncio.gather(*held)


async def test_nothing_is_changed_through_them(reads: SubscriberReads) -> None:
    for change in (EventReads(reads, 1).transaction, lambda brand_id: EventReads(reads, 1).autocommit(brand_id, 1)):
        with pytest.raises(NotImplementedError):
            change("loop")
