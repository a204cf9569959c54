"""`possibleDuplicates`: a warning beside a recording; searched for only when selected, never merged."""

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
    """Record a visit; return the payload."""
    visit = {name: value for name, value in (VISIT | members).items() if value is not None}
    answer = await service.graphql(RECORD, {"id": patient_id, "input": visit, "key": key})
    assert "errors" not in answer, answer
    return answer["data"]["recordEncounter"]


def ids(recorded: dict[str, Any]) -> list[str]:
    return [each["id"] for each in recorded["possibleDuplicates"]]


async def insert(cast: Cast, patient_id: str, ago: timedelta, **columns: Any) -> str:
    """Insert a visit as recorded some time ago; return its id."""
    row = {"encounter_type": "lab", "provider_id": UUID(DOCTOR), "status": "scheduled"} | columns
    encounter_id = uuid4()
    await cast.connection.execute(
        "INSERT INTO patient_graph.encounters"
        " (patient_id, id, brand_id, encounter_type, provider_id, status, created_at)"
        " VALUES ($1, $2, 'loop', $3, $4, $5, now() - $6::interval)",
        patient_id, encounter_id, row["encounter_type"], row["provider_id"], row["status"], ago,
    )  # fmt: skip
    return str(encounter_id)


async def test_a_recording_lists_its_earlier_duplicates_newest_first(service: Service, cast: Cast) -> None:
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
    ids=["type", "provider", "only one with a provider", "error", "long ago"],
)
async def test_another_type_provider_or_time_or_an_error_is_no_duplicate(
    service: Service, cast: Cast, unlike: dict[str, Any]
) -> None:
    patient_id = await cast.patient()
    alike = await insert(cast, patient_id, LATER)
    await insert(cast, patient_id, **{"ago": LATER} | unlike)

    assert ids(await record(service, patient_id)) == [alike]


async def test_two_encounters_without_a_provider_are_duplicates(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    alike = await insert(cast, patient_id, LATER, provider_id=None, status="cancelled")

    assert ids(await record(service, patient_id, providerId=None)) == [alike]


async def test_an_encounter_of_another_patient_is_no_duplicate(service: Service, cast: Cast) -> None:
    await record(service, await cast.patient())

    assert ids(await record(service, await cast.patient())) == []


async def test_a_replay_lists_only_duplicates_from_before_its_recording(service: Service, cast: Cast) -> None:
    patient_id, key = await cast.patient(), f"key-{uuid4()}"
    before = await record(service, patient_id)
    await record(service, patient_id, key=key, notes="The same.")
    await record(service, patient_id)

    again = await record(service, patient_id, key=key, notes="The same.")

    assert again["replayed"]
    assert ids(again) == [before["encounter"]["id"]]


async def test_at_most_ten_duplicates_are_listed(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    inserted = [await insert(cast, patient_id, timedelta(minutes=minutes)) for minutes in range(1, 14)]

    assert ids(await record(service, patient_id)) == inserted[:10]


# Cost and authorization.


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements sent from now on that search for duplicates."""
    sent: list[str] = []
    original = PoolConnection.fetch

    async def fetch(self, statement, **values):
        if "alike" in statement.text:
            sent.append(statement.text)
        return await original(self, statement, **values)

    monkeypatch.setattr(PoolConnection, "fetch", fetch)
    return sent


async def test_duplicates_are_searched_for_once_and_only_if_selected(
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
async def service_with(database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """A service with the settings of the parameter, where a token is its own list of scopes."""

    async def verify(token: str) -> Caller:
        return Caller(client_id="limited", brand_id="loop", scopes=frozenset(token.split("+")))

    settings = Settings(database_url=database_url, database_acquire_seconds=30, **request.param)
    async with Service.running(settings, verify) as service:
        yield service


@pytest.mark.parametrize("service_with", [{"duplicate_window_minutes": 0}], indirect=True)
async def test_with_a_window_of_0_duplicates_are_not_searched_for(
    service_with: Service, cast: Cast, searches: list[str]
) -> None:
    patient_id = await cast.patient()

    for _ in range(2):
        answer = await service_with.graphql(RECORD, {"id": patient_id, "input": VISIT}, token="manage:encounters")
        assert answer["data"]["recordEncounter"]["possibleDuplicates"] == []

    assert searches == []


@pytest.mark.parametrize("service_with", [{}], indirect=True)
async def test_without_the_read_scope_duplicates_are_null_and_the_visit_recorded(
    service_with: Service, cast: Cast
) -> None:
    patient_id = await cast.patient()
    for _ in range(2):
        answer = await service_with.graphql(RECORD, {"id": patient_id, "input": VISIT}, token="write:encounters")

    recorded = answer["data"]["recordEncounter"]
    (error,) = answer["errors"]
    assert (recorded["possibleDuplicates"], error["path"][-1]) == (None, "possibleDuplicates")
    assert error["extensions"]["code"] == "insufficient_scope"
    assert [str(row["id"]) for row in await cast.rows(patient_id)][-1] == recorded["encounter"]["id"]


async def test_the_cost_below_possible_duplicates_counts_ten_times(service: Service, cast: Cast) -> None:
    below = "patient { encounters(first: 100) { nodes { patient { encounters(first: 100) { nodes { id } } } } } }"
    query = f"""mutation ($id: ID!) {{
      recordEncounter(patientId: $id, input: {{brandId: "loop", encounterType: LAB}}) {{
        ... on EncounterRecorded {{ possibleDuplicates {{ {below} }} }} }} }}"""
    patient_id = await cast.patient()

    (error,) = (await service.graphql(query, {"id": patient_id}))["errors"]

    assert error["extensions"]["violations"][0]["rule"] == "cost"
    assert await cast.count("encounters", patient_id) == 0


async def test_of_two_recordings_at_one_instant_the_lower_id_counts_as_earlier(service: Service, cast: Cast) -> None:
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
