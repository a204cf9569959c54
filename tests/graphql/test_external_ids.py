"""`setPatientExternalIds`: replaces a patient's ids in other systems."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from gateway.settings import Settings
from resolvers import json_text
from resolvers.access import Caller
from tests.cast import Cast
from tests.doors import Service
from tests.graphql.test_register_patient import register

SET = """mutation ($id: ID!, $externalIds: JSON!, $key: String) {
  setPatientExternalIds(id: $id, externalIds: $externalIds, idempotencyKey: $key) {
    __typename
    ... on PatientChanged { replayed patient { id brandId } }
    ... on Problem { code recorded }
    ... on InvalidInput { violations { path rule maximum } }
} }"""


@pytest.fixture
def service(service_in_either_form: Service) -> Service:
    return service_in_either_form


async def set_ids(
    service: Service, patient_id: str, external_ids: object, key: str | None = None, token: str | None = "dev"
) -> dict[str, Any]:
    """Replace a patient's external ids; return the payload, or the extensions of the error."""
    body = await service.graphql(SET, {"id": patient_id, "externalIds": external_ids, "key": key}, token=token)
    return body["data"]["setPatientExternalIds"] if body.get("data") else body["errors"][0]["extensions"]


async def stored(cast: Cast, patient_id: str) -> Any:
    query = "SELECT external_ids::text FROM patient_graph.patients WHERE id = $1"
    return json_text.read(await cast.connection.fetchval(query, patient_id))


async def audited(cast: Cast, patient_id: str) -> list[tuple[str, str, Any]]:
    """Return the audit entries of changes of a patient's external ids."""
    rows = await cast.connection.fetch(
        "SELECT entity_type, entity_id, details::text FROM patient_graph.audit_log"
        " WHERE patient_id = $1 AND event_type = 'patient_graph.patient.external_ids_set' ORDER BY occurred_at",
        patient_id,
    )
    return [(row["entity_type"], row["entity_id"], json_text.read(row["details"])) for row in rows]


async def test_the_ids_replace_all_earlier_ones(service: Service, cast: Cast) -> None:
    patient_id = f"new-{uuid4()}"
    await register(service, id=patient_id, externalIds={"mrn": "12-34", "insurer": "A1"})

    outcome = await set_ids(service, patient_id, {"insurer": "B2"})

    assert outcome == {
        "__typename": "PatientChanged",
        "replayed": False,
        "patient": {"id": patient_id, "brandId": "loop"},
    }
    assert await stored(cast, patient_id) == {"insurer": "B2"}
    assert (await set_ids(service, patient_id, {}))["replayed"] is False
    assert await stored(cast, patient_id) == {}


