"""The argument `patientId` of what is found by the id of an encounter: it changes no answer, except of another patient.

`tests/database/test_shards.py` shows what it is for: a cluster queries the patient's shard only.
"""

from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from models import EncounterAction
from tests.cast import Cast
from tests.doors import Service
from tests.graphql.test_change_keys import TABLES
from tests.graphql.test_lifecycle import act, changed
from tests.waiting import wait_until

START = EncounterAction.START
IMPOSSIBLE = ["", "\u0000", "9" * 10_000]
"""Texts that are no id of a patient."""

FORMS = {"by a plan": "id status notes", "field by field": "id status notes history { version }"}
"""Selections of an encounter. No plan serves the second."""


class Visit(NamedTuple):
    patient_id: str
    encounter_id: str


@pytest.fixture
def service(service_in_either_form: Service) -> Service:
    return service_in_either_form


async def visit(service: Service, cast: Cast) -> Visit:
    patient_id = await cast.patient()
    body = {"brand_id": "loop", "encounter_type": "lab", "notes": "Slept well."}
    response = await service.rest("POST", f"/v1/patients/{patient_id}/encounters", json=body)
    return Visit(patient_id, response.json()["id"])


async def read(service: Service, encounter_id: str, patient_id: str | None, form: str = "by a plan") -> Any:
    query = f"query ($id: ID!, $patient: ID) {{ encounter(id: $id, patientId: $patient) {{ {FORMS[form]} }} }}"
    body = await service.graphql(query, {"id": encounter_id, "patient": patient_id})
    assert "errors" not in body, body
    return body["data"]["encounter"]


async def audited_reads(cast: Cast, patient_id: str) -> list[str]:
    rows = await cast.connection.fetch(
        "SELECT details::text FROM patient_graph.audit_log"
        " WHERE patient_id = $1 AND event_type = 'patient_graph.encounters.read'",
        patient_id,
    )
    return [row[0] for row in rows]


# Reads


@pytest.mark.parametrize("form", FORMS)
async def test_with_its_patient_an_encounter_is_read_as_without(service: Service, cast: Cast, form: str) -> None:
    patient_id, encounter_id = await visit(service, cast)
    alone = (
        await service.graphql(f"query ($id: ID!) {{ encounter(id: $id) {{ {FORMS[form]} }} }}", {"id": encounter_id})
    )["data"]["encounter"]

    assert alone["id"] == encounter_id
    assert await read(service, encounter_id, patient_id, form) == alone
    assert await read(service, encounter_id.upper(), patient_id, form) == alone
    assert await read(service, encounter_id, None, form) == alone


@pytest.mark.parametrize("form", FORMS)
async def test_with_another_patient_an_encounter_is_null_and_not_audited(
    service: Service, cast: Cast, form: str
) -> None:
    patient_id, encounter_id = await visit(service, cast)
    other, _ = await visit(service, cast)

    for another in (other, "nobody", *IMPOSSIBLE):
        assert await read(service, encounter_id, another, form) is None
    await read(service, encounter_id, patient_id, form)

    # The history is audited by itself.
    expected = ['{"encounters": 1}'] * (2 if "history" in FORMS[form] else 1)

    async def is_audited() -> bool:
        return len(await audited_reads(cast, patient_id)) >= len(expected)

    await wait_until(is_audited)
    assert await audited_reads(cast, patient_id) == expected
    assert await audited_reads(cast, other) == []


@pytest.mark.parametrize("form", FORMS)
async def test_exchanged_patients_of_two_encounters_find_neither(service: Service, cast: Cast, form: str) -> None:
    one, other = await visit(service, cast), await visit(service, cast)
    query = (
        "query ($a: ID!, $b: ID!, $of: ID, $by: ID) {"
        f" a: encounter(id: $a, patientId: $of) {{ {FORMS[form]} }}"
        f" b: encounter(id: $b, patientId: $by) {{ {FORMS[form]} }}"
        f" c: encounter(id: $a) {{ {FORMS[form]} }} }}"
    )
    variables = {"a": one.encounter_id, "b": other.encounter_id}

    async def found(of: str, by: str) -> list[str]:
        data = (await service.graphql(query, variables | {"of": of, "by": by}))["data"]
        return [name for name, encounter in data.items() if encounter]

    assert await found(one.patient_id, other.patient_id) == ["a", "b", "c"]
    assert await found(other.patient_id, one.patient_id) == ["c"]
    assert await found(one.patient_id, one.patient_id) == ["a", "c"]


