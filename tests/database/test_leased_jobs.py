"""A duty is done by one gateway at a time, and by another within seconds when the first is gone."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest

from gateway import jobs
from gateway.database.database import RELAY_ROLE, Database
from gateway.jobs import LeasedJob, run_jobs, take_lease
from resolvers.idempotency import prune_keys
from tests.cast import Cast


@pytest.fixture
async def relay(database_url: str) -> AsyncIterator[Database]:
    database = await Database.connect(database_url, role=RELAY_ROLE, size=3, acquire_seconds=1, statement_seconds=5)
    yield database
    await database.close()


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LEASE_TIME", timedelta(milliseconds=200))


async def test_one_holds_a_lease_and_may_renew_it(relay: Database) -> None:
    name, one, two = str(uuid4()), uuid4(), uuid4()

    assert await take_lease(relay, name, one)
    assert await take_lease(relay, name, one)
    assert not await take_lease(relay, name, two)


async def test_another_takes_over_when_the_holder_is_gone(relay: Database) -> None:
    rounds: list[str] = []

    def duty(who: str) -> LeasedJob:
        async def round_(_: Database) -> bool:
            rounds.append(who)
            return False

        return LeasedJob(name, round_, pause_seconds=0.01)

    name = str(uuid4())
    first = asyncio.create_task(run_jobs(relay, [duty("first")]))
    await _until(lambda: "first" in rounds)
    second = asyncio.create_task(run_jobs(relay, [duty("second")]))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)

    await _until(lambda: "second" in rounds)

    second.cancel()
    await asyncio.gather(second, return_exceptions=True)


async def test_another_takes_over_from_one_who_died_without_a_word(relay: Database) -> None:
    rounds = 0

    async def round_(_: Database) -> bool:
        nonlocal rounds
        rounds += 1
        return False

    name = str(uuid4())
    assert await take_lease(relay, name, uuid4())
    living = asyncio.create_task(run_jobs(relay, [LeasedJob(name, round_, pause_seconds=0.01)]))

    await _until(lambda: rounds)

    living.cancel()
    await asyncio.gather(living, return_exceptions=True)


async def test_the_lease_is_kept_through_a_round_longer_than_it(relay: Database) -> None:
    started, finish, other = asyncio.Event(), asyncio.Event(), uuid4()

    async def long_round(_: Database) -> bool:
        started.set()
        await finish.wait()
        return False

    name = str(uuid4())
    at_work = asyncio.create_task(run_jobs(relay, [LeasedJob(name, long_round, pause_seconds=0.01)]))
    await started.wait()
    until = asyncio.get_running_loop().time() + 3 * jobs.LEASE_TIME.total_seconds()
    while asyncio.get_running_loop().time() < until:
        assert not await take_lease(relay, name, other)

    at_work.cancel()
    await asyncio.gather(at_work, return_exceptions=True)
    assert await take_lease(relay, name, other), "it was given up"


async def test_a_round_is_cut_off_when_another_has_the_lease(relay: Database, cast: Cast) -> None:
    started, cut_off = asyncio.Event(), asyncio.Event()

    async def long_round(_: Database) -> bool:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cut_off.set()
        return False

    name = str(uuid4())
    at_work = asyncio.create_task(run_jobs(relay, [LeasedJob(name, long_round, pause_seconds=0.01)]))
    await started.wait()
    await cast.connection.execute(
        "UPDATE gateway.leases SET holder = gen_random_uuid(), expires_at = now() + '1 hour' WHERE name = $1", name
    )

    async with asyncio.timeout(5):
        await cut_off.wait()

    at_work.cancel()
    await asyncio.gather(at_work, return_exceptions=True)


async def test_expired_keys_are_pruned_and_others_are_not(relay: Database, cast: Cast) -> None:
    patient_id = await cast.patient()
    for key, age in (("old", "-1 second"), ("young", "1 day")):
        await cast.connection.execute(
            "INSERT INTO patient_graph.idempotency_keys"
            " (brand_id, client_id, key, request_hash, patient_id, encounter_id, answer, expires_at)"
            " VALUES ('loop', 'test', $1, '', $2, gen_random_uuid(), '', now() + $3::text::interval)",
            f"{patient_id}-{key}",
            patient_id,
            age,
        )

    assert await prune_keys(relay) is False

    kept = await cast.connection.fetch(
        "SELECT key FROM patient_graph.idempotency_keys WHERE patient_id = $1", patient_id
    )
    assert [row["key"] for row in kept] == [f"{patient_id}-young"]


async def _until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is a list that a duty appends to
            await asyncio.sleep(0.01)
