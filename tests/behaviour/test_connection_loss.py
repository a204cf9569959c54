"""Every failure reports truthfully whether the encounter was recorded: the connection is cut at every step."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
import pytest

from gateway.settings import Settings
from tests import citus
from tests.cast import Cast
from tests.doors import Door, GraphQLDoor, RestDoor, Service
from tests.tcp_proxy import TcpProxy
from tests.waiting import wait_until

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}


class ProxiedService(NamedTuple):
    """A service whose database connections run through a proxy."""

    service: Service
    proxy: TcpProxy


@pytest.fixture
def form() -> str:
    """The form in which a recording is sent to PostgreSQL; a test may override it."""
    return "statement by statement" if citus.COORDINATOR_URL else "one statement"


@pytest.fixture
async def proxied(database_url: str, form: str) -> AsyncIterator[ProxiedService]:
    async with TcpProxy.to(database_url) as (proxy, near_url):
        settings = Settings(
            database_url=near_url, database_pool_size=2, database_cluster=form == "statement by statement"
        )
        async with Service.running(settings) as service:
            yield ProxiedService(service, proxy)


@pytest.fixture(params=[RestDoor, GraphQLDoor], ids=["rest", "graphql"])
def door(request: pytest.FixtureRequest, proxied: ProxiedService) -> Door:
    door: Door = request.param(proxied.service)
    return door


def contains(*words: bytes) -> Callable[[bytes], bool]:
    return lambda sent: any(word in sent for word in words)


COMMITTING = "before the commit arrives"
COMMITTED = "before it is confirmed"

# The step to cut, and what `recorded` must report. "before" cuts on bytes that the gateway sends, "after" on the
# confirmation of PostgreSQL. A single statement commits by itself, so once it is sent the outcome is unknown.
STEPS = {
    "statement by statement": {
        "at the beginning": ("before", contains(b"BEGIN"), "no"),
        "at the patient": ("before", contains(b"time_at", b"patient_graph.patients"), "no"),
        "at the encounter": ("before", contains(b"INTO patient_graph.encounters"), "no"),
        "at the version": ("before", contains(b"INTO patient_graph.encounter_versions"), "no"),
        "at the audit entry": ("before", contains(b"INTO patient_graph.audit_log ("), "no"),
        "at the event": ("before", contains(b"INTO patient_graph.outbox"), "no"),
        COMMITTING: ("before", contains(b"COMMIT"), "unknown"),
        COMMITTED: ("after", contains(b"COMMIT\x00"), "unknown"),
    },
    "one statement": {
        "at the beginning": ("before", contains(b"app.brand_id"), "no"),
        "before it is parsed": ("before", contains(b"WITH sent AS"), "unknown"),
        "before it arrives": ("before", contains(b"Fasting."), "unknown"),
        COMMITTED: ("after", contains(b""), "unknown"),
    },
}


def cut_at(proxy: TcpProxy, form: str, step: str) -> str:
    """Arrange a cut at a step of the recording; return the value of `recorded` that must be reported."""
    side, cut, recorded = STEPS[form][step]
    arrived = False

    def watched(sent: bytes) -> bool:
        nonlocal arrived
        arrived |= b"Fasting." in sent
        # On a cluster, the statement that finds the encounter is a transaction, and so has a commit of its own.
        return side == "before" and (arrived or step != COMMITTING) and cut(sent)

    proxy.before = watched
    proxy.after = lambda sent: side == "after" and arrived and cut(sent)
    return recorded


EVERY_STEP = [(form, step) for form, steps in STEPS.items() for step in steps]


@pytest.mark.parametrize(("form", "step"), EVERY_STEP)
async def test_a_cut_at_any_step_is_reported_truthfully(
    proxied: ProxiedService, door: Door, cast: Cast, form: str, step: str
) -> None:
    patient_id = await cast.patient()
    recorded = cut_at(proxied.proxy, form, step)

    outcome = await door.record(patient_id, VISIT)

    kept = await cast.count("encounters", patient_id)
    assert (outcome.code, outcome.recorded) == ("temporarily_unavailable", recorded)
    assert kept == (1 if step == COMMITTED else 0)
    for table in ("audit_log", "outbox", "encounter_versions"):
        assert kept == await cast.count(table, patient_id)


@pytest.mark.parametrize(("form", "step"), EVERY_STEP)
async def test_after_a_cut_the_same_key_records_once(
    proxied: ProxiedService, door: Door, cast: Cast, form: str, step: str
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    cut_at(proxied.proxy, form, step)
    await door.record(patient_id, VISIT, key=key)
    proxied.proxy.restore()

    again = await door.record(patient_id, VISIT, key=key)

    assert again.code is None
    assert again.replayed == (step == COMMITTED)
    assert await cast.count("encounters", patient_id) == 1


@pytest.mark.parametrize("form", STEPS)
async def test_a_used_key_that_cannot_be_read_reports_recorded_as_unknown(
    proxied: ProxiedService, door: Door, cast: Cast
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    assert (await door.record(patient_id, VISIT, key=key)).code is None
    proxied.proxy.before = contains(b"SELECT patient_graph.idempotency_keys")

    again = await door.record(patient_id, VISIT, key=key)
    proxied.proxy.restore()

    assert (again.code, again.recorded) == ("temporarily_unavailable", "unknown")
    assert (await door.record(patient_id, VISIT, key=key)).replayed


CHANGE = """mutation ($id: ID!, $key: String) {
  amendEncounter(id: $id, expectedVersion: 1, input: {notes: "Fasting."}, idempotencyKey: $key) {
    __typename
    ... on EncounterChanged { replayed encounter { version notes } }
  }
}"""
# A change is a transaction in both forms.
STEPS_OF_A_CHANGE = ("at the version", "at the audit entry", "at the event", COMMITTING, COMMITTED)


async def change(proxied: ProxiedService, encounter_id: str, key: str) -> dict[str, Any]:
    """Amend an encounter; return the payload, or the extensions of the error."""
    body = await proxied.service.graphql(CHANGE, {"id": encounter_id, "key": key})
    return body["data"]["amendEncounter"] if body.get("data") else body["errors"][0]["extensions"]


@pytest.fixture
async def encounter_id(cast: Cast) -> str:
    """An encounter that was not recorded through the proxy, so that no statement of a change is prepared yet."""
    (patient_id,) = await cast.patients(1, visits=["lab"])
    (row,) = await cast.rows(patient_id)
    return str(row["id"])


@pytest.mark.parametrize("form", STEPS)
@pytest.mark.parametrize("step", STEPS_OF_A_CHANGE)
async def test_after_a_cut_the_same_key_changes_once(
    proxied: ProxiedService, cast: Cast, encounter_id: str, step: str
) -> None:
    key = str(uuid4())
    recorded = cut_at(proxied.proxy, "statement by statement", step)

    lost = await change(proxied, encounter_id, key)
    proxied.proxy.restore()
    again = await change(proxied, encounter_id, key)

    assert (lost["code"], lost["recorded"]) == ("temporarily_unavailable", recorded)
    # Without the key, the second request would be stale after a commit.
    assert again == {
        "__typename": "EncounterChanged",
        "replayed": step == COMMITTED,
        "encounter": {"version": 2, "notes": "Fasting."},
    }


@pytest.mark.parametrize("form", STEPS)
async def test_an_unread_key_of_a_change_reports_recorded_as_unknown(
    proxied: ProxiedService, encounter_id: str
) -> None:
    key = str(uuid4())
    await change(proxied, encounter_id, key)
    proxied.proxy.before = contains(b"SELECT patient_graph.idempotency_keys")

    again = await change(proxied, encounter_id, key)
    proxied.proxy.restore()

    assert (again["code"], again["recorded"]) == ("temporarily_unavailable", "unknown")
    assert (await change(proxied, encounter_id, key))["replayed"]


async def test_a_success_is_sent_only_after_the_commit_was_confirmed(
    proxied: ProxiedService, door: Door, cast: Cast
) -> None:
    patient_id = await cast.patient()
    confirmed: list[int] = []

    def confirm(sent: bytes) -> bool:
        if b"SELECT 1\x00" in sent:
            confirmed.append(1)
        return False

    proxied.proxy.after = confirm

    outcome = await door.record(patient_id, VISIT)

    assert outcome.code is None
    assert confirmed


async def test_an_unavailable_database_is_503_at_once_and_the_gateway_recovers(
    proxied: ProxiedService, door: Door, cast: Cast
) -> None:
    patient_id = await cast.patient()
    proxied.proxy.refuse_connections = True
    proxied.proxy.before = contains(b"")

    started = time.monotonic()
    refused = [await door.record(patient_id, VISIT) for _ in range(3)]
    waited = time.monotonic() - started
    proxied.proxy.restore()

    assert {(outcome.code, outcome.recorded) for outcome in refused} == {("temporarily_unavailable", "no")}
    assert waited < 6  # seconds: one for each, with a margin for a slow machine
    assert (await door.record(patient_id, VISIT)).code is None


@pytest.mark.parametrize("form", STEPS)
async def test_an_exhausted_pool_is_503_within_its_deadline_and_records_nothing(
    database_url: str, proxied: ProxiedService, door: Door, cast: Cast
) -> None:
    patient_id = await cast.patient()
    blocker = await asyncpg.connect(database_url)
    async with blocker.transaction():
        await blocker.execute("SELECT FROM patient_graph.patients WHERE id = $1 FOR UPDATE", patient_id)
        waiting_recordings = []
        for number in (1, 2):
            waiting_recordings.append(asyncio.create_task(door.record(patient_id, VISIT)))
            await wait_until(partial(has, cast, citus.WAITING_SESSIONS, number))

        refused = await asyncio.gather(*(door.record(patient_id, VISIT) for _ in range(6)))
    await blocker.close()
    recorded = await asyncio.gather(*waiting_recordings)

    assert {(outcome.code, outcome.recorded) for outcome in refused} == {("temporarily_unavailable", "no")}
    assert {outcome.code for outcome in recorded} == {None}
    assert await cast.count("encounters", patient_id) == len(recorded)


async def has(cast: Cast, query: str, number: int) -> bool:
    return await cast.connection.fetchval(query) == number


SILENT = [
    ("statement by statement", "at the encounter"),
    ("statement by statement", "before the commit arrives"),
    ("statement by statement", COMMITTED),
    ("one statement", "before it arrives"),
    ("one statement", COMMITTED),
]


@pytest.mark.parametrize("direction", ["one direction", "both directions"])
@pytest.mark.parametrize("silence", SILENT, ids=", ".join)
@pytest.mark.parametrize("kind", [RestDoor, GraphQLDoor], ids=["rest", "graphql"])
async def test_silently_dropped_packets_are_reported_truthfully_within_a_bound(
    database_url: str, cast: Cast, kind: type[Door], silence: tuple[str, str], direction: str
) -> None:
    """The connection stays open but silent. If one direction works, the server reports an idle transaction."""
    patient_id = await cast.patient()
    form, step = silence
    async with TcpProxy.to(database_url) as (proxy, near_url):
        cluster = form == "statement by statement"
        settings = Settings(database_url=near_url, database_statement_seconds=1, database_cluster=cluster)
        async with Service.running(settings) as service:
            direction_of_cut = "onward" if STEPS[form][step][0] == "before" else "back"
            proxy.blackholed = frozenset({direction_of_cut} if direction == "one direction" else {"onward", "back"})
            recorded = cut_at(proxy, form, step)

            async with asyncio.timeout(60):
                outcome = await kind(service).record(patient_id, VISIT)

            assert (outcome.code, outcome.recorded) == ("temporarily_unavailable", recorded)
            proxy.restore()
            async with asyncio.timeout(30):
                while (await kind(service).record(patient_id, VISIT)).code is not None:  # noqa: ASYNC110 - the condition is the outcome of a request
                    await asyncio.sleep(0.05)
        # The dropped bytes may arrive late. A recording that was reported as lost stays lost.
        kept = await cast.count("encounters", patient_id) - 1
        assert kept == 1 if step == COMMITTED else kept in ({0} if recorded == "no" else {0, 1})


async def test_a_cancelled_request_releases_its_connection_and_leaves_no_part(
    proxied: ProxiedService, cast: Cast
) -> None:
    patient_id = await cast.patient()
    tasks = [asyncio.create_task(RestDoor(proxied.service).record(patient_id, VISIT)) for _ in range(40)]
    for turns, task in enumerate(tasks):
        for _ in range(turns % 9):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    # The pool has two connections, so a single leaked one would already block.
    assert (await RestDoor(proxied.service).record(patient_id, VISIT)).code is None

    async def is_whole() -> bool:
        # A recording that was already sent is completed after its caller was cancelled.
        tables = ("encounters", "encounter_versions", "audit_log", "outbox")
        return len({await cast.count(table, patient_id) for table in tables}) == 1

    await wait_until(is_whole)
