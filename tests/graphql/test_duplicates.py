"""Possible duplicates: a warning to whoever has just recorded, looked for only when asked for, and never a merge."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from gateway.database.database import PoolConnection
from gateway.settings import Settings
from resolvers.access import Caller
from tests.cast import Cast
from tests.doors import Service

DOCTOR = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
VISIT = {"brandId": "loop", "encounterType": "LAB", "providerId": DOCTOR}
LATER = timedelta(minutes=59)

RECORD = """mutation ($id: ID!, $input: RecordEncounterInput!, $key: String) {
  recordEncounter(patientId: $id, input: $input, idempotencyKey: $key) {
    ... on EncounterRecorded { replayed encounter { id } possibleDuplicates { id notes } } } }"""


async def record(service: Service, patient_id: str, *, key: str | None = None, **members: Any) -> dict[str, Any]:
    """Record a visit, and give what is answered."""
    visit = {name: value for name, value in (VISIT | members).items() if value is not None}
    answer = await service.graphql(RECORD, {"id": patient_id, "input": visit, "key": key})
    assert "errors" not in answer, answer
    return answer["data"]["recordEncounter"]


def ids(recorded: dict[str, Any]) -> list[str]:
    return [each["id"] for each in recorded["possibleDuplicates"]]


async def keep(cast: Cast, patient_id: str, ago: timedelta, **columns: Any) -> str:
    """Keep a visit as it was recorded some time ago, and give its id."""
    row = {"encounter_type": "lab", "provider_id": UUID(DOCTOR), "status": "scheduled"} | columns
    encounter_id = uuid4()
    await cast.connection.execute(
        "INSERT INTO patient_graph.encounters"
        " (patient_id, id, brand_id, encounter_type, provider_id, status, created_at)"
        " VALUES ($1, $2, 'loop', $3, $4, $5, now() - $6::interval)",
        patient_id, encounter_id, row["encounter_type"], row["provider_id"], row["status"], ago,
    )  # fmt: skip
    return str(encounter_id)


async def test_the_first_has_none_and_each_other_names_those_before_it_newest_first(
    service: Service, cast: Cast
) -> None:
    patient_id = await cast.patient()

    one, two, three = [await record(service, patient_id, notes=str(number)) for number in range(3)]

    assert ids(one) == []
    assert ids(two) == [one["encounter"]["id"]]
    assert ids(three) == [two["encounter"]["id"], one["encounter"]["id"]]
    assert [each["notes"] for each in three["possibleDuplicates"]] == ["1", "0"]
    assert await cast.count("encounters", patient_id) == 3


@pytest.mark.parametrize(
    "unlike",
    [
        {"encounter_type": "telehealth"},
        {"provider_id": uuid4()},
        {"provider_id": None},
        {"status": "entered_in_error"},
        {"ago": timedelta(minutes=61)},
    ],
    ids=["type", "provider", "none of the two named", "error", "long ago"],
)
async def test_what_differs_in_what_matters_is_none(service: Service, cast: Cast, unlike: dict[str, Any]) -> None:
    patient_id = await cast.patient()
    alike = await keep(cast, patient_id, LATER)
    await keep(cast, patient_id, **{"ago": LATER} | unlike)

    assert ids(await record(service, patient_id)) == [alike]


async def test_two_without_a_provider_are_alike(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    alike = await keep(cast, patient_id, LATER, provider_id=None, status="cancelled")

    assert ids(await record(service, patient_id, providerId=None)) == [alike]


async def test_another_patients_is_none(service: Service, cast: Cast) -> None:
    await record(service, await cast.patient())

    assert ids(await record(service, await cast.patient())) == []


async def test_a_replay_names_what_was_before_it_and_nothing_that_came_after(service: Service, cast: Cast) -> None:
    patient_id, key = await cast.patient(), f"key-{uuid4()}"
    before = await record(service, patient_id)
    await record(service, patient_id, key=key, notes="The same.")
    await record(service, patient_id)

    again = await record(service, patient_id, key=key, notes="The same.")

    assert again["replayed"]
    assert ids(again) == [before["encounter"]["id"]]


async def test_at_most_ten_are_named(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    kept = [await keep(cast, patient_id, timedelta(minutes=minutes)) for minutes in range(1, 14)]

    assert ids(await record(service, patient_id)) == kept[:10]


# What it costs, and who may.


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that look for duplicates from here on."""
    sent: list[str] = []
    original = PoolConnection.fetch

    async def fetch(self, statement, **values):
        if "alike" in statement.text:
            sent.append(statement.text)
        return await original(self, statement, **values)

    monkeypatch.setattr(PoolConnection, "fetch", fetch)
    return sent