async def test_a_representation_of_a_router_may_name_the_patient(subgraph: Service, cast: Cast) -> None:
    patient_id, encounter_id = await visit(subgraph, cast)
    asked = [
        {"__typename": "Encounter", "id": encounter_id, **of}
        for of in ({}, {"patientId": patient_id}, {"patientId": "nobody"}, {"patientId": None}, {"patientId": 7})
    ]

    body = await subgraph.graphql(
        "query ($asked: [_Any!]!) { _entities(representations: $asked) { ... on Encounter { id } } }", {"asked": asked}
    )

    assert [each and each["id"] for each in body["data"]["_entities"]] == [
        encounter_id, encounter_id, None, encounter_id, encounter_id,
    ]  # fmt: skip


# Changes


@pytest.mark.parametrize("action", EncounterAction)
async def test_with_its_patient_an_encounter_is_changed_as_without(
    service: Service, cast: Cast, action: EncounterAction
) -> None:
    patient_id, encounter_id = await visit(service, cast)
    if action in {EncounterAction.COMPLETE, EncounterAction.UNDO_START}:
        await changed(service, encounter_id, START, patient_id=patient_id)
    version = (await act(service, encounter_id, action, patient_id=patient_id))["encounter"]["version"]

    assert await cast.count("encounter_versions", patient_id) == version


@pytest.mark.parametrize("key", [None, "with a key"])
@pytest.mark.parametrize("action", EncounterAction)
async def test_with_another_patient_nothing_is_found_or_changed(
    service: Service, cast: Cast, action: EncounterAction, key: str | None
) -> None:
    patient_id, encounter_id = await visit(service, cast)
    other, _ = await visit(service, cast)
    key = key and f"key-{uuid4()}"
    if action in {EncounterAction.COMPLETE, EncounterAction.UNDO_START}:
        await changed(service, encounter_id, START)
    rows = [await cast.count(table, each) for table in TABLES for each in (patient_id, other)]

    for another in (other, "nobody", *IMPOSSIBLE):
        outcome = await act(service, encounter_id, action, patient_id=another, key=key)
        assert (outcome["__typename"], outcome["recorded"]) == ("EncounterNotFound", "NO")
        # As of an id that does not exist.
        assert outcome == await act(service, str(uuid4()), action, patient_id=another)

    assert rows == [await cast.count(table, each) for table in TABLES for each in (patient_id, other)]
    # The refused requests left the key unused.
    assert (await act(service, encounter_id, action, key=key))["replayed"] is False


async def test_the_patient_is_not_part_of_the_request_of_a_key(service: Service, cast: Cast) -> None:
    patient_id, encounter_id = await visit(service, cast)
    other = await visit(service, cast)
    key = f"key-{uuid4()}"
    first = await act(service, encounter_id, START, key=key, patient_id=patient_id)

    for of in (None, patient_id):
        again = await act(service, encounter_id, START, key=key, patient_id=of)
        assert (again["replayed"], again["encounter"]) == (True, first["encounter"])

    # The key does not show the encounter to a request that names another patient.
    for another in (other.patient_id, "nobody"):
        outcome = await act(service, encounter_id, START, key=key, patient_id=another)
        assert outcome["__typename"] == "EncounterNotFound"
    # Nor is it taken for the key of another encounter's change.
    for of in (None, other.patient_id, "nobody", *IMPOSSIBLE):
        reused = await act(service, other.encounter_id, START, key=key, patient_id=of)
        assert reused["__typename"] == "IdempotencyKeyReused"
