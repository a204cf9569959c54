"""The pool: each connection has one user at a time, and none is leaked by errors or cancellation."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import pytest

from gateway.database.database import APP_ROLE, Database, PoolConnection
from gateway.database.pool import Pool
from resolvers.sql import Row, Statement
from tests.cast import Cast
from tests.waiting import wait_until

Connections = Pool[asyncpg.Connection]


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Connections]:
    """A pool of size two, with one connection open."""
    opened = Pool(lambda: asyncpg.connect(database_url), 2)
    await opened.open()
    yield opened
    await opened.close(5)


async def acquire_all(pool: Connections) -> list[asyncpg.Connection]:
    """Acquire all connections."""
    return [await pool.acquire(5) for _ in range(pool.size)]


async def test_the_connection_released_last_is_acquired_first(pool: Connections) -> None:
    one, other = await acquire_all(pool)
    pool.release(one)
    pool.release(other)

    assert await pool.acquire(5) is other
    assert await pool.acquire(5) is one
    pool.release(one)
    pool.release(other)


async def test_waiters_acquire_released_connections_in_order(pool: Connections) -> None:
    one, other = await acquire_all(pool)
    first, second = (asyncio.create_task(pool.acquire(5)) for _ in range(2))
    await asyncio.sleep(0)
    pool.release(one)
    pool.release(other)

    assert await first is one
    assert await second is other
    pool.release(one)
    pool.release(other)


async def test_an_acquire_that_times_out_leaks_no_connection(pool: Connections) -> None:
    connections = await acquire_all(pool)
    with pytest.raises(TimeoutError):
        await pool.acquire(0.05)
    for each in connections:
        pool.release(each)

    assert set(await acquire_all(pool)) == set(connections)
    for each in connections:
        pool.release(each)


async def test_a_connection_released_to_a_cancelled_waiter_is_not_leaked(pool: Connections) -> None:
    one, other = await acquire_all(pool)
    waiting = asyncio.create_task(pool.acquire(5))
    await asyncio.sleep(0)
    pool.release(one)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert await pool.acquire(0.05) is one
    pool.release(one)
    pool.release(other)


@pytest.mark.parametrize("lost", ["in use", "idle"])
async def test_a_lost_connection_is_replaced(pool: Connections, lost: str) -> None:
    connections = await acquire_all(pool)
    if lost == "in use":
        connections[0].terminate()
    for each in connections:
        pool.release(each)
    if lost == "idle":
        connections[0].terminate()

    again = await acquire_all(pool)

    assert connections[0] not in again
    assert [await each.fetchval("SELECT 1") for each in again] == [1, 1]
    for each in again:
        pool.release(each)


async def test_a_connection_released_in_a_transaction_is_closed(pool: Connections) -> None:
    connection = await pool.acquire(5)
    await connection.execute("BEGIN")
    pool.release(connection)

    again = await pool.acquire(5)

    assert again is not connection
    assert connection.is_closed()
    pool.release(again)


async def test_a_connection_with_a_cancelled_statement_is_reset_before_reuse(pool: Connections) -> None:
    other, connection = await acquire_all(pool)
    task = asyncio.create_task(connection.fetchval("SELECT pg_sleep(30)"))
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'"
    await wait_until(lambda: other.fetchval(sleeping, connection.get_server_pid()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pool.release(connection, cancelled=True)

    again = await pool.acquire(5)
    assert again is connection
    assert await again.fetchval("SELECT 1", timeout=0.5) == 1
    pool.release(again)
    pool.release(other)


@pytest.mark.parametrize("turns", range(6))
async def test_a_transaction_cancelled_while_it_begins_does_not_affect_the_next(
    database_url: str, cast: Cast, turns: int
) -> None:
    database = await Database.connect(database_url, role=APP_ROLE, size=1, acquire_seconds=5, statement_seconds=5)

    async def begin() -> None:
        async with database.transaction("loop"):
            await asyncio.sleep(30)

    for number in range(10):
        task = asyncio.create_task(begin())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        patient_id = f"cancelled-{uuid4()}"
        insert = Statement("INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')", ["id"])
        acquired = database.autocommit("loop", 5) if number % 2 else database.transaction("loop")
        async with acquired as connection:
            await connection.fetch(insert, id=patient_id)
        known = "SELECT count(*) FROM patient_graph.patients WHERE id = $1"
        assert await cast.connection.fetchval(known, patient_id) == 1
    await database.close()


async def test_a_long_answer_reuses_the_memory_of_the_previous_one(database_url: str) -> None:
    database = await Database.connect(
        database_url, role=APP_ROLE, size=1, acquire_seconds=5, statement_seconds=5, long_answers=True
    )
    answer = Statement("SELECT string_agg(repeat('x', 700), '') FROM generate_series(1, 500)")
    faults = []

    async with database.connection("loop") as connection:
        row = await connection.fetch_one(Statement("SELECT pg_backend_pid()"))
        assert row is not None
        for _ in range(3):
            await connection.fetch(answer)
            faults.append(page_faults(row["pg_backend_pid"]))

    # The answer itself needs 85 pages.
    assert faults[2] - faults[1] < 20
    await database.close()


def page_faults(process: int) -> int:
    """Return the number of minor page faults of a process. Source: proc_pid_stat(5), minflt."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[7])


