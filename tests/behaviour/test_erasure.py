"""Erasure of a patient while gateways serve: no row is left, no key records again, and others are unaffected."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.erasing import ErasureStopped, erase
from resolvers.erasing import ERASED_TABLES
from tests import citus
from tests.cast import Cast
from tests.doors import Door, GraphQLDoor, RestDoor, Service
from tests.waiting import wait_until

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}
RECORD_ALL = """mutation ($items: [RecordEncountersItem!]!) { recordEncounters(input: $items, allOrNothing: true) {
  results { __typename } } }"""
CHANGE = """mutation ($id: ID!, $key: String) {
  startEncounter(id: $id, idempotencyKey: $key) { __typename ... on Problem { code } } }"""
IDENTIFY = """mutation ($id: ID!, $key: String, $ids: JSON!) {
  setPatientExternalIds(id: $id, externalIds: $ids, idempotencyKey: $key) { __typename } }"""
REGISTER = """mutation ($id: ID!, $key: String) {
  registerPatient(input: {id: $id, brandId: "loop"}, idempotencyKey: $key) {
    __typename ... on InvalidInput { violations { path rule } } } }"""


@pytest.fixture
def service(service_in_either_form: Service) -> Service:
    return service_in_either_form


@pytest.fixture
def key() -> str:
    return f"key-{uuid4()}"


async def erased(database_url: str, patient_id: str, brand_id: str = "loop") -> dict[str, int]:
    """Erase a patient, and return the number of rows by table."""
    lines: list[str] = []
    await erase(database_url, patient_id, brand_id, "privacy officer", lines.append)
    return {name: int(count) for count, name in map(str.split, lines)}


async def rows_of(cast: Cast, patient_id: str) -> dict[str, int]:
    """Return the number of rows that name the patient by table, without those of its erasure; omit 0."""
    counts = {}
    for table in ERASED_TABLES:
        column = "id" if table.name == "patients" else "patient_id"
        erasure = "AND event_type <> 'patient_graph.patient.erased.v1'" if "event_type" in table.c else ""
        query = f"SELECT count(*) FROM {table.fullname} WHERE {column} = $1 {erasure}"
        counts[table.name] = await cast.connection.fetchval(query, patient_id)
    return {name: count for name, count in counts.items() if count}


@asynccontextmanager
async def erasing(database_url: str, patient_id: str, expected_waits: int) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Erase a patient during the block: its rows are locked until the block's tasks wait for them."""
    owner = await asyncpg.connect(database_url)
    try:
        transaction = owner.transaction()
        await transaction.start()
        # The erasure deletes all other rows, except the patient's, and then waits.
        await owner.execute("LOCK TABLE patient_graph.dead_letters IN SHARE MODE")
        tasks = [asyncio.create_task(erased(database_url, patient_id))]
        await wait_until(partial(waits, owner, 1))
        yield tasks
        await wait_until(partial(waits, owner, 1 + expected_waits))
        await transaction.rollback()
        await asyncio.gather(*tasks)
    finally:
        await owner.close()


# Only backends that have used a table of encounters or patients: the relay may wait for its row too.
WAITING = """SELECT count(DISTINCT pid) FROM pg_locks waits JOIN pg_locks held USING (pid)
WHERE NOT waits.granted AND held.granted
AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND held.relation IN ('patient_graph.encounters'::regclass, 'patient_graph.patients'::regclass)"""
if citus.COORDINATOR_URL:
    # Locks of workers are not in `pg_locks` of the coordinator.
    WAITING = f"{citus.WAITING_SESSIONS} AND query !~ 'watermark|^UPDATE patient_graph.outbox'"


async def waits(owner: asyncpg.Connection, count: int) -> bool:
    """Return whether `count` sessions other than the relay's wait for a lock."""
    return await owner.fetchval(WAITING) == count


# Afterwards


async def test_an_erased_patient_is_unknown_at_both_doors(
    door: Door, other_door: Door, cast: Cast, database_url: str
) -> None:
    patient_id, neighbour = await cast.patient(), await cast.patient()
    await door.record(patient_id, VISIT)
    await door.record(neighbour, VISIT)

    counts = await erased(database_url, patient_id)

    assert counts == {
        "patients": 1, "encounters": 1, "encounter_versions": 1, "outbox": 1, "dead_letters": 0,
        "encounter_external_ids": 0, "patient_external_ids": 0, "idempotency_keys": 0,
    }  # fmt: skip
    assert await rows_of(cast, patient_id) == {}
    assert await door.listed(patient_id) is None
    assert (await other_door.record(patient_id, VISIT)).code == "not_found"
    assert (await other_door.record(patient_id, VISIT, validate_only=True)).code == "not_found"
    listed = await door.listed(neighbour)
    assert listed is not None
    assert listed[1] == 1


