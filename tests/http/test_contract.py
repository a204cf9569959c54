"""Answers of POST and GET of encounters against the published page of the endpoint, as JSON Schemas.

The schemas are copied here, not read from `rest/openapi.json`: an error there must not confirm itself.
"""

import json
import re
from datetime import datetime
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from tests.cast import Cast
from tests.doors import Service, parse_exact

NULLABLE = {"type": ["string", "null"]}

REQUEST_BODY = {
    "type": "object",
    "properties": {
        "brand_id": {"type": "string", "minLength": 1},
        "encounter_type": {"type": "string", "enum": ["office_visit", "telehealth", "lab", "pharmacy", "other"]},
        "provider_id": {"type": "string", "format": "uuid"},
        "scheduled_at": {"type": "string", "format": "date-time"},
        "chief_complaint": {"type": "string"},
        "notes": {"type": "string"},
        "metadata": {"type": "object", "additionalProperties": True, "default": {}},
    },
    "required": ["brand_id", "encounter_type"],
}

ENCOUNTER = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "patient_id": {"type": "string"},
        "provider_id": NULLABLE,
        "brand_id": {"type": "string"},
        "encounter_type": {"type": "string"},
        "status": {"type": "string"},
        "scheduled_at": NULLABLE,
        "started_at": NULLABLE,
        "ended_at": NULLABLE,
        "chief_complaint": NULLABLE,
        "notes": NULLABLE,
        "metadata": {"type": "object", "additionalProperties": True},
        "created_at": {"type": "string"},
        "updated_at": {"type": "string"},
    },
    "required": [
        "id", "patient_id", "provider_id", "brand_id", "encounter_type", "status", "scheduled_at", "started_at",
        "ended_at", "chief_complaint", "notes", "metadata", "created_at", "updated_at",
    ],
    "additionalProperties": False,
}  # fmt: skip

ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "message": {"type": "string"}},
    "required": ["error", "message"],
}

ENCOUNTERS = {
    "type": "object",
    "properties": {
        "patient_id": {"type": "string"},
        "encounters": {"type": "array", "items": ENCOUNTER},
        "total": {"type": "integer"},
    },
    "required": ["patient_id", "encounters", "total"],
    "additionalProperties": False,
}

# The page says `string`; the formats are a promise of the gateway.
OUR_FORMATS = {
    "properties": {
        "id": {"format": "uuid"},
        "provider_id": {"format": "uuid"},
        **{name: {"format": "utc"} for name in ("scheduled_at", "started_at", "ended_at", "created_at", "updated_at")},
    }
}

UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def is_uuid(value: object) -> bool:
    return not isinstance(value, str) or bool(UUID.fullmatch(value))


def is_date_time(value: object) -> bool:
    return not isinstance(value, str) or bool(DATE_TIME.fullmatch(value) and datetime.fromisoformat(value.upper()))


def is_utc(value: object) -> bool:
    return not isinstance(value, str) or (is_date_time(value) and value.endswith("Z"))


# jsonschema checks `date-time` only with another package, and is silent without it.
formats = FormatChecker(formats=())
formats.checks("uuid")(is_uuid)
formats.checks("date-time", raises=ValueError)(is_date_time)
formats.checks("utc", raises=ValueError)(is_utc)


def violations_of(schema: dict[str, Any], body: Any) -> list[str]:
    """Return the violations of a schema in a body, formats included."""
    Draft202012Validator.check_schema(schema)
    return [error.message for error in Draft202012Validator(schema, format_checker=formats).iter_errors(body)]


async def post(service: Service, patient_id: str, body: Any) -> httpx2.Response:
    return await service.rest(
        "POST",
        f"/v1/patients/{patient_id}/encounters",
        headers={"content-type": "application/json"},
        content=json.dumps(body),
    )


async def listed(service: Service, patient_id: str, query: str = "") -> httpx2.Response:
    return await service.rest("GET", f"/v1/patients/{patient_id}/encounters{query}")


VISIT: dict[str, Any] = {"brand_id": "loop", "encounter_type": "lab"}
EVERYTHING = VISIT | {
    "provider_id": "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "scheduled_at": "2026-03-29T02:30:00.5+01:00",
    "chief_complaint": "Sore throat",
    "notes": "Slept well.",
    "metadata": {"room": 7, "nested": {"list": [1, None, "x"]}},
}


# The schemas themselves: a schema that accepts everything would prove nothing


@pytest.mark.parametrize(
    "wrong",
    [
        {"encounter_type": "lab"},
        VISIT | {"brand_id": ""},
        VISIT | {"provider_id": "3f2504e04f8911d39a0c0305e82c3301"},
        VISIT | {"scheduled_at": "2026-02-30T10:00:00Z"},
        VISIT | {"scheduled_at": "2026-01-31 10:00:00"},
    ],
)
def test_the_copied_schema_refuses_what_the_published_page_refuses(wrong: dict[str, Any]) -> None:
    assert violations_of(REQUEST_BODY, wrong)


