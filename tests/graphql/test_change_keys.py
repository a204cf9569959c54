"""Idempotency keys of changes: the same change under one key is made once, however often it is sent."""

import asyncio
import hashlib
import json
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.settings import Settings
from models import EncounterAction
from resolvers import json_text
from resolvers.access import Caller
from tests.cast import Cast
from tests.doors import GraphQLDoor, RestDoor, Service
from tests.graphql.test_external_ids import set_ids
from tests.graphql.test_lifecycle import act, changed, read, recorded
from tests.graphql.test_register_patient import register
from tests.waiting import wait_until

START, COMPLETE, AMEND = EncounterAction.START, EncounterAction.COMPLETE, EncounterAction.AMEND
TABLES = ("encounter_versions", "outbox", "audit_log")


@pytest.fixture
def service(service_in_either_form: Service) -> Service:
    return service_in_either_form


@pytest.fixture
def key() -> str:
    return f"key-{uuid4()}"


async def patient_of(cast: Cast, encounter_id: str) -> str:
    return await cast.connection.fetchval("SELECT patient_id FROM patient_graph.encounters WHERE id = $1", encounter_id)


async def rows_of(cast: Cast, encounter_id: str) -> dict[str, int]:
    """Return the number of versions, events and audit entries of an encounter, which is its patient's only one."""
    patient_id = await patient_of(cast, encounter_id)
    return {table: await cast.count(table, patient_id) for table in TABLES}


async def submission(service: Service, key: str) -> dict[str, Any]:
    query = "query ($key: String!) { submission(key: $key) { state encounter { id version } } }"
    return (await service.graphql(query, {"key": key}))["data"]["submission"]


# Encounters


@pytest.mark.parametrize("action", EncounterAction)
async def test_every_change_under_one_key_is_made_once(
    service: Service, cast: Cast, key: str, action: EncounterAction
) -> None:
    encounter_id = await recorded(service, cast)
    if action in {COMPLETE, EncounterAction.UNDO_START}:
        await changed(service, encounter_id, START)

    first = await act(service, encounter_id, action, key=key)
    rows = await rows_of(cast, encounter_id)
    again = await act(service, encounter_id, action, key=key)

    assert (first["replayed"], again["replayed"]) == (False, True)
    assert again["encounter"] == first["encounter"]
    assert await rows_of(cast, encounter_id) == rows


async def test_a_replay_shows_the_encounter_as_it_is_now(service: Service, cast: Cast, key: str) -> None:
    encounter_id = await recorded(service, cast)
    await act(service, encounter_id, START, 1, key=key)
    completed = await changed(service, encounter_id, COMPLETE)

    again = await act(service, encounter_id, START, 1, key=key)

    assert again == {"__typename": "EncounterChanged", "replayed": True, "encounter": completed}


async def test_a_used_key_is_refused_for_every_other_request(service: Service, cast: Cast, key: str) -> None:
    encounter_id, other_id = await recorded(service, cast), await recorded(service, cast)
    await act(service, encounter_id, AMEND, 1, key=key, input={"notes": "Fasting.", "reason": "Forgotten."})
    same = {"notes": "Fasting.", "reason": "Forgotten."}

    others = [
        await act(service, encounter_id, START, 1, key=key),
        await act(service, other_id, AMEND, 1, key=key, input=same),
        await act(service, str(uuid4()), AMEND, 1, key=key, input=same),
        await act(service, "no id", AMEND, 1, key=key, input=same),
        await act(service, encounter_id, AMEND, 2, key=key, input=same),
        await act(service, encounter_id, AMEND, key=key, input=same),
        await act(service, encounter_id, AMEND, 1, key=key, input=same | {"reason": "Corrected."}),
        await act(service, encounter_id, AMEND, 1, key=key, input=same | {"notes": None}),
        await act(service, encounter_id, AMEND, 1, key=key, input=same | {"chiefComplaint": None}),
        await register(service, key=key),
    ]

    assert {(each["__typename"], each["recorded"]) for each in others} == {("IdempotencyKeyReused", "NO")}
    assert (await read(service, encounter_id))["version"] == 2
    assert (await read(service, other_id))["version"] == 1


async def test_another_spelling_of_the_same_change_is_the_same_request(service: Service, cast: Cast, key: str) -> None:
    encounter_id = await recorded(service, cast)
    provider_id = str(uuid4())
    one = {"providerId": provider_id, "metadata": {"a": 1, "b": 2}}
    two = {"providerId": provider_id.upper(), "metadata": {"b": 2, "a": 1}, "reason": None}

    await act(service, encounter_id, AMEND, key=key, input=one)
    again = await act(service, encounter_id.upper(), AMEND, key=key, input=two)

    assert again["replayed"]


