"""Connections are lent to one at a time, and none is lost, whatever becomes of it or of who borrowed it."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.pool import Pool

Connections = Pool[asyncpg.Connection]


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Connections]:
    """A pool of two, with one connection open."""
    opened = Pool(lambda: asyncpg.connect(database_url), 2)
    await opened.open(1)
    yield opened
    await opened.close(5)


async def borrowed(pool: Connections) -> list[asyncpg.Connection]:
    """Borrow all there are."""
    return [await pool.take(5) for _ in range(pool.size)]


async def test_the_connection_used_last_is_lent_first(pool: Connections) -> None:
    one, other = await borrowed(pool)
    pool.give_back(one)
    pool.give_back(other)

    assert await pool.take(5) is other
    assert await pool.take(5) is one
    pool.give_back(one)
    pool.give_back(other)


async def test_whoever_finds_none_gets_the_next_one_in_the_order_of_coming(pool: Connections) -> None:
    one, other = await borrowed(pool)
    first, second = (asyncio.create_task(pool.take(5)) for _ in range(2))
    await asyncio.sleep(0)
    pool.give_back(one)
    pool.give_back(other)

    assert await first is one
    assert await second is other
    pool.give_back(one)
    pool.give_back(other)


async def test_whoever_waits_too_long_is_told_and_takes_nobodys_place(pool: Connections) -> None:
    connections = await borrowed(pool)
    with pytest.raises(TimeoutError):
        await pool.take(0.05)
    for each in connections:
        pool.give_back(each)

    assert set(await borrowed(pool)) == set(connections)
    for each in connections:
        pool.give_back(each)


async def test_a_connection_that_comes_when_nobody_waits_any_more_is_lent_to_the_next(pool: Connections) -> None:
    one, other = await borrowed(pool)
    waiting = asyncio.create_task(pool.take(5))
    await asyncio.sleep(0)
    pool.give_back(one)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert await pool.take(0.05) is one
    pool.give_back(one)
    pool.give_back(other)


@pytest.mark.parametrize("lost", ["in use", "idle"])
async def test_a_lost_connection_makes_room_for_another(pool: Connections, lost: str) -> None:
    connections = await borrowed(pool)
    if lost == "in use":
        connections[0].terminate()
    for each in connections:
        pool.give_back(each)
    if lost == "idle":
        connections[0].terminate()

    again = await borrowed(pool)

    assert connections[0] not in again
    assert [await each.fetchval("SELECT 1") for each in again] == [1, 1]
    for each in again:
        pool.give_back(each)


async def test_a_connection_left_in_a_transaction_is_not_lent_again(pool: Connections) -> None:
    connection = await pool.take(5)
    await connection.execute("BEGIN")
    pool.give_back(connection)

    again = await pool.take(5)

    assert again is not connection
    assert connection.is_closed()
    pool.give_back(again)


async def test_a_connection_whose_statement_was_called_off_serves_the_next_one(pool: Connections) -> None:
    connection = await pool.take(5)
    task = asyncio.create_task(connection.fetchval("SELECT pg_sleep(30)"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pool.give_back(connection)

    again = await pool.take(5)
    assert await again.fetchval("SELECT 1", timeout=5) == 1
    pool.give_back(again)


async def test_what_cannot_be_opened_takes_no_place(database_url: str) -> None:
    lets_in = False

    async def connect() -> asyncpg.Connection:
        if not lets_in:
            raise ConnectionRefusedError
        return await asyncpg.connect(database_url)

    pool = Pool(connect, 1)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await pool.take(5)
    lets_in = True

    connection = await pool.take(5)
    pool.give_back(connection)
    await pool.close(5)
    assert connection.is_closed()


async def test_closing_waits_for_what_is_in_use_but_not_for_ever(pool: Connections) -> None:
    one, other = await borrowed(pool)
    closing = asyncio.create_task(pool.close(5))
    await asyncio.sleep(0.05)
    assert not closing.done()
    pool.give_back(one)
    pool.give_back(other)
    await closing
    assert one.is_closed()
    assert other.is_closed()

    never = await pool.take(5)
    async with asyncio.timeout(3):
        await pool.close(0.05)
    pool.give_back(never)
