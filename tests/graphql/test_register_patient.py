"""`registerPatient`: registers a patient once, in one brand."""

from typing import Any
from uuid import uuid4

import pytest

from gateway.settings import Settings
from resolvers.access import Caller
from tests.cast import Cast
from tests.doors import Service

REGISTER = """mutation ($input: RegisterPatientInput!, $key: String) {
  registerPatient(input: $input, idempotencyKey: $key) {
  __typename
  ... on PatientRegistered { alreadyKnown replayed patient { id brandId } }
  ... on Problem { code recorded }
  ... on InvalidInput { violations { path rule } }
} }"""


async def register(
    service: Service, token: str | None = "dev", key: str | None = None, **members: Any
) -> dict[str, Any]:
    """Register a patient; return the payload, or the extensions of the error."""
    given = {"brandId": "loop", "id": f"new-{uuid4()}"} | members
    body = await service.graphql(REGISTER, {"input": given, "key": key}, token=token)
    return body["data"]["registerPatient"] if body.get("data") else body["errors"][0]["extensions"]


async def test_registering_needs_a_token_and_the_scope(database_url: str, cast: Cast) -> None:
    async def verify(_token: str) -> Caller:
        return Caller("recorder", frozenset({"manage:encounters"}), brand_id="loop")

    async with Service.running(Settings(database_url=database_url), verify=verify) as service:
        assert (await register(service, token=None))["code"] == "unauthenticated"
        assert (await register(service))["code"] == "insufficient_scope"


async def test_encounters_of_a_registered_patient_can_be_recorded(service: Service, cast: Cast) -> None:
    patient_id = f"new-{uuid4()}"

    outcome = await register(service, id=patient_id, externalIds={"mrn": "12-34"})

    assert outcome["patient"] == {"id": patient_id, "brandId": "loop"}
    assert outcome["alreadyKnown"] is False
    path = f"/v1/patients/{patient_id}/encounters"
    assert (await service.rest("POST", path, json={"brand_id": "loop", "encounter_type": "lab"})).status_code == 201
    kept = "SELECT external_ids::text FROM patient_graph.patients WHERE id = $1"
    assert await cast.connection.fetchval(kept, patient_id) == '{"mrn": "12-34"}'


async def test_registering_a_known_patient_changes_nothing_and_is_not_audited(service: Service, cast: Cast) -> None:
    patient_id = f"new-{uuid4()}"
    await register(service, id=patient_id, externalIds={"mrn": "1"})

    again = await register(service, id=patient_id, externalIds={"mrn": "2"})

    assert (again["alreadyKnown"], again["patient"]["id"]) == (True, patient_id)
    entries = await cast.connection.fetch(
        "SELECT entity_type, entity_id FROM patient_graph.audit_log WHERE event_type = $1 AND patient_id = $2",
        "patient_graph.patient.registered",
        patient_id,
    )
    assert [tuple(row) for row in entries] == [("patient", patient_id)]


async def test_registering_in_another_brand_is_forbidden(service: Service) -> None:
    outcome = await register(service, brandId="loopbio")

    assert (outcome["code"], outcome["recorded"]) == ("forbidden", "no")


@pytest.mark.parametrize(
    ("members", "path", "rule"),
    [
        ({"id": ""}, ["input", "id"], "patient_id"),
        ({"id": "a/b"}, ["input", "id"], "patient_id"),
        ({"id": "x" * 201}, ["input", "id"], "patient_id"),
        ({"id": "a\u0000"}, ["input", "id"], "nul"),
        ({"externalIds": ["mrn"]}, ["input", "externalIds"], "object"),
        ({"externalIds": {"secret name": 7}}, ["input", "externalIds"], "string"),
        ({"externalIds": {f"system {n}": "7" for n in range(21)}}, ["input", "externalIds"], "too_many"),
    ],
)
async def test_a_registration_that_breaks_a_rule_is_invalid_input(
    service: Service, members: dict[str, Any], path: list[str], rule: str
) -> None:
    outcome = await register(service, **members)

    assert outcome["violations"] == [{"path": path, "rule": rule}]