@pytest.mark.parametrize("door", [RestDoor, GraphQLDoor])
async def test_the_key_of_a_change_is_refused_for_a_recording_and_the_reverse(
    service: Service, cast: Cast, key: str, door: type[RestDoor | GraphQLDoor]
) -> None:
    encounter_id, patient_id = await recorded(service, cast), await cast.patient()
    visit = {"brand_id": "loop", "encounter_type": "lab"}
    await act(service, encounter_id, START, key=key)
    await door(service).record(patient_id, visit, key=f"{key}-recording")

    recording = await door(service).record(patient_id, visit, key=key)
    change = await act(service, encounter_id, COMPLETE, key=f"{key}-recording")

    assert recording.code == change["code"] == "idempotency_key_payload_mismatch"
    assert await cast.count("encounters", patient_id) == 1


async def test_a_refused_change_leaves_its_key_unused(service: Service, cast: Cast, key: str) -> None:
    encounter_id = await recorded(service, cast)

    refused = [
        await act(service, str(uuid4()), START, key=key),
        await act(service, encounter_id, START, 7, key=key),
        await act(service, encounter_id, COMPLETE, key=key),
        await act(service, encounter_id, AMEND, key=key, input={"notes": "\u0000"}),
    ]
    state = (await submission(service, key))["state"]
    started = await act(service, encounter_id, START, key=key)

    assert [each["__typename"] for each in refused] == [
        "EncounterNotFound", "StaleVersion", "IllegalTransition", "InvalidInput",
    ]  # fmt: skip
    assert state == "NEVER_SEEN"
    assert started["replayed"] is False


async def test_a_change_that_changes_nothing_uses_its_key(service: Service, cast: Cast, key: str) -> None:
    encounter_id = await recorded(service, cast, notes="Fasting.")
    same = {"notes": "Fasting."}

    first = await act(service, encounter_id, AMEND, key=key, input=same)
    await changed(service, encounter_id, AMEND, input={"notes": "Not fasting."})
    again = await act(service, encounter_id, AMEND, key=key, input=same)

    assert (first["replayed"], first["encounter"]["version"]) == (False, 1)
    # The earlier request is repeated, not the amendment: the later one stays.
    assert (again["replayed"], again["encounter"]["notes"]) == (True, "Not fasting.")


async def test_a_change_of_nothing_leaves_its_key_unused_without_read_scope(
    database_url: str, service: Service, cast: Cast, key: str
) -> None:
    encounter_id = await recorded(service, cast)
    scopes = frozenset({"write:encounters"})

    async def verify(token: str) -> Caller:
        return Caller(token, scopes, brand_id="loop")

    async with Service.running(
        Settings(database_url=database_url, rate_parsing_ms_per_minute=0), verify=verify
    ) as strict:
        refused = await act(strict, encounter_id, AMEND, key=key, token="client", input={})
        scopes |= {"read:encounters"}
        allowed = await act(strict, encounter_id, AMEND, key=key, token="client", input={})

    assert refused["code"] == "insufficient_scope"
    assert allowed["replayed"] is False


async def test_twenty_concurrent_duplicates_are_one_change(service: Service, cast: Cast, key: str) -> None:
    encounter_id = await recorded(service, cast)

    outcomes = await asyncio.gather(*(act(service, encounter_id, START, 1, key=key) for _ in range(20)))

    assert {each["__typename"] for each in outcomes} == {"EncounterChanged"}
    assert [each["replayed"] for each in outcomes].count(False) == 1
    assert len({str(each["encounter"]) for each in outcomes}) == 1
    assert await rows_of(cast, encounter_id) == dict.fromkeys(TABLES, 2)


async def test_a_key_of_a_change_belongs_to_its_client(
    database_url: str, service: Service, cast: Cast, key: str
) -> None:
    encounter_id = await recorded(service, cast)
    await act(service, encounter_id, AMEND, key=key, input={"notes": "One."})

    async def verify(token: str) -> Caller:
        return Caller(token, frozenset({"manage:encounters"}), brand_id="loop")

    async with Service.running(Settings(database_url=database_url), verify=verify) as strict:
        other = await act(strict, encounter_id, AMEND, key=key, token="another", input={"notes": "Two."})

    assert (other["replayed"], other["encounter"]["notes"]) == (False, "Two.")


@pytest.mark.parametrize("key", ["", "two words", "k" * 129, "ключ"])
async def test_an_invalid_key_of_a_change_is_refused(service: Service, cast: Cast, key: str) -> None:
    encounter_id = await recorded(service, cast)

    outcomes = [
        await act(service, encounter_id, START, key=key),
        await act(service, encounter_id, AMEND, key=key, input={"notes": "Fasting."}),
        await register(service, key=key),
    ]

    violation = {"path": ["idempotencyKey"], "rule": "idempotency_key"}
    assert [each["violations"] for each in outcomes] == [[violation]] * 3
    assert (await read(service, encounter_id))["version"] == 1


