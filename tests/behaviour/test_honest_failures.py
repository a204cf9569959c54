"""Every failure says whether it was recorded, and is never wrong: the wire to the database is cut at every point."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import pytest

from gateway.settings import Settings
from tests.cast import Cast
from tests.doors import Door, GraphQLDoor, RestDoor, Service
from tests.faults import Wire

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}


class Wired(NamedTuple):
    """A service at the end of a wire."""

    service: Service
    wire: Wire


@pytest.fixture
async def wired(database_url: str) -> AsyncIterator[Wired]:
    async with (
        Wire.to(database_url) as (wire, near_url),
        Service.running(Settings(database_url=near_url, database_pool_size=2)) as service,
    ):
        yield Wired(service, wire)


@pytest.fixture(params=[RestDoor, GraphQLDoor], ids=["rest", "graphql"])
def door(request: pytest.FixtureRequest, wired: Wired) -> Door:
    door: Door = request.param(wired.service)
    return door


def says(*words: bytes) -> Callable[[bytes], bool]:
    return lambda said: any(word in said for word in words)


# What the gateway says at each step of a recording, and PostgreSQL's word for "committed".
STEPS = {
    "at the beginning": ("before", says(b"BEGIN")),
    "at the patient": ("before", says(b"time_at", b"patient_graph.patients")),
    "at the encounter": ("before", says(b"INTO patient_graph.encounters")),
    "at the audit entry": ("before", says(b"INTO patient_graph.audit_log (")),
    "at the event": ("before", says(b"INTO patient_graph.outbox")),
    "before the commit arrives": ("before", says(b"COMMIT")),
    "before the commit is confirmed": ("after", says(b"COMMIT\x00")),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_cut_at_any_step_is_told_as_it_is(wired: Wired, door: Door, cast: Cast, step: str) -> None:
    patient_id = await cast.patient()
    side, cut = STEPS[step]
    setattr(wired.wire, side, cut)

    outcome = await door.record(patient_id, VISIT)

    kept = await cast.count("encounters", patient_id)
    assert outcome.code == "temporarily_unavailable"
    assert outcome.recorded == ("unknown" if "commit" in step else "no")
    assert kept == (1 if step == "before the commit is confirmed" else 0)
    assert kept == await cast.count("audit_log", patient_id) == await cast.count("outbox", patient_id)


@pytest.mark.parametrize("step", STEPS)
async def test_after_a_cut_the_same_key_finds_out_and_records_once(
    wired: Wired, door: Door, cast: Cast, step: str
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    side, cut = STEPS[step]
    setattr(wired.wire, side, cut)
    await door.record(patient_id, VISIT, key=key)
    wired.wire.mend()

    again = await door.record(patient_id, VISIT, key=key)

    assert again.code is None
    assert again.replayed == (step == "before the commit is confirmed")
    assert await cast.count("encounters", patient_id) == 1


async def test_an_answer_of_success_leaves_only_after_the_commit_was_confirmed(
    wired: Wired, door: Door, cast: Cast
) -> None:
    patient_id = await cast.patient()
    confirmed: list[int] = []

    def note(said: bytes) -> bool:
        if b"COMMIT\x00" in said:
            confirmed.append(1)
        return False

    wired.wire.after = note

    outcome = await door.record(patient_id, VISIT)

    assert outcome.code is None
    assert confirmed


async def test_a_database_that_is_away_is_503_at_once_and_the_gateway_recovers_by_itself(
    wired: Wired, door: Door, cast: Cast
) -> None:
    patient_id = await cast.patient()
    wired.wire.refusing = True
    wired.wire.before = says(b"")

    begun = time.monotonic()
    refused = [await door.record(patient_id, VISIT) for _ in range(3)]
    waited = time.monotonic() - begun
    wired.wire.mend()

    assert {(outcome.code, outcome.recorded) for outcome in refused} == {("temporarily_unavailable", "no")}
    assert waited < 6  # a second for each, and room for a slow machine
    assert (await door.record(patient_id, VISIT)).code is None


async def test_a_full_pool_is_503_within_its_deadline_and_records_nothing(
    database_url: str, wired: Wired, door: Door, cast: Cast
) -> None:
    patient_id = await cast.patient()
    blocker = await asyncpg.connect(database_url)
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("LOCK TABLE patient_graph.outbox IN ACCESS EXCLUSIVE MODE")

    waiting = [asyncio.create_task(door.record(patient_id, VISIT)) for _ in range(6)]
    done, pending = await asyncio.wait(waiting, timeout=8, return_when=asyncio.FIRST_COMPLETED)
    async with asyncio.timeout(8):
        while len(done) < 4:
            done, pending = await asyncio.wait(waiting, timeout=0.05)
    refused = [task.result() for task in done]
    await transaction.rollback()
    await blocker.close()
    recorded = await asyncio.gather(*pending)

    assert {(outcome.code, outcome.recorded) for outcome in refused} == {("temporarily_unavailable", "no")}
    assert {outcome.code for outcome in recorded} == {None}
    assert await cast.count("encounters", patient_id) == len(recorded) == 2


async def test_a_client_that_goes_away_frees_its_connection_and_leaves_a_whole_record_or_none(
    wired: Wired, cast: Cast
) -> None:
    patient_id = await cast.patient()
    tasks = [asyncio.create_task(RestDoor(wired.service).record(patient_id, VISIT)) for _ in range(40)]
    for turns, task in enumerate(tasks):
        for _ in range(turns % 9):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    # With a pool of two, one connection that was not given back would show at once.
    assert (await RestDoor(wired.service).record(patient_id, VISIT)).code is None
    kept = await cast.count("encounters", patient_id)
    assert kept == await cast.count("audit_log", patient_id) == await cast.count("outbox", patient_id)
