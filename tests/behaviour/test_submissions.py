"""What became of my key: recorded, in progress or never seen, through whichever door the request came."""

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg

from gateway.settings import Settings
from resolvers.access import Caller
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


async def test_a_key_that_was_recorded_under_tells_its_encounter_as_it_is_now(
    service: Service, door: Door, cast: Cast
) -> None:
    key = str(uuid4())
    recorded = await door.record(await cast.patient(), VISIT, key=key)
    await service.graphql(
        "mutation ($id: ID!) { startEncounter(id: $id) { __typename } }", {"id": recorded.encounter["id"]}
    )

    told = await submission(service, key)

    assert (told["key"], told["state"]) == (key, "RECORDED")
    assert told["encounter"]["id"] == recorded.encounter["id"]
    assert told["encounter"]["status"] == "IN_PROGRESS"
    assert told["recordedAt"] == told["encounter"]["createdAt"] < told["expiresAt"]


async def test_a_key_nobody_used_was_never_seen_and_may_still_be_used(service: Service, door: Door, cast: Cast) -> None:
    key = str(uuid4())

    told = await submission(service, key)

    assert (told["state"], told["encounter"]) == ("NEVER_SEEN", None)
    assert (await door.record(await cast.patient(), VISIT, key=key)).replayed is False


async def test_a_refused_request_leaves_its_key_never_seen(service: Service, door: Door) -> None:
    key = str(uuid4())
    await door.record("nobody", VISIT, key=key)

    assert (await submission(service, key))["state"] == "NEVER_SEEN"


async def test_what_is_being_recorded_is_in_progress(
    service: Service, door: Door, cast: Cast, database_url: str
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    blocker = await asyncpg.connect(database_url)
    async with blocker.transaction():
        # The recording waits for the patient's row, with its key claimed and nothing committed.
        await blocker.execute("SELECT FROM patient_graph.patients WHERE id = $1 FOR UPDATE", patient_id)
        recording = asyncio.create_task(door.record(patient_id, VISIT, key=key))

        async def is_in_progress() -> bool:
            told = await submission(service, key)
            return (told["state"], told["encounter"]) == ("IN_PROGRESS", None)

        # A recording that waits for a lock leaves the statement that others share, and claims its key again in its own.
        await wait_until(is_in_progress)
    await recording
    await blocker.close()

    assert (await submission(service, key))["state"] == "RECORDED"


async def test_a_key_of_another_client_is_nothing_to_me(database_url: str, cast: Cast) -> None:
    async def verify(token: str) -> Caller:
        return Caller(token, frozenset({"write:encounters"}), brand_id="loop")

    key = str(uuid4())
    async with Service.running(Settings(database_url=database_url), verify=verify) as service:
        path = f"/v1/patients/{await cast.patient()}/encounters"
        await service.rest("POST", path, json=VISIT, token="mine", headers={"idempotency-key": key})

        assert (await submission(service, key, token="mine"))["state"] == "RECORDED"
        assert (await submission(service, key, token="another"))["state"] == "NEVER_SEEN"


async def test_who_may_not_record_may_not_ask(database_url: str) -> None:
    async def verify(_token: str) -> Caller:
        return Caller("reader", frozenset({"read:encounters"}), brand_id="loop")

    async with Service.running(Settings(database_url=database_url), verify=verify) as service:
        assert (await submission(service, "any", token=None))["code"] == "unauthenticated"
        assert (await submission(service, "any"))["code"] == "insufficient_scope"


async def test_a_text_that_is_no_key_is_refused(service: Service) -> None:
    told = await submission(service, "two words")

    assert (told["code"], told["violations"][0]["pointer"]) == ("validation_error", "/key")