async def test_the_key_of_a_change_is_a_submission_of_its_encounter(service: Service, cast: Cast, key: str) -> None:
    encounter_id = await recorded(service, cast)
    await act(service, encounter_id, START, key=key)
    await changed(service, encounter_id, COMPLETE)

    assert await submission(service, key) == {"state": "RECORDED", "encounter": {"id": encounter_id, "version": 3}}


async def test_the_key_of_a_running_change_is_in_progress(
    service: Service, cast: Cast, key: str, database_url: str
) -> None:
    encounter_id = await recorded(service, cast)
    blocker = await asyncpg.connect(database_url)
    async with blocker.transaction():
        patient_id = await blocker.fetchval(
            "SELECT patient_id FROM patient_graph.encounters WHERE id = $1", encounter_id
        )
        lock = "SELECT FROM patient_graph.encounters WHERE patient_id = $1 AND id = $2 FOR UPDATE"
        await blocker.execute(lock, patient_id, encounter_id)
        running = asyncio.create_task(act(service, encounter_id, START, key=key))

        async def is_in_progress() -> bool:
            return (await submission(service, key))["state"] == "IN_PROGRESS"

        await wait_until(is_in_progress)
    await running
    await blocker.close()

    assert (await submission(service, key))["state"] == "RECORDED"


async def test_the_hash_of_a_change_is_that_of_its_content(service: Service, cast: Cast, key: str) -> None:
    """A key must be recognised by the next release, so the hashed text must not change."""
    encounter_id, patient_id = await recorded(service, cast), await cast.patient()
    members = {"notes": None, "encounterType": "TELEHEALTH", "metadata": {"room": 7}}
    await act(service, encounter_id, AMEND, 1, key=f"{key}-1", input=members | {"reason": "Misheard."})
    await act(
        service, encounter_id, EncounterAction.RESCHEDULE, key=f"{key}-2", scheduledAt="2027-01-01T01:00:00+01:00"
    )
    await act(service, encounter_id, START, key=f"{key}-3")
    await set_ids(service, patient_id, {"mrn": "1"}, f"{key}-4")
    await register(service, key=f"{key}-5", id=patient_id)

    amended = {"encounter_type": "telehealth", "metadata": json_text.write({"room": 7}), "notes": None}
    rescheduled = {"scheduled_at": "2027-01-01T00:00:00Z"}
    requests = [
        {
            "operation": "amend", "id": encounter_id, "members": amended, "reason": "Misheard.", "expected_version": 1,
        },
        {
            "operation": "reschedule", "id": encounter_id, "members": rescheduled, "reason": "The clinic is closed.",
        },
        {"operation": "start", "id": encounter_id, "members": {}},
        {"operation": "set_external_ids", "id": patient_id, "external_ids": {"mrn": "1"}},
        {"operation": "register_patient", "id": patient_id, "brand_id": "loop", "external_ids": {}},
    ]  # fmt: skip
    hashed = [json.dumps(each, sort_keys=True, separators=(",", ":")) for each in requests]
    rows = await cast.connection.fetch(
        "SELECT request_hash FROM patient_graph.idempotency_keys WHERE key LIKE $1 ORDER BY key", f"{key}-%"
    )
    assert [row["request_hash"] for row in rows] == [hashlib.sha256(each.encode()).digest() for each in hashed]


# Patients


async def test_a_repeated_registration_repeats_whether_the_patient_was_known(
    service: Service, cast: Cast, key: str
) -> None:
    patient_id = f"new-{uuid4()}"

    outcomes = [
        await register(service, key=each, id=patient_id, externalIds={"mrn": "1"})
        for each in (key, key, f"{key}-2", f"{key}-2")
    ]

    assert [(each["alreadyKnown"], each["replayed"]) for each in outcomes] == [
        (False, False), (False, True), (True, False), (True, True),
    ]  # fmt: skip
    assert await submission(service, key) == {"state": "RECORDED", "encounter": None}


async def test_a_registration_under_a_used_key_registers_no_patient(service: Service, cast: Cast, key: str) -> None:
    patient_id = f"new-{uuid4()}"
    await register(service, key=key, id=patient_id)

    others = [
        await register(service, key=key, id=f"{patient_id}-2"),
        await register(service, key=key, id=patient_id, externalIds={"mrn": "1"}),
    ]

    assert {each["__typename"] for each in others} == {"IdempotencyKeyReused"}
    registered = "SELECT id, external_ids::text FROM patient_graph.patients WHERE id LIKE $1"
    assert [tuple(row) for row in await cast.connection.fetch(registered, f"{patient_id}%")] == [(patient_id, "{}")]


async def test_twenty_concurrent_registrations_under_one_key_are_one(service: Service, key: str) -> None:
    patient_id = f"new-{uuid4()}"

    outcomes = await asyncio.gather(*(register(service, key=key, id=patient_id) for _ in range(20)))

    assert {each["alreadyKnown"] for each in outcomes} == {False}
    assert [each["replayed"] for each in outcomes].count(False) == 1