async def test_a_key_of_an_erased_patient_records_and_shows_nothing(
    door: Door, other_door: Door, cast: Cast, database_url: str, key: str
) -> None:
    patient_id, neighbour = await cast.patient(), await cast.patient()
    await door.record(patient_id, VISIT, key=key)
    await erased(database_url, patient_id)

    again = await other_door.record(patient_id, VISIT, key=key)
    changed = await other_door.record(patient_id, VISIT | {"notes": "Not fasting."}, key=key)
    dry = await other_door.record(patient_id, VISIT, key=key, validate_only=True)
    of_neighbour = await other_door.record(neighbour, VISIT, key=key)

    assert {(each.code, each.recorded) for each in (again, changed, dry)} == {("not_found", "no")}
    assert of_neighbour.code == "idempotency_key_payload_mismatch"
    kept = await cast.connection.fetchrow("SELECT * FROM patient_graph.idempotency_keys WHERE key = $1", key)
    assert (kept["patient_id"], kept["encounter_id"], kept["request_hash"], kept["answer"]) == ("", None, b"", b"")


async def test_graphql_finds_nothing_of_an_erased_patient(
    service: Service, cast: Cast, database_url: str, key: str
) -> None:
    patient_id, number = await cast.patient(), uuid4().hex
    visit = VISIT | {"external_ids": {"emr": number}}
    encounter = (await GraphQLDoor(service).record(patient_id, visit, key=key)).encounter["id"]
    await service.graphql(IDENTIFY, {"id": patient_id, "ids": {"mrn": number}})
    await erased(database_url, patient_id)

    found = await service.graphql(
        """query ($patient: ID!, $encounter: ID!, $number: String!, $key: String!) {
          patient(id: $patient) { id } patients(ids: [$patient]) { id } encounter(id: $encounter) { id }
          patientsByExternalId(system: "mrn", value: $number) { id }
          encountersByExternalId(system: "emr", value: $number) { id }
          encounters(where: {patientId: [$patient]}) { totalCount }
          submission(key: $key) { state encounter { id } }
        }""",
        {"patient": patient_id, "encounter": encounter, "number": number, "key": key},
    )

    assert found["data"] == {
        "patient": None,
        "patients": [None],
        "encounter": None,
        "patientsByExternalId": [],
        "encountersByExternalId": [],
        "encounters": {"totalCount": 0},
        "submission": {"state": "RECORDED", "encounter": None},
    }


async def test_keys_of_changes_of_an_erased_patient_change_nothing(
    service: Service, cast: Cast, database_url: str, key: str
) -> None:
    patient_id, neighbour = await cast.patient(), await cast.patient()
    encounter = (await GraphQLDoor(service).record(patient_id, VISIT)).encounter["id"]
    change = {"id": encounter, "key": key}
    ids = {"id": patient_id, "key": f"{key}-ids", "ids": {"mrn": "7"}}
    await service.graphql(CHANGE, change)
    await service.graphql(IDENTIFY, ids)
    await erased(database_url, patient_id)

    changed = await service.graphql(CHANGE, change)
    identified = await service.graphql(IDENTIFY, ids)
    of_neighbour = await service.graphql(IDENTIFY, ids | {"id": neighbour})

    assert changed["data"]["startEncounter"] == {"__typename": "EncounterNotFound", "code": "not_found"}
    assert identified["data"]["setPatientExternalIds"] == {"__typename": "PatientNotFound"}
    assert of_neighbour["data"]["setPatientExternalIds"] == {"__typename": "IdempotencyKeyReused"}


async def test_an_erased_id_is_not_registered_again(service: Service, cast: Cast, database_url: str, key: str) -> None:
    patient_id = f"patient-{uuid4().hex}"
    await service.graphql(REGISTER, {"id": patient_id, "key": key})
    await erased(database_url, patient_id)

    for each in (key, f"{key}-2", None):
        again = await service.graphql(REGISTER, {"id": patient_id, "key": each})
        refusal = {"__typename": "InvalidInput", "violations": [{"path": ["input", "id"], "rule": "erased"}]}
        assert again["data"]["registerPatient"] == refusal
    assert await rows_of(cast, patient_id) == {}


async def test_the_same_id_in_another_brand_is_another_patient(cast: Cast, database_url: str) -> None:
    patient_id = await cast.patient()
    await cast.connection.execute("INSERT INTO patient_graph.patients VALUES ($1, 'loopbio')", patient_id)

    await erased(database_url, patient_id, "loopbio")

    brands = await cast.connection.fetch("SELECT brand_id FROM patient_graph.patients WHERE id = $1", patient_id)
    assert [row["brand_id"] for row in brands] == ["loop"]
    with pytest.raises(ErasureStopped, match="no such patient"):
        await erased(database_url, f"{patient_id}-unknown")


