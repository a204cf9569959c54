"""`recordEncounters`: items are independent, or with `allOrNothing` atomic."""

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
    """Record items; return the results."""
    body = await service.graphql(MANY, {"many": list(items), "all": all_or_nothing}, **options)
    assert "errors" not in body, body
    return body["data"]["recordEncounters"]["results"]


def typenames(results: list[dict[str, Any]]) -> list[str]:
    return [each["__typename"] for each in results]


async def counts(cast: Cast, patient_id: str) -> set[int]:
    return {await cast.count(table, patient_id) for table in TABLES}


async def test_without_the_write_scope_no_item_is_recorded(database_url: str, cast: Cast) -> None:
    async def verify(_token: str) -> Caller:
        return Caller(client_id="reader", brand_id="loop", scopes=frozenset({"read:encounters"}))

    async with Service.running(Settings(database_url=database_url), verify=verify) as service:
        for all_or_nothing in (False, True):
            body = await service.graphql(MANY, {"many": [item(await cast.patient())], "all": all_or_nothing})
            assert body["data"] is None
            assert [error["extensions"]["code"] for error in body["errors"]] == ["insufficient_scope"]


@pytest.mark.parametrize("all_or_nothing", [False, True])
async def test_100_items_are_recorded_completely_and_in_order(
    service_in_either_form: Service, cast: Cast, all_or_nothing: bool
) -> None:
    patient_id = await cast.patient()
    items = [item(patient_id, str(uuid4()), notes=f"Visit {number}.") for number in range(100)]

    results = await record(service_in_either_form, *items, all_or_nothing=all_or_nothing)

    assert typenames(results) == ["EncounterRecorded"] * 100
    assert [each["encounter"]["notes"] for each in results] == [f"Visit {number}." for number in range(100)]
    assert await counts(cast, patient_id) == {100}
    if all_or_nothing:
        # The ids, and so the events, are in the order of the items.
        assert [str(row["id"]) for row in await cast.rows(patient_id)] == [each["encounter"]["id"] for each in results]


async def test_a_refused_item_does_not_affect_the_others(service: Service, cast: Cast) -> None:
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

    assert typenames(results) == [
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


async def test_an_item_of_another_brand_is_null_with_an_error_at_its_path(service: Service, cast: Cast) -> None:
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
async def test_all_or_nothing_with_a_refused_item_records_none_and_says_so(
    service: Service, cast: Cast, *, refused: dict[str, Any], kind: str
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    items = [item(patient_id, key), item(patient_id) | refused, item(patient_id)]

    results = await record(service, *items, all_or_nothing=True)

    assert typenames(results) == ["EncounterHeldBack", kind, "EncounterHeldBack"]
    assert [each["recorded"] for each in results] == ["NO"] * 3
    assert {results[0]["code"], results[2]["code"]} == {"held_back"}
    assert await counts(cast, patient_id) == {0}
    # The key is still unused.
    assert typenames(await record(service, item(patient_id, key), all_or_nothing=True)) == ["EncounterRecorded"]


async def test_all_or_nothing_counts_a_replay_as_success(service_in_either_form: Service, cast: Cast) -> None:
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


async def test_an_item_and_the_same_single_request_over_rest_are_one_encounter(service: Service, cast: Cast) -> None:
    patient_id, keys = await cast.patient(), [str(uuid4()) for _ in range(2)]

    for key, all_or_nothing in zip(keys, (False, True), strict=True):
        (result,) = await record(service, item(patient_id, key, notes="Fasting."), all_or_nothing=all_or_nothing)
        body = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}
        over_rest = await RestDoor(service).record(patient_id, body, key=key)
        assert over_rest.replayed
        assert over_rest.encounter["id"] == result["encounter"]["id"]


async def test_two_items_with_one_key_record_one_encounter(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    for number, all_or_nothing in enumerate((False, True), 1):
        key = str(uuid4())
        results = await record(service, item(patient_id, key), item(patient_id, key), all_or_nothing=all_or_nothing)
        assert [each["replayed"] for each in results] == [False, True]
        assert results[0]["encounter"] == results[1]["encounter"]
        assert await counts(cast, patient_id) == {number}


async def test_a_refused_all_or_nothing_keeps_only_earlier_recordings(service: Service, cast: Cast) -> None:
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

    assert typenames(results) == ["EncounterRecorded", "EncounterHeldBack", "EncounterHeldBack", "IdempotencyKeyReused"]
    assert results[0]["replayed"]
    assert await counts(cast, patient_id) == {1}


async def test_concurrent_all_or_nothing_with_keys_in_reverse_records_once(
    service_in_either_form: Service, cast: Cast
) -> None:
    patient_id, keys = await cast.patient(), [str(uuid4()) for _ in range(20)]
    items = [item(patient_id, key) for key in keys]

    answers = await asyncio.gather(
        *(record(service_in_either_form, *items[:: 1 - 2 * (n % 2)], all_or_nothing=True) for n in range(6)),
        record(service_in_either_form, *items),
    )

    assert {kind for results in answers for kind in typenames(results)} == {"EncounterRecorded"}
    assert sum(not each["replayed"] for results in answers for each in results) == 20
    assert await counts(cast, patient_id) == {20}


@pytest.fixture
async def for_any_brand(database_url: str) -> AsyncIterator[Service]:
    """A service whose caller has a token of no brand."""

    async def verify(_token: str) -> Caller:
        return Caller(client_id="machine", scopes=frozenset({"write:encounters"}))

    async with Service.running(Settings(database_url=database_url), verify=verify) as service:
        yield service


async def test_items_may_be_of_several_brands_unless_all_or_nothing(for_any_brand: Service, cast: Cast) -> None:
    patients = {brand: await cast.patient(brand) for brand in ("loop", "loopbio")}
    items = [item(patient_id, brandId=brand) for brand, patient_id in patients.items()]

    assert typenames(await record(for_any_brand, *items)) == ["EncounterRecorded"] * 2
    body = await for_any_brand.graphql(MANY, {"many": items, "all": True})

    assert body["data"] is None
    (error,) = body["errors"]
    assert (error["extensions"]["code"], error["extensions"]["recorded"]) == ("forbidden", "no")
    for patient_id in patients.values():
        assert await cast.count("encounters", patient_id) == 1


@pytest.mark.parametrize("all_or_nothing", [False, True])
async def test_0_items_return_nothing_and_more_than_100_are_refused(
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


async def test_the_writes_and_cost_of_record_encounters_grow_with_its_items(database_url: str, cast: Cast) -> None:
    patient_id = await cast.patient()
    body = {"query": MANY, "variables": {"many": [item(patient_id)] * 7}, "extensions": {"cost": True}}
    async with Service.running(Settings(database_url=database_url, rate_writes_per_minute=10)) as service:
        answers = [await service.rest("POST", "/graphql", json=body) for _ in range(2)]

    assert answers[0].headers["x-ratelimit-remaining"] == "3"
    # For each of seven: the field, its list of results, the encounter, and its possible violations.
    assert answers[0].json()["extensions"]["cost"]["requested"] == 7 * 4
    assert answers[1].json()["errors"][0]["extensions"]["code"] == "rate_limited"
    assert await cast.count("encounters", patient_id) == 7
