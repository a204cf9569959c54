"""`GET /v1/patients/{patient_id}/encounters/{encounter_id}`: authorization, unknown ids, audit entries."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest

from gateway.settings import Settings
from tests.cast import Cast
from tests.doors import Service, parse_exact
from tests.http.test_contract import ENCOUNTER, EVERYTHING, violations_of
from tests.http.test_errors import refused, verify
from tests.waiting import wait_until

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Not for others."}


@pytest.fixture
async def recorded_encounter(service: Service, cast: Cast) -> dict[str, Any]:
    return (await service.rest("POST", of(await cast.patient()), json=VISIT)).json()


@pytest.fixture(scope="module")
async def guarded(database_url: str) -> AsyncIterator[Service]:
    """The service, with callers that have different scopes."""
    async with Service.running(Settings(database_url=database_url), verify) as running:
        yield running


def of(patient_id: str, encounter_id: str | None = None) -> str:
    path = f"/v1/patients/{quote(patient_id, safe='')}/encounters"
    return path if encounter_id is None else f"{path}/{encounter_id}"


async def test_a_missing_token_is_401_and_a_write_only_scope_403(
    guarded: Service, recorded_encounter: dict[str, Any]
) -> None:
    path = of(recorded_encounter["patient_id"], recorded_encounter["id"])

    refused(await guarded.rest("GET", path, token=None), 401, "unauthenticated")
    answer = await guarded.rest("GET", path, token="writer")

    refused(answer, 403, "insufficient_scope")
    assert 'scope="read:encounters"' in answer.headers["www-authenticate"]


async def test_a_reader_gets_the_fourteen_members(service: Service, guarded: Service, cast: Cast) -> None:
    recorded = await service.rest("POST", of(await cast.patient()), json=EVERYTHING)

    answer = await guarded.rest("GET", recorded.headers["location"], token="reader")

    assert answer.status_code == 200
    assert violations_of(ENCOUNTER, answer.json()) == []
    assert parse_exact(answer) == parse_exact(recorded)


async def test_a_machine_acts_for_the_brand_it_states(guarded: Service, recorded_encounter: dict[str, Any]) -> None:
    path = of(recorded_encounter["patient_id"], recorded_encounter["id"])

    stated, other, unstated = [
        await guarded.rest("GET", path, token="machine", headers=headers)
        for headers in ({"x-brand-id": "loop"}, {"x-brand-id": "loopbio"}, {})
    ]

    assert [answer.status_code for answer in (stated, other, unstated)] == [200, 404, 403]


async def test_an_encounter_of_another_patient_of_the_brand_is_404(
    service: Service, cast: Cast, recorded_encounter: dict[str, Any]
) -> None:
    refused(await service.rest("GET", of(await cast.patient(), recorded_encounter["id"])), 404, "not_found")


@pytest.mark.parametrize(
    "encounter_id",
    ["x", "%00", "%ff", "%ed%a0%80", "1", "null", "..%2f..", "{}", "a" * 5_000, "'; DROP TABLE encounters", "%20",
     "00000000-0000-0000-0000-000000000000", "3f2504e04f8911d39a0c0305e82c3301", "%E2%80%8B"],
)  # fmt: skip
async def test_an_invalid_id_is_404(service: Service, recorded_encounter: dict[str, Any], encounter_id: str) -> None:
    refused(await service.rest("GET", of(recorded_encounter["patient_id"], encounter_id)), 404, "not_found")


@pytest.mark.parametrize("form", ["{{{}}}", "urn:uuid:{}", " {}", "{}\n", "{}/"])
async def test_an_id_in_another_form_is_404(service: Service, recorded_encounter: dict[str, Any], form: str) -> None:
    path = of(recorded_encounter["patient_id"], quote(form.format(recorded_encounter["id"]), safe="/"))

    refused(await service.rest("GET", path), 404, "not_found")


async def test_an_id_in_capitals_is_the_same_id(service: Service, recorded_encounter: dict[str, Any]) -> None:
    answer = await service.rest("GET", of(recorded_encounter["patient_id"], recorded_encounter["id"].upper()))

    assert answer.json() == recorded_encounter


@pytest.mark.parametrize("patient_id", ["\x00", "a" * 201, "é", " ", "null", "nobody"])
async def test_an_impossible_patient_is_404(
    service: Service, recorded_encounter: dict[str, Any], patient_id: str
) -> None:
    refused(await service.rest("GET", of(patient_id, recorded_encounter["id"])), 404, "not_found")


@pytest.mark.parametrize("name", ["p 1-{}", "pé-{}", "p%-{}", "p?#-{}", 'p"<>-{}'])
async def test_the_location_is_valid_for_any_characters_of_the_patient_id(
    service: Service, cast: Cast, name: str
) -> None:
    patient_id = name.format(uuid4().hex[:12])
    await cast.connection.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')", patient_id)

    recorded = await service.rest("POST", of(patient_id), json=VISIT)
    shown = await service.rest("GET", recorded.headers["location"])

    assert shown.json()["patient_id"] == patient_id


async def test_a_read_and_a_miss_are_audited(service: Service, cast: Cast, recorded_encounter: dict[str, Any]) -> None:
    found = "SELECT event_type, patient_id, details FROM patient_graph.audit_log WHERE request_id = $1"
    read, missed = f"read-{uuid4()}", f"missed-{uuid4()}"

    await service.rest(
        "GET", of(recorded_encounter["patient_id"], recorded_encounter["id"]), headers={"x-request-id": read}
    )
    await service.rest("GET", of(recorded_encounter["patient_id"], str(uuid4())), headers={"x-request-id": missed})

    async def both_audited() -> bool:
        return all([await cast.connection.fetchrow(found, each) for each in (read, missed)])

    await wait_until(both_audited)
    noted, refusal = [await cast.connection.fetchrow(found, each) for each in (read, missed)]
    assert (noted["event_type"], noted["patient_id"]) == (
        "patient_graph.encounters.read",
        recorded_encounter["patient_id"],
    )
    assert (refusal["event_type"], refusal["patient_id"]) == ("patient_graph.request.refused", "")


@pytest.mark.parametrize(
    "members",
    [
        {},
        EVERYTHING,
        {
            "notes": 'Quotes " and \\ and /, \u0001\u0008\u000b\u000c\u001f\u007f\u2028 and 🩺\r\n\t',
            "chief_complaint": "",
        },
        {"scheduled_at": "0001-01-01T00:00:00Z", "metadata": {"b": [1.50, 1e3, None, True], "ä": {"x": "y"}}},
        {"scheduled_at": "9999-12-31T23:59:59.999999Z", "metadata": {"0": 12345678901234567890.123456789}},
        {"scheduled_at": "0033-02-01T10:00:00.120000+01:00", "provider_id": str(UUID(int=7)).upper()},
        {"scheduled_at": "2026-12-01T10:00:00.000001Z"},
        *({"scheduled_at": f"0999-12-01T10:00:00.{'123456'[:digits]}Z"} for digits in range(1, 6)),
    ],
)
async def test_an_encounter_has_the_same_bytes_in_a_list(service: Service, cast: Cast, members: dict[str, Any]) -> None:
    """PostgreSQL writes the list, and Python the single encounter."""
    patient_id = await cast.patient()
    paths = [(await service.rest("POST", of(patient_id), json=VISIT | members)).headers["location"] for _ in range(2)]
    first, second = [(await service.rest("GET", path)).content for path in paths]

    listed = await service.rest("GET", of(patient_id))

    assert listed.content == b'{"patient_id":"%b","encounters":[%b,%b],"total":2}' % (
        patient_id.encode(),
        second,
        first,
    )