async def test_it_is_looked_for_once_and_only_where_it_is_asked_for(
    service: Service, cast: Cast, searches: list[str]
) -> None:
    patient_id = await cast.patient()
    query = """mutation ($id: ID!) { recordEncounter(patientId: $id, input: {brandId: "loop", encounterType: LAB}) {
      ... on EncounterRecorded { %s } } }"""

    await service.graphql(query % "encounter { id }", {"id": patient_id})
    assert searches == []
    await service.graphql(query % "a: possibleDuplicates { id } b: possibleDuplicates { notes }", {"id": patient_id})
    assert len(searches) == 1


@pytest.fixture
async def other(database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """A service with other settings, where a token is its own list of scopes."""

    async def verify(token: str) -> Caller:
        return Caller(client_id="limited", brand_id="loop", scopes=frozenset(token.split("+")))

    settings = Settings(database_url=database_url, database_acquire_seconds=30, **request.param)
    async with Service.running(settings, verify) as service:
        yield service


@pytest.mark.parametrize("other", [{"duplicate_window_minutes": 0}], indirect=True)
async def test_with_a_window_of_0_none_is_looked_for(other: Service, cast: Cast, searches: list[str]) -> None:
    patient_id = await cast.patient()

    for _ in range(2):
        answer = await other.graphql(RECORD, {"id": patient_id, "input": VISIT}, token="manage:encounters")
        assert answer["data"]["recordEncounter"]["possibleDuplicates"] == []

    assert searches == []


@pytest.mark.parametrize("other", [{}], indirect=True)
async def test_who_may_only_record_is_not_told_and_has_recorded_all_the_same(other: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    for _ in range(2):
        answer = await other.graphql(RECORD, {"id": patient_id, "input": VISIT}, token="write:encounters")

    recorded = answer["data"]["recordEncounter"]
    (error,) = answer["errors"]
    assert (recorded["possibleDuplicates"], error["path"][-1]) == (None, "possibleDuplicates")
    assert error["extensions"]["code"] == "insufficient_scope"
    assert [str(row["id"]) for row in await cast.rows(patient_id)][-1] == recorded["encounter"]["id"]


async def test_what_lies_below_counts_ten_times(service: Service, cast: Cast) -> None:
    below = "patient { encounters(first: 100) { nodes { patient { encounters(first: 100) { nodes { id } } } } } }"
    query = f"""mutation ($id: ID!) {{
      recordEncounter(patientId: $id, input: {{brandId: "loop", encounterType: LAB}}) {{
        ... on EncounterRecorded {{ possibleDuplicates {{ {below} }} }} }} }}"""
    patient_id = await cast.patient()

    (error,) = (await service.graphql(query, {"id": patient_id}))["errors"]

    assert error["extensions"]["violations"][0]["rule"] == "cost"
    assert await cast.count("encounters", patient_id) == 0


async def test_of_two_recorded_in_one_instant_the_lesser_id_came_first(service: Service, cast: Cast) -> None:
    patient_id, key = await cast.patient(), f"key-{uuid4()}"
    recorded = await record(service, patient_id, key=key)
    (row,) = await cast.rows(patient_id)
    twins = [UUID(int=0x1), UUID(int=2**128 - 1)]
    for twin in twins:
        await cast.connection.execute(
            "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type, provider_id, created_at)"
            " VALUES ($1, $2, 'loop', 'lab', $3, $4)",
            patient_id, twin, UUID(DOCTOR), row["created_at"],
        )  # fmt: skip

    assert ids(recorded) == []
    assert ids(await record(service, patient_id, key=key)) == [str(twins[0])]
