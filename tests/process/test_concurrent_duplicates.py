"""Exactly once: one request under one key from 200 callers at four gateways, one of which is killed."""

import asyncio
from itertools import count

import pytest

from tests.conftest import fresh_database
from tests.gateways import DOORS, WAITING, ClientAnswer, client, encounters_by_key, gateways, owner_connection
from tests.waiting import wait_until

CALLERS = 200
GATEWAYS = 4


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


async def test_concurrent_duplicates_at_four_gateways_record_one_encounter(url: str) -> None:
    async with gateways(url, GATEWAYS) as running, owner_connection(url) as connection, client() as ours:
        origins = [each.origin for each in running]
        tries: list[ClientAnswer] = []

        async def call(number: int) -> ClientAnswer:
            """Send the request until it is answered, each time to the next gateway, as a careful client does."""
            for again in count():
                answer = await DOORS[number // GATEWAYS % 2](ours, origins[(number + again) % GATEWAYS], "the-key")
                tries.append(answer)
                if answer.encounter_id:
                    return answer
                assert answer.code in {None, "temporarily_unavailable"}
                await asyncio.sleep(0.05)
            raise AssertionError

        async with connection.transaction():
            # All requests are running when the first gateway dies. At each gateway, one statement has a single caller,
            # and the later callers share another statement.
            await connection.execute("LOCK TABLE patient_graph.idempotency_keys IN ACCESS EXCLUSIVE MODE")
            calls = [asyncio.create_task(call(number)) for number in range(GATEWAYS)]
            await wait_until(lambda: are_waiting(connection, GATEWAYS))
            calls += [asyncio.create_task(call(number)) for number in range(GATEWAYS, CALLERS)]
            await wait_until(lambda: are_waiting(connection, 2 * GATEWAYS))
            running[0].process.kill()
            await wait_until(lambda: any(answer.status is None for answer in tries))
        answers = await asyncio.gather(*calls)
        # Two more requests after all others.
        answers += [await door(ours, origins[3], "the-key") for door in DOORS]

        kept = await encounters_by_key(connection)  # asserts one event and one audit entry
        counted = [
            await connection.fetchval(f"SELECT count(*) FROM patient_graph.{table}")
            for table in ("encounters", "outbox", "idempotency_keys")
        ]
        entries = await connection.fetchval(
            "SELECT count(*) FROM patient_graph.audit_log WHERE event_type = 'patient_graph.encounter.recorded'"
        )

    assert list(kept) == ["the-key"]
    assert counted == [1, 1, 1]
    assert entries == 1
    assert {answer.encounter_id for answer in answers} == set(kept.values())
    assert len({answer.body for answer in answers if answer.door == "rest"}) == 1
    assert {answer.door for answer in tries if answer.status is None} == {"rest", "graphql"}
    assert all(answer.recorded in {"no", "unknown"} for answer in tries if answer.code)


async def are_waiting(connection, number: int) -> bool:
    return await connection.fetchval(WAITING) >= number
