"""Shared reads of subscribers: sent once, cached briefly, and independent of cancelled subscribers."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.database.database import APP_ROLE, Database
from gateway.events import subscriber_reads
from gateway.events.subscriber_reads import POOL_SIZE, EventReads, SubscriberReads
from resolvers.errors import TemporarilyUnavailable
from resolvers.sql import Row, Statement
from tests.waiting import wait_until

# Returns a new value for each execution.
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


async def read(reads: SubscriberReads, position: int = 1, brand_id: str = "loop", length: int = 0) -> list[Row]:
    async with EventReads(reads, position).connection(brand_id) as connection:
        return await connection.fetch(SENT, length=length)


async def test_identical_reads_of_one_event_are_sent_once(reads: SubscriberReads) -> None:
    results = await asyncio.gather(*(read(reads) for _ in range(50)))

    assert len({each[0][0] for each in results}) == 1
    assert await read(reads) == results[0]


async def test_another_event_brand_or_argument_is_a_separate_read(reads: SubscriberReads) -> None:
    results = [
        await read(reads),
        await read(reads, position=2),
        await read(reads, brand_id="loopbio"),
        await read(reads, length=1),
    ]

    assert len({each[0][0] for each in results}) == 4


async def test_a_cancelled_subscriber_does_not_cancel_a_shared_read(reads: SubscriberReads) -> None:
    async def slow() -> list[Row]:
        async with EventReads(reads, 1).connection("loop") as connection:
            return await connection.fetch(SLOW)

    first, second = asyncio.ensure_future(slow()), asyncio.ensure_future(slow())
    await wait_until(lambda: reads._under_way)
    first.cancel()

    assert len(await second) == 1


async def test_a_failed_read_fails_for_all_and_is_retried_by_the_next(reads: SubscriberReads) -> None:
    async with EventReads(reads, 1).connection("loop") as connection:
        failed = await asyncio.gather(*(connection.fetch(BROKEN) for _ in range(5)), return_exceptions=True)

        assert {type(each) for each in failed} == {TemporarilyUnavailable}
        assert not reads._kept
        assert not reads._under_way
    assert await read(reads)


async def test_cached_rows_are_bounded_and_expire(reads: SubscriberReads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber_reads, "KEPT_BYTES", 10_000)
    first = await read(reads, length=4_000)
    for position in range(2, 6):
        await read(reads, position, length=4_000)
        assert reads._kept_bytes <= 10_000
    assert await read(reads, length=4_000) != first

    monkeypatch.setattr(subscriber_reads, "KEPT_SECONDS", 0.05)
    await read(reads, 9)
    await wait_until(lambda: not reads._kept)
    assert reads._kept_bytes == 0


async def test_subscribers_that_catch_up_leave_the_reader_a_connection(reads: SubscriberReads) -> None:
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


async def test_event_reads_refuse_transactions_and_autocommit(reads: SubscriberReads) -> None:
    for change in (EventReads(reads, 1).transaction, lambda brand_id: EventReads(reads, 1).autocommit(brand_id, 1)):
        with pytest.raises(NotImplementedError):
            change("loop")