# POST


@pytest.mark.parametrize("body", [VISIT, EVERYTHING], ids=["required", "everything"])
async def test_a_recording_answers_201_with_exactly_the_published_members(
    service: Service, cast: Cast, body: dict[str, Any]
) -> None:
    answer = await post(service, await cast.patient(), body)

    assert violations_of(REQUEST_BODY, body) == []
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert violations_of(ENCOUNTER, answer.json()) == []
    assert violations_of(OUR_FORMATS, answer.json()) == []


BODIES: list[Any] = [
    VISIT,
    EVERYTHING,
    {},
    [VISIT],
    "visit",
    None,
    {"brand_id": "loop"},
    {"encounter_type": "lab"},
    VISIT | {"encounter_type": "LAB"},
    VISIT | {"encounter_type": "pharmacy"},
    VISIT | {"encounter_type": None},
    VISIT | {"provider_id": "not a uuid"},
    VISIT | {"provider_id": None},
    VISIT | {"provider_id": EVERYTHING["provider_id"].upper()},
    VISIT | {"scheduled_at": "2026-01-31T10:00:00"},
    VISIT | {"scheduled_at": "2026-01-31T10:00:00z"},
    VISIT | {"scheduled_at": "2026-13-31T10:00:00Z"},
    VISIT | {"scheduled_at": 1_700_000_000},
    VISIT | {"scheduled_at": None},
    VISIT | {"chief_complaint": 5},
    VISIT | {"notes": ["x"]},
    VISIT | {"notes": ""},
    VISIT | {"metadata": []},
    VISIT | {"metadata": "{}"},
    VISIT | {"metadata": None},
    VISIT | {"metadata": {"": {"a": []}}},
    VISIT | {"colour": "blue"},
]


@pytest.mark.parametrize("body", BODIES, ids=json.dumps)
async def test_a_body_is_recorded_if_and_only_if_the_schema_allows_it(service: Service, cast: Cast, body: Any) -> None:
    patient_id = await cast.patient()

    answer = await post(service, patient_id, body)

    assert answer.status_code == (400 if violations_of(REQUEST_BODY, body) else 201)
    assert len(await cast.rows(patient_id)) == (1 if answer.status_code == 201 else 0)


async def test_missing_metadata_is_the_published_default(service: Service, cast: Cast) -> None:
    answer = await post(service, await cast.patient(), VISIT)

    assert answer.json()["metadata"] == REQUEST_BODY["properties"]["metadata"]["default"]


async def test_an_unknown_patient_is_404_in_the_published_shape(service: Service) -> None:
    answer = await post(service, "nobody", VISIT)

    assert answer.status_code == 404
    assert violations_of(ERROR, answer.json()) == []


# GET


async def test_a_list_answers_200_in_the_published_shape(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    await post(service, patient_id, VISIT)
    await post(service, patient_id, EVERYTHING)

    answer = await listed(service, patient_id)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert violations_of(ENCOUNTERS, answer.json()) == []
    assert [violations_of(OUR_FORMATS, encounter) for encounter in answer.json()["encounters"]] == [[], []]


async def test_the_list_shows_the_answer_to_the_recording(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    recorded = await post(service, patient_id, EVERYTHING)

    assert parse_exact(await listed(service, patient_id))["encounters"] == [parse_exact(recorded)]


async def test_a_patient_without_encounters_has_an_empty_list(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    answer = await listed(service, patient_id)

    assert answer.status_code == 200
    assert answer.json() == {"patient_id": patient_id, "encounters": [], "total": 0}


async def test_total_counts_the_whole_list_and_the_newest_comes_first(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    ids = [(await post(service, patient_id, VISIT)).json()["id"] for _ in range(3)]

    answer = await listed(service, patient_id, "?limit=1&offset=1")

    assert violations_of(ENCOUNTERS, answer.json()) == []
    assert [encounter["id"] for encounter in answer.json()["encounters"]] == [ids[1]]
    assert answer.json()["total"] == 3


async def test_the_list_of_an_unknown_patient_is_404_in_the_published_shape(service: Service) -> None:
    answer = await listed(service, "nobody")

    assert answer.status_code == 404
    assert violations_of(ERROR, answer.json()) == []


# Both methods


@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_an_internal_error_is_500_in_the_published_shape(
    service: Service, cast: Cast, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    patient_id = await cast.patient()
    for method in ("fetch", "fetch_one"):
        monkeypatch.setattr(f"gateway.database.database.PoolConnection.{method}", None)  # calling None raises TypeError

    answer = await service.rest(verb, f"/v1/patients/{patient_id}/encounters", json=VISIT)

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/json"
    assert violations_of(ERROR, answer.json()) == []


async def test_head_is_answered_like_get_without_a_body(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    answer = await service.rest("HEAD", f"/v1/patients/{patient_id}/encounters")

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == (await listed(service, patient_id)).headers["content-length"]
