"""Leased jobs: one process runs a job at a time; another takes over within seconds."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest

from gateway import jobs
from gateway.database.database import RELAY_ROLE, Database
from gateway.jobs import FAILED_ROUNDS, LeasedJob, run_jobs, take_lease
from resolvers.errors import TemporarilyUnavailable
from resolvers.idempotency import prune_keys
from tests.cast import Cast
from tests.waiting import wait_until


@pytest.fixture
async def relay(database_url: str) -> AsyncIterator[Database]:
    database = await Database.connect(database_url, role=RELAY_ROLE, size=3, acquire_seconds=1, statement_seconds=5)
    yield database
    await database.close()


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LEASE_TIME", timedelta(milliseconds=200))


async def test_a_lease_has_one_holder_which_may_renew_it(relay: Database) -> None:
    name, one, two = str(uuid4()), uuid4(), uuid4()

    assert await take_lease(relay, name, one)
    assert await take_lease(relay, name, one)
    assert not await take_lease(relay, name, two)


@pytest.mark.usefixtures("short_leases")
async def test_another_process_takes_over_when_the_holder_stops(relay: Database) -> None:
    runs: list[str] = []

    def job(who: str) -> LeasedJob:
        async def run_once(_: Database) -> bool:
            runs.append(who)
            return False

        return LeasedJob(name, run_once, pause_seconds=0.01)

    name = str(uuid4())
    first = asyncio.create_task(run_jobs(relay, [job("first")]))
    await wait_until(lambda: "first" in runs)
    second = asyncio.create_task(run_jobs(relay, [job("second")]))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)

    await wait_until(lambda: "second" in runs)

    second.cancel()
    await asyncio.gather(second, return_exceptions=True)


@pytest.mark.usefixtures("short_leases")
async def test_another_process_takes_over_when_a_lease_expires(relay: Database) -> None:
    runs = 0

    async def run_once(_: Database) -> bool:
        nonlocal runs
        runs += 1
        return False

    name = str(uuid4())
    assert await take_lease(relay, name, uuid4())
    successor = asyncio.create_task(run_jobs(relay, [LeasedJob(name, run_once, pause_seconds=0.01)]))

    await wait_until(lambda: runs)

    successor.cancel()
    await asyncio.gather(successor, return_exceptions=True)


@pytest.mark.usefixtures("short_leases")
async def test_another_process_takes_over_when_the_rounds_of_the_holder_fail(relay: Database) -> None:
    runs: list[str] = []

    def job(who: str, error: Exception | None) -> LeasedJob:
        async def run_once(_: Database) -> bool:
            runs.append(who)
            if error:
                raise error
            return False

        return LeasedJob(name, run_once, pause_seconds=0.01)

    name = str(uuid4())
    failing = [asyncio.create_task(run_jobs(relay, [job("fails", TemporarilyUnavailable())]))]
    await wait_until(lambda: runs)
    failing.append(asyncio.create_task(run_jobs(relay, [job("works", None)])))

    await wait_until(lambda: "works" in runs)

    # On a busy machine, the lease may expire before the other process asks for it, and the holder takes it again.
    assert runs.index("works") in {FAILED_ROUNDS, 2 * FAILED_ROUNDS}
    for each in failing:
        each.cancel()
    await asyncio.gather(*failing, return_exceptions=True)


@pytest.mark.usefixtures("short_leases")
async def test_a_lease_is_renewed_during_a_long_run(relay: Database) -> None:
    started, finish, other = asyncio.Event(), asyncio.Event(), uuid4()

    async def long_run(_: Database) -> bool:
        started.set()
        await finish.wait()
        return False

    name = str(uuid4())
    running = asyncio.create_task(run_jobs(relay, [LeasedJob(name, long_run, pause_seconds=0.01)]))
    await started.wait()
    until = asyncio.get_running_loop().time() + 3 * jobs.LEASE_TIME.total_seconds()
    while asyncio.get_running_loop().time() < until:
        assert not await take_lease(relay, name, other)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await take_lease(relay, name, other), "the lease was not released"


@pytest.mark.usefixtures("short_leases")
async def test_a_run_is_cancelled_when_its_lease_is_lost(relay: Database, cast: Cast) -> None:
    started, cut_off = asyncio.Event(), asyncio.Event()

    async def long_run(_: Database) -> bool:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cut_off.set()
        return False

    name = str(uuid4())
    running = asyncio.create_task(run_jobs(relay, [LeasedJob(name, long_run, pause_seconds=0.01)]))
    await started.wait()
    await cast.connection.execute(
        "UPDATE gateway.leases SET holder = gen_random_uuid(), expires_at = now() + '1 hour' WHERE name = $1", name
    )

    async with asyncio.timeout(5):
        await cut_off.wait()

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_only_expired_idempotency_keys_are_deleted(relay: Database, cast: Cast) -> None:
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