async def test_a_read_is_served_while_another_statement_hangs(
    database_url: str, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await Database.connect(database_url, role=APP_ROLE, size=4, acquire_seconds=0.3, statement_seconds=5)
    patient_id = await cast.patient()
    text = "SELECT id AS key FROM patient_graph.patients WHERE id = ANY($1::text[]) AND brand_id = $2"
    find, ours = Statement(text, ["ids", "brand_id"]), PoolConnection.fetch
    hanging: list[int] = []

    async def hang(self: PoolConnection, statement: Statement, **values: object) -> list[Row]:
        if not hanging:
            hanging.append(1)
            await asyncio.sleep(3)
        return await ours(self, statement, **values)

    monkeypatch.setattr(PoolConnection, "fetch", hang)
    slow = asyncio.create_task(database.fetch_one_batched("loop", find, "ids", patient_id, most_bytes=1_000))
    await wait_until(lambda: hanging)

    async with asyncio.timeout(2):
        row = await database.fetch_one_batched("loop", find, "ids", patient_id, most_bytes=1_000)

    assert row is not None
    assert row["key"] == patient_id
    assert await database.fetch_one_batched("loop", find, "ids", "nobody", most_bytes=1_000) is None
    slow.cancel()
    await database.close()


async def test_a_connection_that_fails_to_open_uses_no_slot(database_url: str) -> None:
    accepts = False

    async def connect() -> asyncpg.Connection:
        if not accepts:
            raise ConnectionRefusedError
        return await asyncpg.connect(database_url)

    pool = Pool(connect, 1)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await pool.acquire(5)
    accepts = True

    connection = await pool.acquire(5)
    pool.release(connection)
    await pool.close(5)
    assert connection.is_closed()


@pytest.mark.parametrize(
    "instant",
    [
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime(1999, 12, 31, 23, 59, 59, 999_999, UTC),
        datetime(2026, 11, 29, 12, 0, 0, 120_000, UTC),
        datetime(2026, 11, 29, 12, 0, 0, 0, timezone(timedelta(hours=-3, minutes=-30))),
    ],
    ids=str,
)
async def test_an_instant_is_unchanged_whatever_the_settings_of_the_server(
    database_url: str, instant: datetime
) -> None:
    server_options = quote("-c datestyle=German -c timezone=Asia/Kathmandu")
    url = f"{database_url}{'&' if '?' in database_url else '?'}options={server_options}"
    database = await Database.connect(url, role=APP_ROLE, size=1, acquire_seconds=5, statement_seconds=5)
    asked = Statement("SELECT sent, ARRAY[sent], isfinite(sent) FROM CAST($1 AS timestamptz) AS sent", ["instant"])

    async with database.connection("loop") as connection:
        row = await connection.fetch_one(asked, instant=instant)
    await database.close()

    assert row is not None
    assert tuple(row) == (instant, [instant], True)
    assert row[0].tzinfo is UTC


async def test_closing_waits_for_acquired_connections(pool: Connections) -> None:
    one, other = await acquire_all(pool)
    closing = asyncio.create_task(pool.close(5))
    await asyncio.sleep(0.05)
    assert not closing.done()
    pool.release(one)
    pool.release(other)
    await closing
    assert one.is_closed()
    assert other.is_closed()

    with pytest.raises(asyncpg.InterfaceError):
        await pool.acquire(5)


async def test_closing_terminates_connections_after_its_timeout(database_url: str) -> None:
    pool: Connections = Pool(lambda: asyncpg.connect(database_url), 2)
    held = await pool.acquire(5)
    async with asyncio.timeout(3):
        await pool.close(0.05)

    assert held.is_closed()
    pool.release(held)
