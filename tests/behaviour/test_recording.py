"""Guarantees of recording an encounter, over either door."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from tests.cast import Cast
from tests.doors import Door, Service

VISIT = {"brand_id": "loop", "encounter_type": "office_visit"}
EVERYTHING = VISIT | {
    "provider_id": "3F2504E0-4F89-11D3-9A0C-0305E82C3301",
    "scheduled_at": "2026-03-29T02:30:00.123456+01:00",
    "chief_complaint": "Sore throat since Monday",
    "notes": "Ünïcödé, two\nlines, a tab\t and 🩺",
    "metadata": {"room": 7, "weights": [1, 2], "nested": {"empty": {}, "none": None, "yes": True}},
}


@pytest.fixture
def service(service_in_either_form: Service) -> Service:
    return service_in_either_form


async def test_a_recording_returns_the_values_that_were_sent(door: Door, cast: Cast) -> None:
    outcome = await door.record(await cast.patient(), EVERYTHING)

    assert outcome.code is None
    assert outcome.encounter == outcome.encounter | EVERYTHING | {
        "provider_id": "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        "scheduled_at": "2026-03-29T01:30:00.123456Z",
        "status": "scheduled",
        "started_at": None,
        "ended_at": None,
    }


async def test_a_recording_is_in_the_table_when_its_answer_arrives(door: Door, cast: Cast) -> None:
    patient_id = await cast.patient()

    outcome = await door.record(patient_id, EVERYTHING)

    (row,) = await cast.rows(patient_id)
    assert str(row["id"]) == outcome.encounter["id"]
    assert row["scheduled_at"] == datetime(2026, 3, 29, 1, 30, 0, 123456, UTC)
    assert row["version"] == 1


async def test_omitted_members_are_null_and_omitted_metadata_is_empty(door: Door, cast: Cast) -> None:
    patient_id = await cast.patient()

    outcome = await door.record(patient_id, VISIT)

    absent = ("provider_id", "scheduled_at", "started_at", "ended_at", "chief_complaint", "notes")
    assert {name: outcome.encounter[name] for name in absent} == dict.fromkeys(absent)
    assert outcome.encounter["metadata"] == {}


async def test_ids_are_increasing_uuids_of_version_7(door: Door, cast: Cast) -> None:
    patient_id = await cast.patient()

    first = await door.record(patient_id, VISIT)
    second = await door.record(patient_id, VISIT)

    assert UUID(first.encounter["id"]).version == 7
    assert first.encounter["id"] < second.encounter["id"]


async def test_created_at_and_updated_at_are_the_time_of_recording(door: Door, cast: Cast) -> None:
    outcome = await door.record(await cast.patient(), VISIT)

    created_at = datetime.fromisoformat(outcome.encounter["created_at"])
    assert abs(datetime.now(UTC) - created_at) < timedelta(minutes=1)
    assert outcome.encounter["updated_at"] == outcome.encounter["created_at"]


async def test_every_digit_of_a_number_in_metadata_is_kept(door: Door, cast: Cast) -> None:
    numbers = {"dose": Decimal("1.50"), "big": 2**70, "small": Decimal("0.1000000000000000055511151231257827")}

    outcome = await door.record(await cast.patient(), VISIT | {"metadata": numbers})

    assert str(outcome.encounter["metadata"]["dose"]) == "1.50"
    assert outcome.encounter["metadata"] == numbers


async def test_unknown_members_are_ignored_over_rest_and_refused_over_graphql(door: Door, cast: Cast) -> None:
    patient_id = await cast.patient()

    outcome = await door.record(patient_id, VISIT | {"colour": "blue", "status": "completed"})

    if outcome.code is None:
        assert outcome.encounter["status"] == "scheduled"
    else:
        assert outcome.code == "validation_error"
        assert await cast.rows(patient_id) == []


@pytest.mark.parametrize(
    "instant",
    ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z", "2024-02-29T12:00:00Z"],
)
async def test_instants_at_the_limits_of_the_calendar_are_unchanged(door: Door, cast: Cast, instant: str) -> None:
    outcome = await door.record(await cast.patient(), VISIT | {"scheduled_at": instant})

    assert outcome.encounter["scheduled_at"] == instant


async def test_text_limits_count_characters_and_include_the_limit(door: Door, cast: Cast) -> None:
    longest = {"chief_complaint": "é" * 2_000, "notes": "n" * 50_000}

    outcome = await door.record(await cast.patient(), VISIT | longest)

    assert outcome.encounter == outcome.encounter | longest


async def test_an_empty_text_is_stored_as_an_empty_text(door: Door, cast: Cast) -> None:
    outcome = await door.record(await cast.patient(), VISIT | {"notes": ""})

    assert outcome.encounter["notes"] == ""


async def test_a_negative_zero_is_returned_alike_by_recording_and_list(door: Door, cast: Cast) -> None:
    patient_id = await cast.patient()

    outcome = await door.record(patient_id, VISIT | {"metadata": {"a": -0.0, "b": [Decimal("-0.00"), Decimal("-0.5")]}})

    listed = await door.listed(patient_id)
    assert listed is not None
    for shown in (outcome.encounter, listed[0][0]):
        assert str(shown["metadata"]["a"]) == "0.0"
        assert list(map(str, shown["metadata"]["b"])) == ["0.00", "-0.5"]
