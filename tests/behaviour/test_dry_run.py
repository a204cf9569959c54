"""Dry runs (`validate_only`) over either door: the outcome of the real call, without any write."""

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
from tests.conftest import fresh_database
from tests.doors import Door, GraphQLDoor, Outcome, RestDoor, Service
from tests.waiting import wait_until

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}
VALID = Outcome(recorded="no")


@pytest.fixture
def key() -> str:
    return f"key-{uuid4()}"


async def test_a_dry_run_without_a_token_is_unauthenticated(door: Door) -> None:
    outcome = await door.record("nobody", {"encounter_type": 5}, token=None, validate_only=True)

    assert (outcome.code, outcome.recorded) == ("unauthenticated", "no")


async def test_a_valid_dry_run_leaves_its_key_unused(door: Door, cast: Cast, key: str) -> None:
    patient_id = await cast.patient()

    dry = [await door.record(patient_id, VISIT, key=key, validate_only=True) for _ in range(2)]
    recorded = await door.record(patient_id, VISIT, key=key)

    assert dry == [VALID] * 2
    assert (recorded.code, recorded.replayed) == (None, False)


async def test_a_dry_run_under_the_key_of_its_request_is_a_replay(
    door: Door, other_door: Door, cast: Cast, key: str
) -> None:
    patient_id = await cast.patient()
    first = await door.record(patient_id, VISIT, key=key)

    dry = await other_door.record(patient_id, VISIT, key=key, validate_only=True)

    assert dry == Outcome(encounter=first.encounter, replayed=True)


async def test_a_dry_run_under_the_key_of_another_request_is_refused(
    door: Door, other_door: Door, cast: Cast, key: str
) -> None:
    await door.record(await cast.patient(), VISIT, key=key)

    dry = await other_door.record("nobody", VISIT, key=key, validate_only=True)

    assert (dry.code, dry.recorded) == ("idempotency_key_payload_mismatch", "no")


async def test_a_dry_run_for_a_patient_of_another_brand_is_not_found(door: Door, cast: Cast) -> None:
    theirs = await cast.patient("loopbio")

    outcomes = [await door.record(patient_id, VISIT, validate_only=True) for patient_id in (theirs, "nobody")]

    assert outcomes[0] == outcomes[1]
    assert outcomes[0].code == "not_found"


# Most random commands break a rule, so commands that break few or none are mixed in.
sendable = commands | commands.map(lambda command: command | VISIT) | st.just(VISIT)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(command=sendable, known=st.booleans(), earlier=st.sampled_from([None, "this", "another"]))
async def test_a_dry_run_has_the_outcome_of_the_real_call(
    service: Service, cast: Cast, command: dict[str, Any], known: bool, earlier: str | None
) -> None:
    """Law: for any command, any patient, and a key that is unused, used by this request or used by another."""
    for door in (RestDoor(service), GraphQLDoor(service)):
        patient_id, key = await cast.patient(), f"key-{uuid4()}"
        if earlier:
            await door.record(patient_id, command if earlier == "this" else VISIT, key=key)
        asked = (patient_id if known else "nobody", command)

        dry = await door.record(*asked, key=key, validate_only=True)
        real = await door.record(*asked, key=key)

        assert dry == (VALID if real.code is None and not real.replayed else real)


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
async def test_a_refused_rest_dry_run_equals_the_real_refusal_byte_for_byte(
    service: Service, cast: Cast, patient_id: str, members: dict[str, Any], headers: dict[str, str]
) -> None:
    path = f"/v1/patients/{patient_id or await cast.patient()}/encounters"
    asked: dict[str, Any] = {"json": VISIT | members, "headers": {"x-request-id": "the-same"} | headers}

    real, dry = [await service.rest("POST", path + query, **asked) for query in ("", "?validate_only=true")]

    assert real.status_code >= 400
    assert (dry.status_code, dry.content) == (real.status_code, real.content)
    clock = {"x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit"}
    assert [each for each in dry.headers.items() if each[0] not in clock] == [
        each for each in real.headers.items() if each[0] not in clock
    ]


async def test_a_valid_rest_dry_run_is_200_and_reports_not_recorded(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    answer = await service.rest("POST", f"/v1/patients/{patient_id}/encounters?validate_only=true", json=VISIT)

    assert (answer.status_code, answer.json()["recorded"]) == (200, "no")
    assert not {"location", "etag", "idempotent-replayed"} & set(answer.headers)


@pytest.mark.parametrize("query", ["validate_only=yes", "validate_only=", "validate_only=true&validate_only=false"])
async def test_an_invalid_validate_only_is_refused_and_nothing_is_recorded(
    service: Service, cast: Cast, query: str
) -> None:
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


@pytest.mark.parametrize("argument", ["", ", validateOnly: false", ", validateOnly: null"])
async def test_a_mutation_without_validate_only_records(service: Service, cast: Cast, argument: str) -> None:
    patient_id = await cast.patient()
    query = f"""mutation ($id: ID!) {{
      recordEncounter(patientId: $id, input: {{brandId: "loop", encounterType: LAB}}{argument}) {{
        __typename ... on EncounterRecorded {{ replayed }} ... on Problem {{ code message recorded }}
      }} }}"""

    answer = await service.graphql(query, {"id": patient_id})

    assert answer == {"data": {"recordEncounter": {"__typename": "EncounterRecorded", "replayed": False}}}
    assert await cast.count("encounters", patient_id) == 1


# No writes.


class OwnDatabase(NamedTuple):
    """A service with its own database."""

    service: Service
    cast: Cast

    async def rows(self) -> dict[str, int]:
        """Return the number of rows of each table, except the audit chain, which follows the audit log later."""
        tables = await self.cast.connection.fetch(
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = 'patient_graph' AND table_name <> 'audit_chain'"
        )
        return {
            name: await self.cast.connection.fetchval(f"SELECT count(*) FROM patient_graph.{name}")
            for (name,) in tables
        }


@pytest.fixture
async def own_database(server_url: str) -> AsyncIterator[OwnDatabase]:
    url = await fresh_database(server_url)
    connection = await asyncpg.connect(url)
    async with Service.running(Settings(database_url=url, database_acquire_seconds=30)) as service:
        yield OwnDatabase(service, Cast(connection))
    await connection.close()


async def test_dry_runs_write_nothing_but_audit_entries_of_refusals(own_database: OwnDatabase) -> None:
    doors = (RestDoor(own_database.service), GraphQLDoor(own_database.service))
    patient_id = await own_database.cast.patient()
    before = await own_database.rows()

    for door in doors:
        assert await door.record(patient_id, VISIT, key=f"key-{uuid4()}", validate_only=True) == VALID
        assert await door.record(patient_id, VISIT, validate_only=True) == VALID
        refused = await door.record("nobody", VISIT, key=f"key-{uuid4()}", validate_only=True)
        assert refused.code == "not_found"

    # Audit records are inserted in order: the last refusal comes after every record of the dry runs.
    async def both_refusals_are_audited() -> bool:
        return (await own_database.rows())["audit_log"] >= 2

    await wait_until(both_refusals_are_audited)
    assert before.keys() >= {"encounters", "encounter_versions", "idempotency_keys", "outbox", "audit_log"}
    assert await own_database.rows() == before | {"audit_log": 2}