async def test_a_change_is_audited_without_names_and_values(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    await set_ids(service, patient_id, {"clinic for addiction": "12-34", "mrn": "5"})
    await set_ids(service, patient_id, {"mrn": "5", "clinic for addiction": "12-34"})
    await set_ids(service, patient_id, {})

    # The second request changed nothing.
    assert await audited(cast, patient_id) == [
        ("patient", patient_id, {"external_ids": 2}),
        ("patient", patient_id, {"external_ids": 0}),
    ]


@pytest.mark.parametrize(
    ("external_ids", "rule"),
    [
        (["mrn"], "object"),
        ("mrn", "object"),
        ({"mrn": 7}, "string"),
        ({"mrn": None}, "string"),
        ({"mrn": {"a": "b"}}, "string"),
        ({"mrn": "a\u0000"}, "nul"),
        ({"m\u0000": "a"}, "nul"),
        ({f"system {number}": "7" for number in range(21)}, "too_many"),
    ],
)
async def test_ids_that_break_a_rule_are_invalid_input(
    service: Service, cast: Cast, external_ids: object, rule: str
) -> None:
    patient_id = await cast.patient()

    outcome = await set_ids(service, patient_id, external_ids)

    maximum = 20 if rule == "too_many" else None
    assert outcome["violations"] == [{"path": ["externalIds"], "rule": rule, "maximum": maximum}]
    assert outcome["recorded"] == "NO"
    assert await stored(cast, patient_id) == {}


async def test_twenty_ids_are_stored(service: Service, cast: Cast) -> None:
    patient_id, ids = await cast.patient(), {f"system {number}": "7" for number in range(20)}

    await set_ids(service, patient_id, ids)

    assert await stored(cast, patient_id) == ids


@pytest.mark.parametrize("patient_id", ["", "nobody", "a\u0000", "\ud800", "x" * 201])
async def test_an_unknown_patient_is_not_found(service: Service, patient_id: str) -> None:
    outcome = await set_ids(service, patient_id, {"mrn": "1"}, key=str(uuid4()))

    assert (outcome["__typename"], outcome["code"], outcome["recorded"]) == ("PatientNotFound", "not_found", "NO")


async def test_the_ids_of_another_brands_patient_stay_unchanged(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient("loopbio")

    outcome = await set_ids(service, patient_id, {"mrn": "1"})

    assert outcome["__typename"] == "PatientNotFound"
    assert await stored(cast, patient_id) == {}


async def test_setting_the_ids_needs_the_scope_of_a_registration(database_url: str, cast: Cast) -> None:
    scopes = {"recorder": "manage:encounters", "registrar": "write:patients"}
    patient_id = await cast.patient()

    async def verify(token: str) -> Caller:
        return Caller(token, frozenset({scopes[token]}), brand_id="loop")

    async with Service.running(Settings(database_url=database_url), verify=verify) as strict:
        assert (await set_ids(strict, patient_id, {}, token=None))["code"] == "unauthenticated"
        assert (await set_ids(strict, patient_id, {}, token="recorder"))["code"] == "insufficient_scope"
        assert (await set_ids(strict, patient_id, {}, token="registrar"))["__typename"] == "PatientChanged"


async def test_a_repeated_request_under_its_key_keeps_a_later_change(service: Service, cast: Cast) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    await set_ids(service, patient_id, {"mrn": "1"}, key)
    await set_ids(service, patient_id, {"mrn": "2"})

    again = await set_ids(service, patient_id, {"mrn": "1"}, key)

    assert again["replayed"]
    assert await stored(cast, patient_id) == {"mrn": "2"}


async def test_a_used_key_is_refused_for_other_ids_and_other_patients(service: Service, cast: Cast) -> None:
    patient_id, other_id, key = await cast.patient(), await cast.patient(), str(uuid4())
    await set_ids(service, patient_id, {"mrn": "1"}, key)

    others = [
        await set_ids(service, patient_id, {"mrn": "2"}, key),
        await set_ids(service, other_id, {"mrn": "1"}, key),
        await set_ids(service, "nobody", {"mrn": "1"}, key),
    ]

    assert {(each["__typename"], each["recorded"]) for each in others} == {("IdempotencyKeyReused", "NO")}
    assert [await stored(cast, each) for each in (patient_id, other_id)] == [{"mrn": "1"}, {}]


async def test_a_refused_change_of_the_ids_leaves_its_key_unused(service: Service, cast: Cast) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    await set_ids(service, "nobody", {"mrn": "1"}, key)
    await set_ids(service, patient_id, {"mrn": 1}, key)

    assert (await set_ids(service, patient_id, {"mrn": "1"}, key))["replayed"] is False


async def test_twenty_concurrent_duplicates_are_one_change_of_the_ids(service: Service, cast: Cast) -> None:
    patient_id, key = await cast.patient(), str(uuid4())

    outcomes = await asyncio.gather(*(set_ids(service, patient_id, {"mrn": "1"}, key) for _ in range(20)))

    assert [each["replayed"] for each in outcomes].count(False) == 1
    assert len(await audited(cast, patient_id)) == 1
