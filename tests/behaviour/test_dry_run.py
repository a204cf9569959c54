"""Trying without recording: told what the real call would be told, and nothing is written. Through either door."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.settings import Settings
from tests.behaviour.test_door_parity import commands
from tests.cast import Cast
from tests.doors import Door, GraphQLDoor, Outcome, RestDoor, Service
from tests.event_helpers import fresh_database
from tests.waiting import wait_until

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}
VALID = Outcome(recorded="no")


@pytest.fixture
def key() -> str:
    return f"key-{uuid4()}"


async def test_a_stranger_learns_nothing_but_that_a_token_is_needed(door: Door) -> None:
    outcome = await door.record("nobody", {"encounter_type": 5}, token=None, validate_only=True)

    assert (outcome.code, outcome.recorded) == ("unauthenticated", "no")


async def test_what_would_be_recorded_is_told_so_and_the_key_stays_free(door: Door, cast: Cast, key: str) -> None:
    patient_id = await cast.patient()

    tried = [await door.record(patient_id, VISIT, key=key, validate_only=True) for _ in range(2)]
    recorded = await door.record(patient_id, VISIT, key=key)

    assert tried == [VALID] * 2
    assert (recorded.code, recorded.replayed) == (None, False)


async def test_a_key_that_stands_for_this_request_gives_what_was_recorded(
    door: Door, other_door: Door, cast: Cast, key: str
) -> None:
    patient_id = await cast.patient()
    first = await door.record(patient_id, VISIT, key=key)

    tried = await other_door.record(patient_id, VISIT, key=key, validate_only=True)

    assert tried == Outcome(encounter=first.encounter, replayed=True)


async def test_a_key_that_stands_for_another_request_is_refused(
    door: Door, other_door: Door, cast: Cast, key: str
) -> None:
    await door.record(await cast.patient(), VISIT, key=key)

    tried = await other_door.record("nobody", VISIT, key=key, validate_only=True)

    assert (tried.code, tried.recorded) == ("idempotency_key_payload_mismatch", "no")


async def test_a_patient_of_another_brand_is_like_one_who_does_not_exist(door: Door, cast: Cast) -> None:
    theirs = await cast.patient("loopbio")

    outcomes = [await door.record(patient_id, VISIT, validate_only=True) for patient_id in (theirs, "nobody")]

    assert outcomes[0] == outcomes[1]
    assert outcomes[0].code == "not_found"


# Most random commands break a rule: these are mixed with some that break few, and none.
sendable = commands | commands.map(lambda command: command | VISIT) | st.just(VISIT)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(command=sendable, known=st.booleans(), earlier=st.sampled_from([None, "this", "another"]))
async def test_the_outcome_is_that_of_the_real_call(
    service: Service, cast: Cast, command: dict[str, Any], known: bool, earlier: str | None
) -> None:
    """Law: whatever is sent, for whichever patient, under a key that is free, taken by this request or by another."""
    for door in (RestDoor(service), GraphQLDoor(service)):
        patient_id, key = await cast.patient(), f"key-{uuid4()}"
        if earlier:
            await door.record(patient_id, command if earlier == "this" else VISIT, key=key)
        asked = (patient_id if known else "nobody", command)

        tried = await door.record(*asked, key=key, validate_only=True)
        real = await door.record(*asked, key=key)

        assert tried == (VALID if real.code is None and not real.replayed else real)


REFUSED = [
    ("", {}, {"authorization": ""}),
    ("", {"encounter_type": "house_call"}, {}),
    ("", {"brand_id": "loopbio"}, {}),
    ("", {"notes": "x" * 300_000}, {}),
    ("", {}, {"content-type": "text/plain"}),
    ("", {}, {"idempotency-key": "two words"}),
    ("", {}, {"accept": "image/png"}),
    ("", {}, {"accept": "application/problem+json", "x-brand-id": "loopbio"}),
    ("nobody", {}, {}),
]


@pytest.mark.parametrize(("patient_id", "members", "headers"), REFUSED)
async def test_over_rest_a_refusal_is_the_same_byte_for_byte(
    service: Service, cast: Cast, patient_id: str, members: dict[str, Any], headers: dict[str, str]
) -> None:
    path = f"/v1/patients/{patient_id or await cast.patient()}/encounters"
    asked: dict[str, Any] = {"json": VISIT | members, "headers": {"x-request-id": "the-same"} | headers}

    real, tried = [await service.rest("POST", path + query, **asked) for query in ("", "?validate_only=true")]

    assert real.status_code >= 400
    assert (tried.status_code, tried.content) == (real.status_code, real.content)
    clock = {"x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit"}
    assert [each for each in tried.headers.items() if each[0] not in clock] == [
        each for each in real.headers.items() if each[0] not in clock
    ]


async def test_over_rest_a_try_that_succeeds_is_200_and_says_that_nothing_was_recorded(
    service: Service, cast: Cast
) -> None:
    patient_id = await cast.patient()

    answer = await service.rest("POST", f"/v1/patients/{patient_id}/encounters?validate_only=true", json=VISIT)

    assert (answer.status_code, answer.json()["recorded"]) == (200, "no")
    assert not {"location", "etag", "idempotent-replayed"} & set(answer.headers)


@pytest.mark.parametrize("query", ["validate_only=yes", "validate_only=", "validate_only=true&validate_only=false"])
async def test_a_try_that_is_misspelt_is_refused_and_not_recorded(service: Service, cast: Cast, query: str) -> None:
    patient_id = await cast.patient()

    answer = await service.rest("POST", f"/v1/patients/{patient_id}/encounters?{query}", json=VISIT)

    (violation,) = answer.json()["violations"]
    assert answer.status_code == 400
    assert (violation["pointer"], violation["rule"], violation["allowed"]) == (
        "/validate_only",
        "enum",
        ["true", "false"],
    )
    assert await cast.count("encounters", patient_id) == 0


@pytest.mark.parametrize("said", ["", ", validateOnly: false", ", validateOnly: null"])
async def test_over_graphql_without_it_a_client_sees_no_difference(service: Service, cast: Cast, said: str) -> None:
    patient_id = await cast.patient()
    query = f"""mutation ($id: ID!) {{
      recordEncounter(patientId: $id, input: {{brandId: "loop", encounterType: LAB}}{said}) {{
        __typename ... on EncounterRecorded {{ replayed }} ... on Problem {{ code message recorded }}
      }} }}"""

    answer = await service.graphql(query, {"id": patient_id})

    assert answer == {"data": {"recordEncounter": {"__typename": "EncounterRecorded", "replayed": False}}}
    assert await cast.count("encounters", patient_id) == 1


# Nothing is written.


class Quiet(NamedTuple):
    """A service that nobody else uses, and its tables."""

    service: Service
    cast: Cast

    async def rows(self) -> dict[str, int]:
        """Count the rows of every table, but for the chain: that one follows the audit log when it comes to it."""
        tables = await self.cast.connection.fetch(
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = 'patient_graph' AND table_name <> 'audit_chain'"
        )
        return {
            name: await self.cast.connection.fetchval(f"SELECT count(*) FROM patient_graph.{name}")
            for (name,) in tables
        }


@pytest.fixture
async def quiet(server_url: str) -> AsyncIterator[Quiet]:
    url = await fresh_database(server_url)
    connection = await asyncpg.connect(url)
    async with Service.running(Settings(database_url=url, database_acquire_seconds=30)) as service:
        yield Quiet(service, Cast(connection))
    await connection.close()


async def test_nothing_is_written_in_any_table_but_that_somebody_was_refused(quiet: Quiet) -> None:
    doors = (RestDoor(quiet.service), GraphQLDoor(quiet.service))
    patient_id = await quiet.cast.patient()
    before = await quiet.rows()

    for door in doors:
        assert await door.record(patient_id, VISIT, key=f"key-{uuid4()}", validate_only=True) == VALID
        assert await door.record(patient_id, VISIT, validate_only=True) == VALID
        refused = await door.record("nobody", VISIT, key=f"key-{uuid4()}", validate_only=True)
        assert refused.code == "not_found"

    # The trail writes in order: with the last refusal, whatever the tries left on it is written down.
    async def both_are_noted() -> bool:
        return (await quiet.rows())["audit_log"] >= 2

    await wait_until(both_are_noted)
    assert before.keys() >= {"encounters", "encounter_versions", "idempotency_keys", "outbox", "audit_log"}
    assert await quiet.rows() == before | {"audit_log": 2}