async def test_the_erasure_is_audited_with_the_actor_and_the_entries_stay(
    service: Service, cast: Cast, database_url: str
) -> None:
    patient_id = await cast.patient()
    await RestDoor(service).record(patient_id, VISIT)
    await erased(database_url, patient_id)
    await erased(database_url, patient_id)

    entries = await cast.connection.fetch(
        "SELECT event_type, actor_type, actor_id, entity_type, details::text FROM patient_graph.audit_log"
        " WHERE patient_id = $1 ORDER BY id",
        patient_id,
    )
    assert [row["event_type"] for row in entries] == [
        "patient_graph.encounter.recorded",
        "patient_graph.patient.erased",
    ]
    assert tuple(entries[1])[1:4] == ("user", "privacy officer", "patient")
    assert '"encounters": 1' in entries[1]["details"]


# Meanwhile


async def test_a_recording_that_waits_for_the_erasure_finds_no_patient(
    door: Door, cast: Cast, database_url: str, key: str
) -> None:
    patient_id, neighbour = await cast.patient(), await cast.patient()
    await door.record(patient_id, VISIT)

    async with erasing(database_url, patient_id, expected_waits=1) as tasks:
        recording = asyncio.create_task(door.record(patient_id, VISIT, key=key))
        tasks.append(recording)
        # Others are recorded while the erasure runs.
        assert (await door.record(neighbour, VISIT)).code is None

    assert (recording.result().code, recording.result().recorded) == ("not_found", "no")
    assert await rows_of(cast, patient_id) == {}


async def test_changes_that_wait_for_the_erasure_find_nothing(
    service: Service, cast: Cast, database_url: str, key: str
) -> None:
    patient_id, neighbour = await cast.patient(), await cast.patient()
    encounter = (await GraphQLDoor(service).record(patient_id, VISIT)).encounter["id"]
    one = {"brandId": "loop", "encounterType": "LAB"}
    items = [{"patientId": neighbour, "input": one}, {"patientId": patient_id, "input": one}]

    async with erasing(database_url, patient_id, expected_waits=3) as tasks:
        changing, identifying, recording = (
            asyncio.create_task(service.graphql(query, variables))
            for query, variables in (
                (CHANGE, {"id": encounter, "key": key}),
                (IDENTIFY, {"id": patient_id, "key": f"{key}-ids", "ids": {"mrn": "7"}}),
                (RECORD_ALL, {"items": items}),
            )
        )
        tasks += [changing, identifying, recording]

    assert changing.result()["data"]["startEncounter"]["__typename"] == "EncounterNotFound"
    assert identifying.result()["data"]["setPatientExternalIds"]["__typename"] == "PatientNotFound"
    outcomes = recording.result()["data"]["recordEncounters"]["results"]
    assert [each["__typename"] for each in outcomes] == ["EncounterHeldBack", "PatientNotFound"]
    assert await rows_of(cast, patient_id) == {}
    assert await cast.count("encounters", neighbour) == 0


async def test_a_registration_that_waits_for_the_erasure_is_refused(
    service: Service, cast: Cast, database_url: str
) -> None:
    patient_id = await cast.patient()
    owner = await asyncpg.connect(database_url)
    transaction = owner.transaction()
    await transaction.start()
    await owner.execute("DELETE FROM patient_graph.patients WHERE id = $1", patient_id)
    await owner.execute(
        "INSERT INTO patient_graph.audit_log"
        " (patient_id, id, actor_type, actor_id, event_type, entity_type, brand_id, request_id)"
        " VALUES ($1, gen_random_uuid(), 'user', 'x', 'patient_graph.patient.erased', 'patient', 'loop', 'x')",
        patient_id,
    )

    registering = asyncio.create_task(service.graphql(REGISTER, {"id": patient_id}))
    await wait_until(partial(waits, owner, 1))
    await transaction.commit()
    await owner.close()

    assert (await registering)["data"]["registerPatient"]["__typename"] == "InvalidInput"
    assert await rows_of(cast, patient_id) == {}


@pytest.mark.parametrize("delay_seconds", [0.0, 0.02, 0.1])
async def test_concurrent_recordings_are_erased_or_find_no_patient(
    door: Door, cast: Cast, database_url: str, key: str, delay_seconds: float
) -> None:
    patient_id, neighbour = await cast.patient(), await cast.patient()

    async def record(number: int) -> list[str | None]:
        """Record for both patients until one of them is unknown; return the codes."""
        codes: list[str | None] = []
        while None in codes[-1:] or not codes:
            own = await door.record(patient_id, VISIT, key=f"{key}-{number}-{len(codes)}" if number % 2 else None)
            codes.append(own.code)
            assert (await door.record(neighbour, VISIT)).code is None
        return codes

    async def erase_later() -> None:
        await asyncio.sleep(delay_seconds)
        await erased(database_url, patient_id)

    erasure = asyncio.create_task(erase_later())
    codes = await asyncio.gather(*map(record, range(8)))
    await erasure

    assert {each[-1] for each in codes} == {"not_found"}
    assert await rows_of(cast, patient_id) == {}
    assert await cast.count("encounters", neighbour) == sum(map(len, codes))
