"""`submission(key)`: recorded, in progress or never seen, for requests over either door."""

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.settings import Settings
from resolvers.access import Caller
from tests import citus
from tests.cast import Cast
from tests.doors import Door, Service
from tests.waiting import wait_until

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}
SUBMISSION = """query ($key: String!) {
  submission(key: $key) { key state recordedAt expiresAt encounter { id status notes createdAt } }
}"""


async def submission(service: Service, key: str, token: str | None = "dev") -> dict[str, Any]:
    body = await service.graphql(SUBMISSION, {"key": key}, token=token)
    return (body.get("data") or {}).get("submission") or body["errors"][0]["extensions"]


async def test_a_used_key_is_recorded_with_the_current_encounter(service: Service, door: Door, cast: Cast) -> None:
    key = str(uuid4())
    recorded = await door.record(await cast.patient(), VISIT, key=key)
    await service.graphql(
        "mutation ($id: ID!) { startEncounter(id: $id) { __typename } }", {"id": recorded.encounter["id"]}
    )

    found = await submission(service, key)

    assert (found["key"], found["state"]) == (key, "RECORDED")
    assert found["encounter"]["id"] == recorded.encounter["id"]
    assert found["encounter"]["status"] == "IN_PROGRESS"
    assert found["recordedAt"] == found["encounter"]["createdAt"] < found["expiresAt"]


@pytest.mark.skipif(citus.COORDINATOR_URL is not None, reason="a cluster waits for the second phase of the change")
async def test_a_used_key_is_found_while_its_encounter_is_locked(
    service: Service, door: Door, cast: Cast, database_url: str
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    recorded = await door.record(patient_id, VISIT, key=key)
    changing = await asyncpg.connect(database_url)
    await changing.execute("BEGIN")
    await changing.execute("SELECT FROM patient_graph.encounters WHERE patient_id = $1 FOR UPDATE", patient_id)
    try:
        async with asyncio.timeout(5):
            found = await submission(service, key)
            again = await door.record(patient_id, VISIT, key=key)
    finally:
        await changing.close()

    assert (found["state"], found["encounter"]["id"]) == ("RECORDED", recorded.encounter["id"])
    assert (again.encounter["id"], again.replayed) == (recorded.encounter["id"], True)


async def test_an_unused_key_is_never_seen_and_remains_usable(service: Service, door: Door, cast: Cast) -> None:
    key = str(uuid4())

    found = await submission(service, key)

    assert (found["state"], found["encounter"]) == ("NEVER_SEEN", None)
    assert (await door.record(await cast.patient(), VISIT, key=key)).replayed is False


async def test_the_key_of_a_refused_request_is_never_seen(service: Service, door: Door) -> None:
    key = str(uuid4())
    await door.record("nobody", VISIT, key=key)

    assert (await submission(service, key))["state"] == "NEVER_SEEN"


async def test_the_key_of_a_running_request_is_in_progress(
    service: Service, door: Door, cast: Cast, database_url: str
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    blocker = await asyncpg.connect(database_url)
    async with blocker.transaction():
        # The recording has claimed its key and waits for the patient's row; nothing is committed.
        await blocker.execute("SELECT FROM patient_graph.patients WHERE id = $1 FOR UPDATE", patient_id)
        recording = asyncio.create_task(door.record(patient_id, VISIT, key=key))

        async def is_in_progress() -> bool:
            found = await submission(service, key)
            return (found["state"], found["encounter"]) == ("IN_PROGRESS", None)

        # A recording that waits for a lock leaves the shared statement and claims its key again in its own statement.
        await wait_until(is_in_progress)
    await recording
    await blocker.close()

    assert (await submission(service, key))["state"] == "RECORDED"


async def test_the_key_of_another_client_is_never_seen(database_url: str, cast: Cast) -> None:
    async def verify(token: str) -> Caller:
        return Caller(token, frozenset({"write:encounters"}), brand_id="loop")

    key = str(uuid4())
    async with Service.running(Settings(database_url=database_url), verify=verify) as service:
        path = f"/v1/patients/{await cast.patient()}/encounters"
        await service.rest("POST", path, json=VISIT, token="one", headers={"idempotency-key": key})

        assert (await submission(service, key, token="one"))["state"] == "RECORDED"
        assert (await submission(service, key, token="another"))["state"] == "NEVER_SEEN"


async def test_reading_a_submission_needs_the_write_scope(database_url: str) -> None:
    async def verify(_token: str) -> Caller:
        return Caller("reader", frozenset({"read:encounters"}), brand_id="loop")

    async with Service.running(Settings(database_url=database_url), verify=verify) as service:
        assert (await submission(service, "any", token=None))["code"] == "unauthenticated"
        assert (await submission(service, "any"))["code"] == "insufficient_scope"


async def test_a_submission_of_an_invalid_key_is_refused(service: Service) -> None:
    found = await submission(service, "two words")

    assert (found["code"], found["violations"][0]["pointer"]) == ("validation_error", "/key")
