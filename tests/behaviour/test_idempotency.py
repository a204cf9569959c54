"""Exactly once: identical requests under one key record one encounter, over either door."""

import asyncio
import json
from uuid import uuid4

import pytest

from tests.cast import Cast
from tests.doors import Door, RestDoor, Service

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}
TABLES = ("encounters", "encounter_versions", "audit_log", "outbox", "idempotency_keys")


@pytest.fixture
def service(service_in_either_form: Service) -> Service:
    return service_in_either_form


@pytest.fixture
def key() -> str:
    return f"key-{uuid4()}"


async def test_identical_requests_under_one_key_are_recorded_once(
    door: Door, other_door: Door, cast: Cast, key: str
) -> None:
    patient_id = await cast.patient()

    first = await door.record(patient_id, VISIT, key=key)
    again = await other_door.record(patient_id, VISIT, key=key)

    assert (first.replayed, again.replayed) == (False, True)
    assert again.encounter == first.encounter
    assert {table: await cast.count(table, patient_id) for table in TABLES} == dict.fromkeys(TABLES, 1)


async def test_a_different_request_under_a_used_key_is_refused(
    door: Door, other_door: Door, cast: Cast, key: str
) -> None:
    patient_id = await cast.patient()
    await door.record(patient_id, VISIT, key=key)

    other = await other_door.record(patient_id, VISIT | {"notes": "Not fasting."}, key=key)

    assert (other.code, other.recorded) == ("idempotency_key_payload_mismatch", "no")
    assert await cast.count("encounters", patient_id) == 1


async def test_the_same_body_for_another_patient_is_a_different_request(
    door: Door, other_door: Door, cast: Cast, key: str
) -> None:
    await door.record(await cast.patient(), VISIT, key=key)

    other = await other_door.record(await cast.patient(), VISIT, key=key)
    unknown = await other_door.record("nobody", VISIT, key=key)

    assert other.code == unknown.code == "idempotency_key_payload_mismatch"


async def test_another_spelling_of_the_same_values_is_the_same_request(
    door: Door, other_door: Door, cast: Cast, key: str
) -> None:
    patient_id = await cast.patient()
    one = {"scheduled_at": "2026-05-01T10:00:00+02:00", "provider_id": "3F2504E0-4F89-11D3-9A0C-0305E82C3301"}
    two = {"scheduled_at": "2026-05-01T08:00:00.000Z", "provider_id": "3f2504e0-4f89-11d3-9a0c-0305e82c3301"}

    await door.record(patient_id, VISIT | one | {"metadata": {"a": 1, "b": 2}}, key=key)
    again = await other_door.record(patient_id, VISIT | two | {"metadata": {"b": 2, "a": 1}}, key=key)

    assert again.replayed


async def test_negative_zero_and_zero_are_the_same_request(door: Door, other_door: Door, cast: Cast, key: str) -> None:
    patient_id = await cast.patient()

    first = await door.record(patient_id, VISIT | {"metadata": {"a": -0.0}}, key=key)
    again = await other_door.record(patient_id, VISIT | {"metadata": {"a": 0.0}}, key=key)

    assert again.replayed
    assert str(first.encounter["metadata"]) == str(again.encounter["metadata"])


async def test_a_key_belongs_to_its_brand_and_client(door: Door, cast: Cast, key: str) -> None:
    ours, theirs = await cast.patient("loop"), await cast.patient("loopbio")

    await door.record(ours, VISIT, key=key)
    other = await door.record(theirs, VISIT | {"brand_id": "loopbio"}, token="dev-loopbio", key=key)

    assert other.code is None
    assert not other.replayed


async def test_a_refused_request_leaves_its_key_unused(door: Door, cast: Cast, key: str) -> None:
    patient_id = await cast.patient()

    refused = [
        await door.record(patient_id, VISIT | {"notes": "\x00"}, key=key),
        await door.record("nobody", VISIT, key=key),
        await door.record(patient_id, VISIT | {"brand_id": "loopbio"}, key=key),
    ]
    recorded = await door.record(patient_id, VISIT, key=key)

    assert None not in [outcome.code for outcome in refused]
    assert (recorded.code, recorded.replayed) == (None, False)


async def test_fifty_concurrent_duplicates_are_recorded_once_and_answered_alike(
    door: Door, other_door: Door, cast: Cast, key: str
) -> None:
    patient_id = await cast.patient()

    outcomes = await asyncio.gather(
        *((door if number % 2 else other_door).record(patient_id, VISIT, key=key) for number in range(50))
    )

    assert {outcome.code for outcome in outcomes} == {None}
    assert len({outcome.encounter["id"] for outcome in outcomes}) == 1
    assert [outcome.replayed for outcome in outcomes].count(False) == 1
    assert {table: await cast.count(table, patient_id) for table in TABLES} == dict.fromkeys(TABLES, 1)


async def test_a_rest_replay_is_the_first_answer_after_the_encounter_changed(
    service: Service, cast: Cast, key: str
) -> None:
    patient_id = await cast.patient()

    async def post() -> bytes:
        response = await service.rest(
            "POST", f"/v1/patients/{patient_id}/encounters", json=VISIT, headers={"idempotency-key": key}
        )
        return response.content

    first = await post()
    await cast.connection.execute(
        "UPDATE patient_graph.encounters SET status = 'cancelled', version = 2 WHERE patient_id = $1", patient_id
    )

    assert await post() == first


async def test_a_quoted_key_is_the_same_as_the_bare_key(service: Service, cast: Cast, key: str) -> None:
    patient_id = await cast.patient()
    door = RestDoor(service)

    await door.record(patient_id, VISIT, key=key)

    assert (await door.record(patient_id, VISIT, key=f'"{key}"')).replayed


@pytest.mark.parametrize("key", ["", " ", "two words", "k" * 129, "ключ"])
async def test_an_invalid_key_is_refused(door: Door, cast: Cast, key: str) -> None:
    if isinstance(door, RestDoor) and not key.isascii():
        pytest.skip("HTTP headers are ASCII")
    patient_id = await cast.patient()

    outcome = await door.record(patient_id, VISIT, key=key)

    assert outcome.code == "validation_error"
    assert outcome.rules == {("idempotency_key", "idempotency_key")}
    assert await cast.count("encounters", patient_id) == 0


async def test_event_and_audit_entry_match_the_contract_without_clinical_text(door: Door, cast: Cast) -> None:
    patient_id = await cast.patient()
    encounter = (await door.record(patient_id, VISIT)).encounter

    event = await cast.connection.fetchrow("SELECT * FROM patient_graph.outbox WHERE patient_id = $1", patient_id)
    entry = await cast.connection.fetchrow("SELECT * FROM patient_graph.audit_log WHERE patient_id = $1", patient_id)

    assert event["event_type"] == "patient_graph.encounter.recorded.v1"
    assert json.loads(event["payload"]) == {
        "encounter_id": encounter["id"],
        "patient_id": patient_id,
        "brand_id": "loop",
        "encounter_type": "lab",
        "recorded_at": encounter["created_at"],
    }
    assert entry["event_type"] == "patient_graph.encounter.recorded"
    assert (entry["actor_type"], entry["actor_id"], entry["actor_brand_id"]) == ("service", "dev", "loop")
    assert (entry["entity_type"], entry["entity_id"], entry["brand_id"]) == ("encounter", encounter["id"], "loop")
    assert "Fasting" not in str(event) + str(entry)
