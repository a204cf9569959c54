"""Many encounters in one request: each for itself, or all of them or none."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from gateway.settings import Settings
from resolvers.access import Caller
from tests.cast import Cast
from tests.doors import GraphQLDoor, RestDoor, Service

TABLES = ("encounters", "encounter_versions", "audit_log", "outbox", "idempotency_keys")
MARKER = "tuberculosis"
MANY = """mutation ($many: [RecordEncountersItem!]!, $all: Boolean) {
  recordEncounters(input: $many, allOrNothing: $all) { results {
    __typename
    ... on EncounterRecorded { replayed encounter { id notes } }
    ... on Problem { code message recorded }
    ... on InvalidInput { violations { path rule } }
  } }
}"""


def item(patient_id: str, key: str | None = None, **members: Any) -> dict[str, Any]:
    own = {"brandId": "loop", "encounterType": "LAB", **members}
    return {"patientId": patient_id, "input": own} | ({"idempotencyKey": key} if key else {})


async def record(service: Service, *items: dict[str, Any], all_or_nothing: bool = False, **options: Any) -> Any:
    """Record them, and give what came of each."""
    body = await service.graphql(MANY, {"many": list(items), "all": all_or_nothing}, **options)
    assert "errors" not in body, body
    return body["data"]["recordEncounters"]["results"]


def kinds(results: list[dict[str, Any]]) -> list[str]:
    return [each["__typename"] for each in results]


async def counts(cast: Cast, patient_id: str) -> set[int]:
    return {await cast.count(table, patient_id) for table in TABLES}


async def test_who_may_not_record_records_none_of_many(database_url: str, cast: Cast) -> None:
    async def verify(_token: str) -> Caller:
        return Caller(client_id="reader", brand_id="loop", scopes=frozenset({"read:encounters"}))

    async with Service.running(Settings(database_url=database_url), verify=verify) as service:
        for all_or_nothing in (False, True):
            body = await service.graphql(MANY, {"many": [item(await cast.patient())], "all": all_or_nothing})
            assert body["data"] is None
            assert [error["extensions"]["code"] for error in body["errors"]] == ["insufficient_scope"]


@pytest.mark.parametrize("all_or_nothing", [False, True])
async def test_each_of_many_is_recorded_whole_and_in_its_place(
    service_in_either_form: Service, cast: Cast, all_or_nothing: bool
) -> None:
    patient_id = await cast.patient()
    items = [item(patient_id, str(uuid4()), notes=f"Visit {number}.") for number in range(100)]

    results = await record(service_in_either_form, *items, all_or_nothing=all_or_nothing)

    assert kinds(results) == ["EncounterRecorded"] * 100
    assert [each["encounter"]["notes"] for each in results] == [f"Visit {number}." for number in range(100)]
    assert await counts(cast, patient_id) == {100}
    if all_or_nothing:
        # Their ids, and so their events, are in the order of the items.
        assert [str(row["id"]) for row in await cast.rows(patient_id)] == [each["encounter"]["id"] for each in results]


async def test_one_that_is_refused_does_not_spoil_the_others(service: Service, cast: Cast) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    await record(service, item(patient_id, key))

    results = await record(
        service,
        item(patient_id),
        item("nobody"),
        item(patient_id, notes="x" * 50_001),
        item(patient_id, f"{MARKER} {MARKER}"),
        item(patient_id, key),
        item(patient_id, key, notes=MARKER),
        item(patient_id),
    )

    assert kinds(results) == [
        "EncounterRecorded",
        "PatientNotFound",
        "InvalidInput",
        "InvalidInput",
        "EncounterRecorded",
        "IdempotencyKeyReused",
        "EncounterRecorded",
    ]
    assert [each.get("replayed") for each in results if "replayed" in each] == [False, True, False]
    assert [each["violations"][0]["path"] for each in results if "violations" in each] == [
        ["input", "2", "input", "notes"],
        ["input", "3", "idempotencyKey"],
    ]
    assert {each["recorded"] for each in results if "recorded" in each} == {"NO"}
    assert await cast.count("encounters", patient_id) == 3


async def test_one_that_is_refused_for_who_asks_is_null_with_an_error_at_its_place(
    service: Service, cast: Cast
) -> None:
    patient_id = await cast.patient()
    items = [item(patient_id), item(patient_id, brandId="loopbio"), item(patient_id)]

    body = await service.graphql(MANY, {"many": items})

    results = body["data"]["recordEncounters"]["results"]
    assert [each and each["__typename"] for each in results] == ["EncounterRecorded", None, "EncounterRecorded"]
    (error,) = body["errors"]
    assert error["path"] == ["recordEncounters", "results", 1]
    assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("forbidden", "no")
    assert await cast.count("encounters", patient_id) == 2


@pytest.mark.parametrize(
    ("refused", "kind"),
    [
        ({"patientId": "nobody"}, "PatientNotFound"),
        ({"patientId": "x" * 300}, "PatientNotFound"),
        ({"input": {"brandId": "loop", "encounterType": "LAB", "notes": "x" * 50_001}}, "InvalidInput"),
        ({"idempotencyKey": f"{MARKER} {MARKER}"}, "InvalidInput"),
    ],
)
async def test_of_all_or_nothing_nothing_is_kept_where_one_is_refused_and_each_says_so(
    service: Service, cast: Cast, *, refused: dict[str, Any], kind: str
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    items = [item(patient_id, key), item(patient_id) | refused, item(patient_id)]

    results = await record(service, *items, all_or_nothing=True)

    assert kinds(results) == ["EncounterHeldBack", kind, "EncounterHeldBack"]
    assert [each["recorded"] for each in results] == ["NO"] * 3
    assert {results[0]["code"], results[2]["code"]} == {"held_back"}
    assert await counts(cast, patient_id) == {0}
    # The key was not burnt.
    assert kinds(await record(service, item(patient_id, key), all_or_nothing=True)) == ["EncounterRecorded"]


async def test_a_replay_in_all_or_nothing_is_a_success_and_not_recorded_again(
    service_in_either_form: Service, cast: Cast
) -> None:
    patient_id, keys = await cast.patient(), [str(uuid4()) for _ in range(3)]
    earlier = await GraphQLDoor(service_in_either_form).record(
        patient_id, {"brand_id": "loop", "encounter_type": "lab"}, key=keys[1]
    )
    items = [item(patient_id, key) for key in keys]

    first = await record(service_in_either_form, *items, all_or_nothing=True)
    again = await record(service_in_either_form, *items, all_or_nothing=True)

    assert [each["replayed"] for each in first] == [False, True, False]
    assert [each["replayed"] for each in again] == [True] * 3
    assert first[1]["encounter"]["id"] == earlier.encounter["id"]
    assert [each["encounter"]["id"] for each in first] == [each["encounter"]["id"] for each in again]
    assert await counts(cast, patient_id) == {3}


async def test_one_of_many_is_the_same_encounter_as_the_same_request_alone_at_the_other_door(
    service: Service, cast: Cast
) -> None:
    patient_id, keys = await cast.patient(), [str(uuid4()) for _ in range(2)]

    for key, all_or_nothing in zip(keys, (False, True), strict=True):
        (result,) = await record(service, item(patient_id, key, notes="Fasting."), all_or_nothing=all_or_nothing)
        body = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}
        over_rest = await RestDoor(service).record(patient_id, body, key=key)
        assert over_rest.replayed
        assert over_rest.encounter["id"] == result["encounter"]["id"]


async def test_the_same_key_twice_in_one_request_is_one_encounter(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    for number, all_or_nothing in enumerate((False, True), 1):
        key = str(uuid4())
        results = await record(service, item(patient_id, key), item(patient_id, key), all_or_nothing=all_or_nothing)
        assert [each["replayed"] for each in results] == [False, True]
        assert results[0]["encounter"] == results[1]["encounter"]
        assert await counts(cast, patient_id) == {number}


async def test_where_all_or_nothing_is_refused_what_was_recorded_earlier_still_is_and_what_was_not_is_not(
    service: Service, cast: Cast
) -> None:
    patient_id, key, other = await cast.patient(), str(uuid4()), str(uuid4())
    await record(service, item(patient_id, key))

    results = await record(
        service,
        item(patient_id, key),
        item(patient_id, other),
        item(patient_id, other),
        item(patient_id, key, notes=MARKER),
        all_or_nothing=True,
    )

    assert kinds(results) == ["EncounterRecorded", "EncounterHeldBack", "EncounterHeldBack", "IdempotencyKeyReused"]
    assert results[0]["replayed"]
    assert await counts(cast, patient_id) == {1}


async def test_all_or_nothing_at_once_with_the_same_keys_in_opposite_order_is_once(
    service_in_either_form: Service, cast: Cast
) -> None:
    patient_id, keys = await cast.patient(), [str(uuid4()) for _ in range(20)]
    items = [item(patient_id, key) for key in keys]

    answers = await asyncio.gather(
        *(record(service_in_either_form, *items[:: 1 - 2 * (n % 2)], all_or_nothing=True) for n in range(6)),
        record(service_in_either_form, *items),
    )

    assert {kind for results in answers for kind in kinds(results)} == {"EncounterRecorded"}
    assert sum(not each["replayed"] for results in answers for each in results) == 20
    assert await counts(cast, patient_id) == {20}


@pytest.fixture
async def machine(database_url: str) -> AsyncIterator[Service]:
    """A service at which a machine of no brand calls."""

    async def verify(_token: str) -> Caller:
        return Caller(client_id="machine", scopes=frozenset({"write:encounters"}))

    async with Service.running(Settings(database_url=database_url), verify=verify) as service:
        yield service


async def test_a_machine_records_for_many_brands_at_once_but_not_as_a_whole(machine: Service, cast: Cast) -> None:
    patients = {brand: await cast.patient(brand) for brand in ("loop", "loopbio")}
    items = [item(patient_id, brandId=brand) for brand, patient_id in patients.items()]

    assert kinds(await record(machine, *items)) == ["EncounterRecorded"] * 2
    body = await machine.graphql(MANY, {"many": items, "all": True})

    assert body["data"] is None
    (error,) = body["errors"]
    assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("forbidden", "no")
    for patient_id in patients.values():
        assert await cast.count("encounters", patient_id) == 1


@pytest.mark.parametrize("all_or_nothing", [False, True])
async def test_none_is_nothing_and_more_than_100_are_refused(
    service: Service, cast: Cast, all_or_nothing: bool
) -> None:
    patient_id = await cast.patient()
    assert await record(service, all_or_nothing=all_or_nothing) == []

    body = await service.graphql(MANY, {"many": [item(patient_id)] * 101, "all": all_or_nothing})

    (error,) = body["errors"]
    (violation,) = error["extensions"]["violations"]
    assert (violation["pointer"], violation["rule"], violation["maximum"]) == ("/input", "too_many", 100)
    assert error["extensions"]["recorded"] == "no"
    assert await cast.count("encounters", patient_id) == 0


async def test_many_cost_as_many_writes_and_objects(database_url: str, cast: Cast) -> None:
    patient_id = await cast.patient()
    body = {"query": MANY, "variables": {"many": [item(patient_id)] * 7}, "extensions": {"cost": True}}
    async with Service.running(Settings(database_url=database_url, rate_writes_per_minute=10)) as service:
        answers = [await service.rest("POST", "/graphql", json=body) for _ in range(2)]

    assert answers[0].headers["x-ratelimit-remaining"] == "3"
    # Each of seven: the field, the list of results in it, the encounter, and the violations it might have.
    assert answers[0].json()["extensions"]["cost"]["requested"] == 7 * 4
    assert answers[1].json()["errors"][0]["extensions"]["code"] == "rate_limited"
    assert await cast.count("encounters", patient_id) == 7
