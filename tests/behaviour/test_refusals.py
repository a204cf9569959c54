"""Refusals and their order, over either door; a refused request stores nothing."""

from typing import Any

import pytest

from tests.cast import Cast
from tests.doors import Door

VISIT = {"brand_id": "loop", "encounter_type": "lab"}


# First: authentication and authorization.


async def test_a_missing_token_takes_precedence_over_every_other_fault(door: Door) -> None:
    outcome = await door.record("nobody", {"encounter_type": 5}, token=None)

    assert (outcome.code, outcome.recorded) == ("unauthenticated", "no")


async def test_an_invalid_token_takes_precedence_over_faults_of_the_body(door: Door) -> None:
    outcome = await door.record("nobody", {"encounter_type": 5}, token="dev2")

    assert (outcome.code, outcome.recorded) == ("invalid_token", "no")


async def test_a_body_of_another_brand_is_forbidden_before_it_is_validated(door: Door, cast: Cast) -> None:
    patient_id = await cast.patient("loopbio")

    outcome = await door.record(patient_id, {"brand_id": "loopbio", "encounter_type": "lab", "notes": "\x00"})

    assert outcome.code == "forbidden"
    assert await cast.rows(patient_id) == []


async def test_a_brand_header_that_contradicts_the_token_is_forbidden(door: Door, cast: Cast) -> None:
    outcome = await door.record(await cast.patient(), VISIT, brand_header="loopbio")

    assert outcome.code == "forbidden"


# Second: validation.

LONG = "x" * 50_001
DEEP: dict[str, Any] = {}
for _ in range(32):
    DEEP = {"deeper": DEEP}


@pytest.mark.parametrize(
    ("member", "value", "rule"),
    [
        ("brand_id", "", "too_short"),
        ("provider_id", "not-a-uuid", "uuid"),
        ("provider_id", "3f2504e04f8911d39a0c0305e82c3301", "uuid"),
        ("provider_id", None, "null"),
        ("scheduled_at", "0", "date_time"),
        ("scheduled_at", "1700000000", "date_time"),
        ("scheduled_at", "2026-01-31", "date_time"),
        ("scheduled_at", "2026-02-30T10:00:00Z", "date_time"),
        ("scheduled_at", "2026-01-31T10:00:00", "offset"),
        ("scheduled_at", "0001-01-01T00:00:00+05:00", "date_time"),
        ("scheduled_at", "2026-01-31T10:00:00+01:60", "date_time"),
        ("scheduled_at", "2026-01-31T10:00:00-05:99", "date_time"),
        ("scheduled_at", "2026-01-31T10:00:00+24:00", "date_time"),
        ("scheduled_at", "2026-01-31T24:00:00Z", "date_time"),
        ("scheduled_at", "2016-12-31T23:59:60Z", "date_time"),
        ("scheduled_at", "0000-01-31T10:00:00Z", "date_time"),
        ("scheduled_at", "٢٠٢٦-01-31T10:00:00Z", "date_time"),
        ("scheduled_at", None, "null"),
        ("chief_complaint", "x" * 2_001, "too_long"),
        ("chief_complaint", "a\x00b", "nul"),
        ("chief_complaint", None, "null"),
        ("notes", LONG, "too_long"),
        ("notes", "a\x00b", "nul"),
        ("notes", "\ud800", "surrogate"),
        ("notes", None, "null"),
        ("metadata", [], "object"),
        ("metadata", "{}", "object"),
        ("metadata", 5, "object"),
        ("metadata", None, "null"),
        ("metadata", DEEP, "too_deep"),
        ("metadata", {"a": "x" * 65_536}, "too_large"),
        ("metadata", {"a": ["\x00"]}, "nul"),
        ("metadata", {"\x00": 1}, "nul"),
        ("metadata", {"a": {"b": "\udfff"}}, "surrogate"),
    ],
)
async def test_a_broken_rule_is_reported_with_its_member(
    door: Door, cast: Cast, member: str, value: Any, rule: str
) -> None:
    patient_id = await cast.patient()

    outcome = await door.record(patient_id, VISIT | {member: value})

    assert (outcome.code, outcome.recorded) == ("validation_error", "no")
    assert outcome.rules == {(member, rule)}
    assert await cast.rows(patient_id) == []


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("brand_id", 5),
        ("encounter_type", "house_call"),
        ("encounter_type", 5),
        ("encounter_type", None),
        ("provider_id", 5),
        ("scheduled_at", 0),
        ("scheduled_at", 1700000000),
        ("chief_complaint", ["x"]),
        ("notes", 5),
        ("notes", {"text": "x"}),
        ("notes", True),
    ],
)
async def test_a_value_of_the_wrong_type_is_refused_with_its_member(
    door: Door, cast: Cast, member: str, value: Any
) -> None:
    patient_id = await cast.patient()

    outcome = await door.record(patient_id, VISIT | {member: value})

    assert (outcome.code, outcome.recorded) == ("validation_error", "no")
    assert {name for name, _ in outcome.rules} == {member}
    assert await cast.rows(patient_id) == []


@pytest.mark.parametrize("member", ["brand_id", "encounter_type"])
async def test_a_missing_required_member_is_named(door: Door, cast: Cast, member: str) -> None:
    members = {name: value for name, value in VISIT.items() if name != member}

    outcome = await door.record(await cast.patient(), members)

    assert outcome.rules == {(member, "required")}


async def test_all_broken_rules_are_reported_together(door: Door, cast: Cast) -> None:
    outcome = await door.record(await cast.patient(), VISIT | {"notes": LONG, "scheduled_at": "soon", "metadata": []})

    assert outcome.rules == {("notes", "too_long"), ("scheduled_at", "date_time"), ("metadata", "object")}


# Third: existence of the patient.


@pytest.mark.parametrize("patient_id", ["nobody", "a" * 5_000, "%00", "%ed%a0%80", "null", "'; DROP TABLE patients"])
async def test_an_unknown_patient_is_not_found(door: Door, patient_id: str) -> None:
    outcome = await door.record(patient_id, VISIT)

    assert (outcome.code, outcome.recorded) == ("not_found", "no")


async def test_a_patient_of_another_brand_is_refused_like_an_unknown_one(door: Door, cast: Cast) -> None:
    patient_id = await cast.patient("loopbio")

    foreign, unknown = await door.record(patient_id, VISIT), await door.record("nobody", VISIT)

    assert foreign == unknown
    assert await door.listed(patient_id) is None


async def test_one_patient_id_in_two_brands_is_two_patients(door: Door, cast: Cast) -> None:
    patient_id = await cast.patient("loop")
    await cast.connection.execute(
        "INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loopbio')", patient_id
    )

    await door.record(patient_id, VISIT)

    in_loop, in_loopbio = [await door.listed(patient_id, token=token) for token in ("dev", "dev-loopbio")]
    assert in_loop is not None
    assert in_loop[1] == 1
    assert in_loopbio == ([], 0)
