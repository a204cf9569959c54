"""Every failure says whether it was recorded, and is never wrong: the wire to the database is cut at every point."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import pytest

from gateway.settings import Settings
from tests.cast import Cast
from tests.doors import Door, GraphQLDoor, RestDoor, Service
from tests.tcp_proxy import TcpProxy
from tests.waiting import wait_until

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}


class Wired(NamedTuple):
    """A service at the end of a wire."""

    service: Service
    proxy: TcpProxy


@pytest.fixture
def form() -> str:
    """How a recording is sent to PostgreSQL; a test may choose."""
    return "one statement"


@pytest.fixture
async def wired(database_url: str, form: str) -> AsyncIterator[Wired]:
    async with TcpProxy.to(database_url) as (proxy, near_url):
        settings = Settings(
            database_url=near_url, database_pool_size=2, database_cluster=form == "statement by statement"
        )
        async with Service.running(settings) as service:
            yield Wired(service, proxy)


@pytest.fixture(params=[RestDoor, GraphQLDoor], ids=["rest", "graphql"])
def door(request: pytest.FixtureRequest, wired: Wired) -> Door:
    door: Door = request.param(wired.service)
    return door


def says(*words: bytes) -> Callable[[bytes], bool]:
    return lambda said: any(word in said for word in words)


KEPT = "before it is confirmed"

# What the gateway says at each step of a recording, and PostgreSQL's word for "done": in the form that goes step by
# step, and in the one that is a single statement. Once that is on its way, nobody but the database knows.
STEPS = {
    "statement by statement": {
        "at the beginning": ("before", says(b"BEGIN"), "no"),
        "at the patient": ("before", says(b"time_at", b"patient_graph.patients"), "no"),
        "at the encounter": ("before", says(b"INTO patient_graph.encounters"), "no"),
        "at the version": ("before", says(b"INTO patient_graph.encounter_versions"), "no"),
        "at the audit entry": ("before", says(b"INTO patient_graph.audit_log ("), "no"),
        "at the event": ("before", says(b"INTO patient_graph.outbox"), "no"),
        "before the commit arrives": ("before", says(b"COMMIT"), "unknown"),
        KEPT: ("after", says(b"COMMIT\x00"), "unknown"),
    },
    "one statement": {
        "at the beginning": ("before", says(b"app.brand_id"), "no"),
        "before it is understood": ("before", says(b"WITH sent AS"), "unknown"),
        "before it arrives": ("before", says(b"Fasting."), "unknown"),
        KEPT: ("after", says(b""), "unknown"),
    },
}


def arm(proxy: TcpProxy, form: str, step: str) -> str:
    """Let the wire be cut at a step of the recording, and say what is to be told of it."""
    side, cut, recorded = STEPS[form][step]
    arrived = False

    def watched(said: bytes) -> bool:
        nonlocal arrived
        arrived |= b"Fasting." in said
        return side == "before" and cut(said)

    proxy.before = watched
    proxy.after = lambda said: side == "after" and arrived and cut(said)
    return recorded


EVERY_STEP = [(form, step) for form, steps in STEPS.items() for step in steps]


@pytest.mark.parametrize(("form", "step"), EVERY_STEP)
async def test_a_cut_at_any_step_is_told_as_it_is(wired: Wired, door: Door, cast: Cast, form: str, step: str) -> None:
    patient_id = await cast.patient()
    recorded = arm(wired.proxy, form, step)

    outcome = await door.record(patient_id, VISIT)

    kept = await cast.count("encounters", patient_id)
    assert (outcome.code, outcome.recorded) == ("temporarily_unavailable", recorded)
    assert kept == (1 if step == KEPT else 0)
    for table in ("audit_log", "outbox", "encounter_versions"):
        assert kept == await cast.count(table, patient_id)


@pytest.mark.parametrize(("form", "step"), EVERY_STEP)
async def test_after_a_cut_the_same_key_finds_out_and_records_once(
    wired: Wired, door: Door, cast: Cast, form: str, step: str
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    arm(wired.proxy, form, step)
    await door.record(patient_id, VISIT, key=key)
    wired.proxy.restore()

    again = await door.record(patient_id, VISIT, key=key)

    assert again.code is None
    assert again.replayed == (step == KEPT)
    assert await cast.count("encounters", patient_id) == 1


@pytest.mark.parametrize("form", STEPS)
async def test_a_key_that_is_taken_and_cannot_be_read_is_not_told_to_be_free(
    wired: Wired, door: Door, cast: Cast
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    assert (await door.record(patient_id, VISIT, key=key)).code is None
    wired.proxy.before = says(b"SELECT patient_graph.idempotency_keys")

    again = await door.record(patient_id, VISIT, key=key)
    wired.proxy.restore()

    assert (again.code, again.recorded) == ("temporarily_unavailable", "unknown")
    assert (await door.record(patient_id, VISIT, key=key)).replayed


async def test_an_answer_of_success_leaves_only_after_the_commit_was_confirmed(
    wired: Wired, door: Door, cast: Cast
) -> None:
    patient_id = await cast.patient()
    confirmed: list[int] = []

    def note(said: bytes) -> bool:
        if b"SELECT 1\x00" in said:
            confirmed.append(1)
        return False

    wired.proxy.after = note

    outcome = await door.record(patient_id, VISIT)

    assert outcome.code is None
    assert confirmed


async def test_a_database_that_is_away_is_503_at_once_and_the_gateway_recovers_by_itself(
    wired: Wired, door: Door, cast: Cast
) -> None:
    patient_id = await cast.patient()
    wired.proxy.refuse_connections = True
    wired.proxy.before = says(b"")

    begun = time.monotonic()
    refused = [await door.record(patient_id, VISIT) for _ in range(3)]
    waited = time.monotonic() - begun
    wired.proxy.restore()

    assert {(outcome.code, outcome.recorded) for outcome in refused} == {("temporarily_unavailable", "no")}
    assert waited < 6  # a second for each, and room for a slow machine
    assert (await door.record(patient_id, VISIT)).code is None


@pytest.mark.parametrize("form", STEPS)
async def test_a_full_pool_is_503_within_its_deadline_and_records_nothing(
    database_url: str, wired: Wired, door: Door, cast: Cast
) -> None:
    patient_id = await cast.patient()
    blocker = await asyncpg.connect(database_url)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with blocker.transaction():
        await blocker.execute("SELECT FROM patient_graph.patients WHERE id = $1 FOR UPDATE", patient_id)
        under_way = []
        for number in (1, 2):
            under_way.append(asyncio.create_task(door.record(patient_id, VISIT)))
            await wait_until(partial(has, cast, waiting, number))

        refused = await asyncio.gather(*(door.record(patient_id, VISIT) for _ in range(6)))
    await blocker.close()
    recorded = await asyncio.gather(*under_way)

    assert {(outcome.code, outcome.recorded) for outcome in refused} == {("temporarily_unavailable", "no")}
    assert {outcome.code for outcome in recorded} == {None}
    assert await cast.count("encounters", patient_id) == len(recorded)


async def has(cast: Cast, query: str, number: int) -> bool:
    return await cast.connection.fetchval(query) == number


SILENT = [
    ("statement by statement", "at the encounter"),
    ("statement by statement", "before the commit arrives"),
    ("statement by statement", KEPT),
    ("one statement", "before it arrives"),
    ("one statement", KEPT),
]


@pytest.mark.parametrize("direction", ["one way", "both ways"])
@pytest.mark.parametrize("silence", SILENT, ids=", ".join)
@pytest.mark.parametrize("kind", [RestDoor, GraphQLDoor], ids=["rest", "graphql"])
async def test_a_network_that_swallows_what_is_said_is_told_in_time_and_as_it_is(
    database_url: str, cast: Cast, kind: type[Door], silence: tuple[str, str], direction: str
) -> None:
    """Nobody closes the connection. One way, the server may notice that we are idle in the transaction, and says so."""
    patient_id = await cast.patient()
    form, step = silence
    async with TcpProxy.to(database_url) as (proxy, near_url):
        cluster = form == "statement by statement"
        settings = Settings(database_url=near_url, database_statement_seconds=1, database_cluster=cluster)
        async with Service.running(settings) as service:
            one_way = "onward" if STEPS[form][step][0] == "before" else "back"
            proxy.blackholed = frozenset({one_way} if direction == "one way" else {"onward", "back"})
            recorded = arm(proxy, form, step)

            async with asyncio.timeout(60):
                outcome = await kind(service).record(patient_id, VISIT)

            assert (outcome.code, outcome.recorded) == ("temporarily_unavailable", recorded)
            proxy.restore()
            async with asyncio.timeout(30):
                while (await kind(service).record(patient_id, VISIT)).code is not None:  # noqa: ASYNC110 - it says so itself
                    await asyncio.sleep(0.05)
        # What was swallowed may still arrive, late. What was said to be lost stays lost all the same.
        kept = await cast.count("encounters", patient_id) - 1
        assert kept == 1 if step == KEPT else kept in ({0} if recorded == "no" else {0, 1})


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

    async def is_whole() -> bool:
        # What was sent is kept although nobody waits for it any more, and may be on its way still.
        tables = ("encounters", "encounter_versions", "audit_log", "outbox")
        return len({await cast.count(table, patient_id) for table in tables}) == 1

    await wait_until(is_whole)
