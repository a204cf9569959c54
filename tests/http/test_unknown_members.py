"""Unknown members and parameters of REST requests: listed in X-Ignored, or refused under `Prefer: handling=strict`."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.cast import Cast
from tests.doors import Service

VISIT: dict[str, Any] = {"brand_id": "loop", "encounter_type": "lab"}
MARKER = "tuberculosis"
STRICT = {"prefer": "handling=strict"}


async def record(
    service: Service, patient_id: str, body: dict[str, Any], query: str = "", **headers: str
) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await service.rest("POST", f"/v1/patients/{patient_id}/encounters{query}", headers=named, json=body)


def violations(answer: httpx2.Response) -> list[tuple[str, str]]:
    assert (answer.status_code, answer.json()["error"]) == (400, "validation_error")
    return [(each["pointer"], each["rule"]) for each in answer.json()["violations"]]


# Members of the body


@pytest.mark.parametrize(
    ("members", "ignored"),
    [
        ({}, None),
        ({"note": MARKER}, "note"),
        ({"status": "completed", "started_at": MARKER}, "status, started_at"),
        ({"scheduledAt": MARKER, "Notes": MARKER, "encounter-type": MARKER}, "scheduledAt, Notes, encounter-type"),
        ({" notes": MARKER}, '" notes"'),
        ({'notes"': MARKER, "notes\\": MARKER}, '"notes\\"", "notes\\\\"'),
        ({"notes\u00a0": MARKER}, "1"),
        ({"notes\r\nX-Evil: 1": MARKER}, "1"),
        ({MARKER: 1, "mrn": 2}, "2"),
        ({MARKER: 1, "note": 2}, "note, 1"),
        ({f"note{number}": 1 for number in range(25)}, ", ".join(f"note{number}" for number in range(20)) + ", 5"),
        ({f"{number:09}": 1 for number in range(5_000)}, "5000"),
        ({"notes" + "_" * 100: 1}, "1"),
    ],
)
async def test_ignored_members_are_listed_in_x_ignored(
    service: Service, cast: Cast, members: dict[str, Any], ignored: str | None
) -> None:
    answer = await record(service, await cast.patient(), VISIT | members)

    assert answer.status_code == 201
    assert answer.headers.get("x-ignored") == ignored
    assert "preference-applied" not in answer.headers
    assert MARKER not in str(answer.headers)


async def test_validate_only_lists_ignored_members(service: Service, cast: Cast) -> None:
    answer = await record(
        service, await cast.patient(), VISIT | {"note": MARKER, MARKER: 1}, "?validate_only=true&limit=5"
    )

    assert answer.status_code == 200
    assert answer.json()["ignored"] == {"names": ["note", "limit"], "others": 1}
    assert answer.headers["x-ignored"] == "note, limit, 1"
    assert MARKER not in answer.text


async def test_validate_only_lists_nothing_if_all_members_are_known(service: Service, cast: Cast) -> None:
    answer = await record(service, await cast.patient(), VISIT, "?validate_only=true")

    assert "ignored" not in answer.json()
    assert "x-ignored" not in answer.headers


async def test_a_refusal_lists_ignored_members_too(service: Service, cast: Cast) -> None:
    answer = await record(service, await cast.patient(), {"brand_id": "loop", "encounter_typ": "lab"})

    assert violations(answer) == [("/encounter_type", "required")]
    assert answer.headers["x-ignored"] == "encounter_typ"


async def test_x_ignored_of_a_replay_belongs_to_the_current_request(service: Service, cast: Cast) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    sent: list[dict[str, Any]] = [{"note": 1}, {}, {"statuss": 1, MARKER: 1}]

    answers = [await record(service, patient_id, VISIT | members, idempotency_key=key) for members in sent]

    assert {answer.content for answer in answers} == {answers[0].content}
    assert [answer.headers.get("x-ignored") for answer in answers] == ["note", None, "statuss, 1"]
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true"]


# Strict handling


async def test_strict_handling_refuses_unknown_members_and_records_nothing(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    answer = await record(service, patient_id, VISIT | {"note": MARKER, "status": 1, MARKER: 1, "mrn": 2}, **STRICT)

    assert violations(answer) == [("/note", "unknown_member"), ("/status", "unknown_member"), ("", "unknown_member")]
    assert answer.json()["violations"][0]["allowed"] == ["notes"]
    assert answer.json()["recorded"] == "no"
    assert answer.headers["preference-applied"] == "handling=strict"
    assert MARKER not in answer.text + str(answer.headers)
    assert await cast.rows(patient_id) == []


async def test_strict_handling_reports_every_broken_rule_together(service: Service, cast: Cast) -> None:
    answer = await record(service, await cast.patient(), {"brand_id": "loop", "note": 1, "notes": None}, **STRICT)

    assert set(violations(answer)) == {
        ("/encounter_type", "required"),
        ("/notes", "null"),
        ("/note", "unknown_member"),
    }


async def test_another_brand_is_refused_before_strict_handling(service: Service, cast: Cast) -> None:
    answer = await record(service, await cast.patient(), VISIT | {"brand_id": "loopbio", "note": 1}, **STRICT)

    assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("prefer", "status", "applied"),
    [
        ("handling=strict", 400, "handling=strict"),
        ("Handling = STRICT", 400, "handling=strict"),
        ('handling="strict"', 400, "handling=strict"),
        ("return=minimal, handling=strict; x=y", 400, "handling=strict"),
        ("handling=lenient, handling=strict", 201, "handling=lenient"),
        ("handling=lenient", 201, "handling=lenient"),
        ("handling", 201, None),
        ("handling=other", 201, None),
        ('x="a, handling=strict, b"', 201, None),
        ("handlings=strict", 201, None),
        ('"', 201, None),
        ("", 201, None),
    ],
)
async def test_the_preference_is_parsed_by_rfc_7240(
    service: Service, cast: Cast, prefer: str, status: int, applied: str | None
) -> None:
    answer = await record(service, await cast.patient(), VISIT | {"note": 1}, prefer=prefer)

    assert (answer.status_code, answer.headers.get("preference-applied")) == (status, applied)


async def test_strict_handling_records_known_members(service: Service, cast: Cast) -> None:
    answer = await record(service, await cast.patient(), VISIT, **STRICT)

    assert (answer.status_code, answer.headers["preference-applied"]) == (201, "handling=strict")


# Parameters of the query


@pytest.mark.parametrize(
    "name",
    ["validateOnly", "validate-only", "Validate_Only", "validate_onyl", "validate_only%20", "validate_only%C2%A0"],
)
async def test_a_misspelt_validate_only_records_nothing(service: Service, cast: Cast, name: str) -> None:
    patient_id = await cast.patient()

    answer = await record(service, patient_id, VISIT, f"?{name}=true")

    assert violations(answer) == [("/validate_only", "misspelt_name")]
    assert answer.json()["violations"][0]["allowed"] == ["validate_only"]
    assert await cast.rows(patient_id) == []


@pytest.mark.parametrize(
    ("query", "right"), [("Limit=1", "limit"), ("limits=1", "limit"), ("ofset=1", "offset"), ("OFFSET=1", "offset")]
)
async def test_a_misspelt_parameter_of_a_list_is_refused(service: Service, cast: Cast, query: str, right: str) -> None:
    answer = await service.rest("GET", f"/v1/patients/{await cast.patient()}/encounters?{query}")

    assert violations(answer) == [(f"/{right}", "misspelt_name")]


@pytest.mark.parametrize(
    ("query", "ignored"),
    [
        ("status=completed", "status"),
        ("provider_id=x&limit=5", "provider_id"),
        (f"{MARKER}={MARKER}", "1"),
        ("validate_only=true&page=2", "validate_only, 1"),
    ],
)
async def test_other_unknown_parameters_are_listed_and_refused_if_strict(
    service: Service, cast: Cast, query: str, ignored: str
) -> None:
    path = f"/v1/patients/{await cast.patient()}/encounters"

    answers = [await service.rest("GET", f"{path}?{query}", headers=headers) for headers in ({}, STRICT)]

    assert [answer.status_code for answer in answers] == [200, 400]
    assert [answer.headers["x-ignored"] for answer in answers] == [ignored] * 2
    assert {rule for _, rule in violations(answers[1])} == {"unknown_member"}
    assert MARKER not in answers[1].text + str(answers[0].headers)


async def test_a_single_encounter_has_no_parameters(service: Service, cast: Cast) -> None:
    location = (await record(service, await cast.patient(), VISIT)).headers["location"]

    answers = [await service.rest("GET", f"{location}?limit=1", headers=headers) for headers in ({}, STRICT)]

    assert [answer.status_code for answer in answers] == [200, 400]
    assert answers[0].headers["x-ignored"] == "limit"


async def test_a_body_of_many_names_costs_no_more_than_parsing_it(service: Service, cast: Cast) -> None:
    """Each name is as long as a known one, so that its comparison is expensive; a hundred names are compared."""
    names = {f"x{number:09}y": 1 for number in range(14_000)}

    answer = await record(service, await cast.patient(), VISIT | names)

    assert (answer.status_code, answer.headers["x-ignored"]) == (201, "14000")
