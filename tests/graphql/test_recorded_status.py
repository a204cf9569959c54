"""Recording a visit that has begun, ended or been called off already, with its status and times."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.cast import Cast
from tests.doors import GraphQLDoor, RestDoor, Service

START, END = "2026-01-31T09:30:00Z", "2026-01-31T09:50:00.5Z"

ENCOUNTER = """{ id status startedAt endedAt createdAt version allowedActions
  history { version kind changes { member before after } } }"""
OUTCOME = f"""{{
  __typename
  ... on EncounterRecorded {{ replayed encounter {ENCOUNTER} possibleDuplicates {{ id status }} }}
  ... on Problem {{ code recorded }}
  ... on InvalidInput {{ violations {{ path rule message received {{ type }} }} }}
}}"""
RECORD = f"""mutation ($id: ID!, $input: RecordEncounterInput!, $key: String, $only: Boolean) {{
  recordEncounter(patientId: $id, input: $input, idempotencyKey: $key, validateOnly: $only) {OUTCOME} }}"""
# Without `validateOnly` and nested lists, a plan serves the operation.
PLANNED = """mutation ($id: ID!, $input: RecordEncounterInput!) {
  recordEncounter(patientId: $id, input: $input) { ... on EncounterRecorded { encounter { status startedAt endedAt } } }
}"""
MANY = f"""mutation ($many: [RecordEncountersItem!]!, $all: Boolean) {{
  recordEncounters(input: $many, allOrNothing: $all) {{ results {OUTCOME} }} }}"""


def visit(**members: Any) -> dict[str, Any]:
    return {"brandId": "loop", "encounterType": "LAB", **members}


async def record(service: Service, patient_id: str, key: str | None = None, **members: Any) -> dict[str, Any]:
    """Record a visit; return the result."""
    only = members.pop("validate_only", None)
    body = await service.graphql(
        RECORD, {"id": patient_id, "input": visit(**members), "key": key} | ({"only": only} if only else {})
    )
    assert "errors" not in body, body
    result: dict[str, Any] = body["data"]["recordEncounter"]
    return result


def rules(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["path"][-1], each["rule"]) for each in result["violations"]]


BOTH = {"startedAt": START, "endedAt": END}
ACCEPTED: list[dict[str, str]] = [
    {"status": "IN_PROGRESS", "startedAt": START},
    {"status": "COMPLETED", **BOTH},
    {"status": "COMPLETED", "startedAt": START, "endedAt": START},
    {"status": "CANCELLED"},
    {"status": "CANCELLED", **BOTH},
    {"status": "NO_SHOW"},
    {"status": "NO_SHOW", **BOTH},
]


@pytest.mark.parametrize("sent", ACCEPTED)
async def test_the_first_version_has_the_status_and_the_times(
    service_in_either_form: Service, cast: Cast, sent: dict[str, str]
) -> None:
    recorded = await record(service_in_either_form, await cast.patient(), **sent)

    shown = {"startedAt": None, "endedAt": None} | sent
    encounter = recorded["encounter"]
    assert {name: encounter[name] for name in shown} == {
        name: value and value.replace(".5Z", ".500000Z") for name, value in shown.items()
    }
    (version,) = encounter["history"]
    assert (version["version"], version["kind"]) == (encounter["version"], "RECORDED") == (1, "RECORDED")
    changes = {each["member"]: (each["before"], each["after"]) for each in version["changes"]}
    assert changes == {name: (None, encounter[name]) for name in sent}


@pytest.mark.parametrize("sent", [{}, {"status": "SCHEDULED"}])
async def test_a_scheduled_visit_is_recorded_without_changes(
    service_in_either_form: Service, cast: Cast, sent: dict[str, str]
) -> None:
    recorded = await record(service_in_either_form, await cast.patient(), **sent)

    assert recorded["encounter"]["status"] == "SCHEDULED"
    assert [each["changes"] for each in recorded["encounter"]["history"]] == [[]]


async def test_the_event_is_that_of_every_recording(service_in_either_form: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    encounter = (await record(service_in_either_form, patient_id, status="COMPLETED", **BOTH))["encounter"]

    events = await cast.connection.fetch(
        "SELECT event_type, payload FROM patient_graph.outbox WHERE patient_id = $1", patient_id
    )
    assert [(event["event_type"], json.loads(event["payload"])) for event in events] == [
        (
            "patient_graph.encounter.recorded.v1",
            {
                "encounter_id": encounter["id"],
                "patient_id": patient_id,
                "brand_id": "loop",
                "encounter_type": "lab",
                "recorded_at": encounter["createdAt"],
            },
        )
    ]


async def test_a_plan_records_the_status_and_the_times(service: Service, cast: Cast) -> None:
    sent = {"status": "COMPLETED", "startedAt": START, "endedAt": START}

    body = await service.graphql(PLANNED, {"id": await cast.patient(), "input": visit(**sent)})

    assert body["data"]["recordEncounter"]["encounter"] == sent


# Refusals

NEEDED, EXCESS = "is required with this status", "must be left out with this status"
OF_SCHEDULED = "must be left out, or sent with another status than scheduled"


@pytest.mark.parametrize(
    ("sent", "broken"),
    [
        ({"status": "COMPLETED"}, {"startedAt": NEEDED, "endedAt": NEEDED}),
        ({"status": "COMPLETED", "startedAt": START}, {"endedAt": NEEDED}),
        ({"status": "IN_PROGRESS"}, {"startedAt": NEEDED}),
        ({"status": "IN_PROGRESS", **BOTH}, {"endedAt": EXCESS}),
        ({"status": "CANCELLED", "endedAt": END}, {"startedAt": "is required with the other time"}),
        ({"status": "NO_SHOW", "startedAt": START}, {"endedAt": "is required with the other time"}),
        ({"status": "SCHEDULED", "startedAt": START}, {"startedAt": OF_SCHEDULED}),
        ({"endedAt": END}, {"endedAt": OF_SCHEDULED}),
        (
            {"status": "ENTERED_IN_ERROR"},
            {"status": "must not be entered in error; record the encounter, then mark it"},
        ),
    ],
)
@pytest.mark.parametrize("validate_only", [False, True])
async def test_a_status_without_its_times_is_refused(
    service: Service, cast: Cast, sent: dict[str, str], broken: dict[str, str], validate_only: bool
) -> None:
    patient_id = await cast.patient()

    refused = await record(service, patient_id, validate_only=validate_only, **sent)

    assert (refused["__typename"], refused["code"], refused["recorded"]) == ("InvalidInput", "validation_error", "NO")
    assert {each["path"][-1]: each["message"] for each in refused["violations"]} == broken
    assert {each["rule"] for each in refused["violations"]} == {"recorded_status"}
    assert all((each["received"] is not None) is (each["path"][-1] in sent) for each in refused["violations"])
    assert await cast.count("encounters", patient_id) == 0


@pytest.mark.parametrize(
    ("sent", "broken"),
    [
        ({"status": "IN_PROGRESS", "startedAt": "2999-01-01T00:00:00Z"}, [("startedAt", "future")]),
        ({"status": "COMPLETED", "startedAt": START, "endedAt": "2999-01-01T00:00:00Z"}, [("endedAt", "future")]),
        ({"status": "NO_SHOW", "startedAt": END, "endedAt": START}, [("endedAt", "time_order")]),
        ({"status": None}, [("status", "null")]),
        (
            {"status": "COMPLETED", "startedAt": None, "endedAt": "now"},
            [("startedAt", "null"), ("endedAt", "date_time")],
        ),
    ],
)
async def test_impossible_times_are_refused(
    service: Service, cast: Cast, sent: dict[str, Any], broken: list[tuple[str, str]]
) -> None:
    assert rules(await record(service, await cast.patient(), **sent)) == broken


async def test_a_start_may_be_a_minute_ahead_and_the_end_is_not_before_it(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    now = datetime.now(UTC)
    ahead, far_ahead = (now + timedelta(seconds=seconds) for seconds in (45, 120))

    refused = await record(service, patient_id, status="IN_PROGRESS", startedAt=far_ahead.isoformat())
    encounter = (await record(service, patient_id, status="IN_PROGRESS", startedAt=ahead.isoformat()))["encounter"]
    completed = await service.graphql(
        "mutation ($id: ID!) { completeEncounter(id: $id) {"
        " ... on EncounterChanged { encounter { status startedAt endedAt } } } }",
        {"id": encounter["id"]},
    )

    assert rules(refused) == [("startedAt", "future")]
    assert completed["data"]["completeEncounter"]["encounter"] == {
        "status": "COMPLETED",
        "startedAt": encounter["startedAt"],
        "endedAt": encounter["startedAt"],
    }


# Repetition, batches and what follows


async def test_a_dry_run_accepts_what_a_recording_accepts(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    results = [await record(service, patient_id, validate_only=True, **sent) for sent in ACCEPTED]

    assert {each["__typename"] for each in results} == {"EncounterValid"}
    assert await cast.count("encounters", patient_id) == 0


@pytest.mark.parametrize("sent", [{"status": "SCHEDULED"}, {"externalIds": {}}])
@pytest.mark.parametrize("door", [RestDoor, GraphQLDoor])
async def test_a_member_that_changes_nothing_is_no_part_of_the_request(
    service_in_either_form: Service, cast: Cast, sent: dict[str, Any], door: type[RestDoor | GraphQLDoor]
) -> None:
    patient_id, key = await cast.patient(), uuid4().hex

    first = await record(service_in_either_form, patient_id, key, **sent)
    again = await door(service_in_either_form).record(
        patient_id, {"brand_id": "loop", "encounter_type": "lab"}, key=key
    )

    assert (first["replayed"], again.replayed) == (False, True)
    assert (again.encounter["id"], again.encounter["status"]) == (first["encounter"]["id"], "scheduled")


async def test_a_key_covers_the_status_and_the_times(service_in_either_form: Service, cast: Cast) -> None:
    patient_id, key = await cast.patient(), uuid4().hex

    first = await record(service_in_either_form, patient_id, key, status="COMPLETED", **BOTH)
    repeated = await record(service_in_either_form, patient_id, key, status="COMPLETED", **BOTH)
    others: list[dict[str, str]] = [
        {},
        {"status": "NO_SHOW", **BOTH},
        {"status": "COMPLETED", **BOTH, "endedAt": START},
    ]
    reused = [await record(service_in_either_form, patient_id, key, **other) for other in others]

    assert (repeated["replayed"], repeated["encounter"]) == (True, first["encounter"])
    assert {each["__typename"] for each in reused} == {"IdempotencyKeyReused"}
    assert await cast.count("encounters", patient_id) == 1


@pytest.mark.parametrize("all_or_nothing", [False, True])
async def test_each_item_of_a_batch_has_its_own_status(
    service_in_either_form: Service, cast: Cast, all_or_nothing: bool
) -> None:
    patient_id = await cast.patient()
    items = [{"patientId": patient_id, "input": visit(**sent)} for sent in [{}, *ACCEPTED]]

    body = await service_in_either_form.graphql(MANY, {"many": items, "all": all_or_nothing})

    encounters = [each["encounter"] for each in body["data"]["recordEncounters"]["results"]]
    assert [each["status"] for each in encounters] == ["SCHEDULED", *(sent["status"] for sent in ACCEPTED)]
    changed = [{change["member"] for change in each["history"][0]["changes"]} for each in encounters]
    assert changed == [set(sent) for sent in [{}, *ACCEPTED]]


async def test_a_visit_recorded_as_completed_warns_of_the_one_recorded_before(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    first = await record(service, patient_id, status="COMPLETED", **BOTH)
    second = await record(service, patient_id, status="COMPLETED", **BOTH)

    assert second["possibleDuplicates"] == [{"id": first["encounter"]["id"], "status": "COMPLETED"}]


async def test_a_recorded_status_allows_its_usual_actions(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    recorded = {sent["status"]: (await record(service, patient_id, **sent))["encounter"] for sent in ACCEPTED}
    cancelled = await service.graphql(
        f"mutation ($id: ID!) {{ cancelEncounter(id: $id) {{ ... on EncounterChanged {{ encounter {ENCOUNTER} }} }} }}",
        {"id": recorded["IN_PROGRESS"]["id"]},
    )

    after = {"MARK_ENTERED_IN_ERROR", "AMEND"}
    assert {status: set(each["allowedActions"]) for status, each in recorded.items()} == {
        "IN_PROGRESS": {"COMPLETE", "CANCEL", "UNDO_START"} | after,
        "COMPLETED": after,
        "CANCELLED": after,
        "NO_SHOW": after,
    }
    encounter = cancelled["data"]["cancelEncounter"]["encounter"]
    assert (encounter["status"], encounter["startedAt"]) == ("CANCELLED", START)
    assert encounter["endedAt"] > END
    assert [each["kind"] for each in encounter["history"]] == ["RECORDED", "CANCELLED"]
