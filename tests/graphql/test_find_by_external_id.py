"""External ids: recorded, registered, corrected, shown, and found within the brand."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.patients import MAX_FOUND
from tests.cast import Cast
from tests.conftest import GENEROUS_LIMITS
from tests.doors import Service
from tests.logs import captured_logs
from tests.waiting import wait_until

RECORD = """mutation ($id: ID!, $input: RecordEncounterInput!, $key: String, $only: Boolean) {
  recordEncounter(patientId: $id, input: $input, idempotencyKey: $key, validateOnly: $only) {
    __typename
    ... on EncounterRecorded { replayed encounter { id externalIds } }
    ... on InvalidInput { violations { path rule minimum maximum } }
    ... on Problem { code }
  }
}"""

REGISTER = """mutation ($input: RegisterPatientInput!) { registerPatient(input: $input) {
  ... on PatientRegistered { patient { id externalIds } }
  ... on InvalidInput { violations { path rule } }
} }"""

AMEND = """mutation ($id: ID!, $input: AmendEncounterInput!) { amendEncounter(id: $id, input: $input) {
  __typename
  ... on EncounterChanged { encounter { externalIds version history { changes { member before after } } } }
  ... on InvalidInput { violations { path rule } }
} }"""

ENCOUNTERS = """query ($system: String!, $value: String!) {
  encountersByExternalId(system: $system, value: $value) { id externalIds }
}"""

PATIENTS = """query ($system: String!, $value: String!) {
  patientsByExternalId(system: $system, value: $value) { id externalIds createdAt }
}"""


def number() -> str:
    """Return a number that no other record has."""
    return uuid4().hex[:12]


async def ask(service: Service, query: str, *, token: str = "dev", **variables: Any) -> Any:
    """Run an operation; return the value of its one field."""
    body = await service.graphql(query, variables, token=token)
    assert "errors" not in body, body
    (value,) = body["data"].values()
    return value


async def record(service: Service, patient_id: str, external_ids: Any, **variables: Any) -> dict[str, Any]:
    """Record a visit with external ids; return the payload."""
    visit = {"brandId": "loop", "encounterType": "LAB", "externalIds": external_ids}
    payload: dict[str, Any] = await ask(service, RECORD, id=patient_id, input=visit, **variables)
    return payload


async def found(service: Service, system: str, value: str, token: str = "dev") -> list[str]:
    """Return the ids of the encounters with an external id."""
    return [each["id"] for each in await ask(service, ENCOUNTERS, system=system, value=value, token=token)]


async def extensions(service: Service, query: str, *, token: str = "dev", **variables: Any) -> dict[str, Any]:
    """Run an operation that is refused; return the extensions of its error."""
    (error,) = (await service.graphql(query, variables, token=token))["errors"]
    refused: dict[str, Any] = error["extensions"]
    return refused


# Encounters


async def test_an_encounter_is_found_by_each_of_its_external_ids(service_in_either_form: Service, cast: Cast) -> None:
    service, patient_id, one, other = service_in_either_form, await cast.patient(), number(), number()

    recorded = await record(service, patient_id, {"emr": one, "lis": other})

    assert recorded["encounter"]["externalIds"] == {"emr": one, "lis": other}
    for system, value in (("emr", one), ("lis", other)):
        (encounter,) = await ask(service, ENCOUNTERS, system=system, value=value)
        assert encounter == recorded["encounter"]


async def test_system_and_value_must_be_exactly_equal(service: Service, cast: Cast) -> None:
    value = f"a{number()}%"
    await record(service, await cast.patient(), {"emr": value})

    for system, other in (("EMR", value), ("lis", value), ("emr", value.upper()), ("emr", f"{value} "), ("emr", "%")):
        assert await found(service, system, other) == []


async def test_an_encounter_of_another_brand_is_not_found(service: Service, cast: Cast) -> None:
    value = number()
    await record(service, await cast.patient(), {"emr": value})

    assert len(await found(service, "emr", value)) == 1
    assert await found(service, "emr", value, token="dev-loopbio") == []


async def test_of_many_encounters_the_newest_20_are_found(service_in_either_form: Service, cast: Cast) -> None:
    service, patient_id, value = service_in_either_form, await cast.patient(), number()
    recorded = [await record(service, patient_id, {"emr": value}) for _ in range(MAX_FOUND + 3)]

    newest_first = [each["encounter"]["id"] for each in reversed(recorded)]
    assert await found(service, "emr", value) == newest_first[:MAX_FOUND]


async def test_items_of_a_batch_and_of_a_transaction_have_external_ids(service: Service, cast: Cast) -> None:
    patient_id, value = await cast.patient(), number()
    query = """mutation ($items: [RecordEncountersItem!]!, $all: Boolean) {
      recordEncounters(input: $items, allOrNothing: $all) { results { ... on EncounterRecorded { encounter { id } } } }
    }"""
    members = {"brandId": "loop", "encounterType": "LAB"}
    items = [{"patientId": patient_id, "input": members | {"externalIds": {"emr": value}}}]
    items.append({"patientId": patient_id, "input": members})

    recorded = [await ask(service, query, items=items, all=all_or_nothing) for all_or_nothing in (True, False)]

    assert set(await found(service, "emr", value)) == {each["results"][0]["encounter"]["id"] for each in recorded}


async def test_a_key_stands_for_the_external_ids_too(service: Service, cast: Cast) -> None:
    patient_id, key, value = await cast.patient(), f"key-{uuid4()}", number()

    first = await record(service, patient_id, {"a": value, "b": "1"}, key=key)
    again = await record(service, patient_id, {"b": "1", "a": value}, key=key)
    other = await record(service, patient_id, {"a": value}, key=key)

    assert (first["replayed"], again["replayed"]) == (False, True)
    assert other["code"] == "idempotency_key_payload_mismatch"
    assert await found(service, "a", value) == [first["encounter"]["id"]]


async def test_a_dry_run_checks_external_ids_and_stores_none(service: Service, cast: Cast) -> None:
    patient_id, value = await cast.patient(), number()

    assert (await record(service, patient_id, {"emr": value}, only=True))["code"] == "valid"
    assert (await record(service, patient_id, {"emr": ""}, only=True))["code"] == "validation_error"
    assert await found(service, "emr", value) == []


BROKEN: list[tuple[Any, str]] = [
    ([], "object"),
    ("7", "object"),
    ({"emr": 7}, "string"),
    ({"emr": None}, "string"),
    ({"emr": {"mrn": "7"}}, "string"),
    ({"emr": ""}, "too_short"),
    ({"": "7"}, "too_short"),
    ({"emr": "x" * 201}, "too_long"),
    ({"x" * 201: "7"}, "too_long"),
    ({"emr": "\x00"}, "nul"),
    ({"\x00": "7"}, "nul"),
    ({str(number): "7" for number in range(21)}, "too_many"),
]


@pytest.mark.parametrize(("external_ids", "rule"), [*BROKEN, (None, "null")])
async def test_external_ids_of_an_encounter_that_break_a_rule_are_refused(
    service: Service, cast: Cast, external_ids: Any, rule: str
) -> None:
    patient_id = await cast.patient()
    encounter_id = (await record(service, patient_id, {"emr": "7"}))["encounter"]["id"]

    recorded = await record(service, patient_id, external_ids)
    amended = await ask(service, AMEND, id=encounter_id, input={"externalIds": external_ids})

    for refused in (recorded, amended):
        assert [(each["path"], each["rule"]) for each in refused["violations"]] == [(["input", "externalIds"], rule)]


@pytest.mark.parametrize(("external_ids", "rule"), [*BROKEN, (None, "object")])
async def test_external_ids_of_a_patient_that_break_a_rule_are_refused(
    service: Service, external_ids: Any, rule: str
) -> None:
    members = {"brandId": "loop", "id": f"new-{number()}", "externalIds": external_ids}

    refused = await ask(service, REGISTER, input=members)

    assert [(each["path"], each["rule"]) for each in refused["violations"]] == [(["input", "externalIds"], rule)]


async def test_the_longest_external_ids_are_stored_and_found(service: Service, cast: Cast) -> None:
    external_ids = {f"{n:02}{'🩺' * 198}": f"{number()}{'🩺' * 188}" for n in range(20)}

    recorded = await record(service, await cast.patient(), external_ids)

    for system, value in external_ids.items():
        assert await found(service, system, value) == [recorded["encounter"]["id"]]


async def test_an_amendment_replaces_the_external_ids(service_in_either_form: Service, cast: Cast) -> None:
    service, wrong, right = service_in_either_form, number(), number()
    recorded = await record(service, await cast.patient(), {"emr": wrong, "lis": wrong})
    encounter_id = recorded["encounter"]["id"]

    changed = await ask(service, AMEND, id=encounter_id, input={"externalIds": {"emr": right}})

    assert changed["encounter"]["externalIds"] == {"emr": right}
    assert changed["encounter"]["history"][1]["changes"] == [
        {"member": "externalIds", "before": {"emr": wrong, "lis": wrong}, "after": {"emr": right}}
    ]
    assert await found(service, "emr", right) == [encounter_id]
    assert await found(service, "emr", wrong) == await found(service, "lis", wrong) == []


async def test_an_amendment_of_equal_external_ids_makes_no_version(service: Service, cast: Cast) -> None:
    recorded = await record(service, await cast.patient(), {"b": "2", "a": "1"})

    for external_ids, version in (({"a": "1", "b": "2"}, 1), ({}, 2), ({}, 2)):
        changed = await ask(service, AMEND, id=recorded["encounter"]["id"], input={"externalIds": external_ids})
        assert changed["encounter"]["version"] == version


async def test_other_changes_keep_the_external_ids(service: Service, cast: Cast) -> None:
    value = number()
    encounter_id = (await record(service, await cast.patient(), {"emr": value}))["encounter"]["id"]

    await ask(service, AMEND, id=encounter_id, input={"notes": "Fasting."})
    await ask(service, "mutation ($id: ID!) { startEncounter(id: $id) { __typename } }", id=encounter_id)

    assert await found(service, "emr", value) == [encounter_id]


async def test_rest_ignores_external_ids_and_does_not_show_them(service: Service, cast: Cast) -> None:
    patient_id, value = await cast.patient(), number()
    path = f"/v1/patients/{patient_id}/encounters"
    body = {"brand_id": "loop", "encounter_type": "lab", "external_ids": {"emr": value}}

    ignored = await service.rest("POST", path, json=body)
    refused = await service.rest("POST", path, json=body, headers={"prefer": "handling=strict"})
    recorded = await record(service, patient_id, {"emr": value})
    listed = await service.rest("GET", path)

    assert (ignored.status_code, ignored.headers["x-ignored"]) == (201, "external_ids")
    assert (refused.status_code, refused.json()["violations"][0]["rule"]) == (400, "unknown_member")
    assert await found(service, "emr", value) == [recorded["encounter"]["id"]]
    assert "external_ids" not in ignored.text
    assert value not in listed.text


# Patients


async def test_a_patient_is_found_by_each_of_its_external_ids(service: Service) -> None:
    patient_id, one, other = f"new-{number()}", number(), number()
    external_ids = {"mrn": one, "emr": other}

    registered = await ask(service, REGISTER, input={"brandId": "loop", "id": patient_id, "externalIds": external_ids})

    assert registered["patient"] == {"id": patient_id, "externalIds": external_ids}
    for system, value in external_ids.items():
        (patient,) = await ask(service, PATIENTS, system=system, value=value)
        assert (patient["id"], patient["externalIds"]) == (patient_id, external_ids)
        assert await ask(service, PATIENTS, system=system, value=value, token="dev-loopbio") == []


async def test_of_many_patients_20_are_found_in_the_order_of_their_ids(service: Service) -> None:
    value = number()
    ids = [f"{value}-{n:02}" for n in range(MAX_FOUND + 3)]
    for patient_id in reversed(ids):
        await ask(service, REGISTER, input={"brandId": "loop", "id": patient_id, "externalIds": {"mrn": value}})

    patients = await ask(service, PATIENTS, system="mrn", value=value)

    assert [patient["id"] for patient in patients] == ids[:MAX_FOUND]


async def test_a_patient_that_is_registered_again_keeps_its_external_ids(service: Service) -> None:
    patient_id, first, second = f"new-{number()}", number(), number()
    for value in (first, second):
        await ask(service, REGISTER, input={"brandId": "loop", "id": patient_id, "externalIds": {"mrn": value}})

    assert [each["id"] for each in await ask(service, PATIENTS, system="mrn", value=first)] == [patient_id]
    assert await ask(service, PATIENTS, system="mrn", value=second) == []


async def test_a_patient_is_found_by_its_replaced_external_ids(service_in_either_form: Service) -> None:
    service, patient_id, old, new = service_in_either_form, f"new-{number()}", number(), number()
    await ask(service, REGISTER, input={"brandId": "loop", "id": patient_id, "externalIds": {"mrn": old, "emr": old}})
    query = """mutation ($id: ID!, $first: JSON!, $second: JSON!) {
      a: setPatientExternalIds(id: $id, externalIds: $first) { ... on PatientChanged { patient { externalIds } } }
      b: setPatientExternalIds(id: $id, externalIds: $second) { ... on PatientChanged { patient { externalIds } } }
    }"""

    body = await service.graphql(query, {"id": patient_id, "first": {"emr": old}, "second": {"mrn": new}})

    assert [each["patient"]["externalIds"] for each in body["data"].values()] == [{"emr": old}, {"mrn": new}]
    assert [each["id"] for each in await ask(service, PATIENTS, system="mrn", value=new)] == [patient_id]
    for system in ("mrn", "emr"):
        assert await ask(service, PATIENTS, system=system, value=old) == []


async def test_the_patient_of_an_encounter_has_its_external_ids(service: Service, cast: Cast) -> None:
    patient_id, value = f"new-{number()}", number()
    await ask(service, REGISTER, input={"brandId": "loop", "id": patient_id, "externalIds": {"mrn": value}})
    encounter_id = (await record(service, patient_id, {}))["encounter"]["id"]
    query = """query ($id: ID!, $patient: ID!) {
      encounter(id: $id) { patient { externalIds createdAt } }
      patient(id: $patient) { externalIds createdAt encounters { nodes { patient { externalIds createdAt } } } }
    }"""

    body = await service.graphql(query, {"id": encounter_id, "patient": patient_id})

    at = await cast.connection.fetchval("SELECT created_at FROM patient_graph.patients WHERE id = $1", patient_id)
    shown = {"externalIds": {"mrn": value}, "createdAt": at.isoformat().replace("+00:00", "Z")}
    (below,) = body["data"]["patient"].pop("encounters")["nodes"]
    assert body["data"]["patient"] == body["data"]["encounter"]["patient"] == below["patient"] == shown


@pytest.mark.parametrize("query", [ENCOUNTERS, PATIENTS])
@pytest.mark.parametrize(
    ("text", "rule"), [("", "too_short"), ("x" * 201, "too_long"), ("a\x00", "nul")], ids=["empty", "long", "NUL"]
)
async def test_a_search_for_an_impossible_external_id_is_refused(
    service: Service, query: str, text: str, rule: str
) -> None:
    refused = await extensions(service, query, system=text, value=text)

    assert (refused["code"], refused["recorded"]) == ("validation_error", "no")
    assert [(each["pointer"], each["rule"]) for each in refused["violations"]] == [("/system", rule), ("/value", rule)]


# Permissions and audit


@pytest.fixture
async def limited(database_url: str) -> AsyncIterator[Service]:
    """A service where a token is its own list of scopes, of the brand `loop`; `admin:*` has no brand."""

    async def verify(token: str) -> Caller:
        return Caller("limited", frozenset(token.split("+")), brand_id=None if token == "admin:*" else "loop")

    async with Service.running(Settings(database_url=database_url, **GENEROUS_LIMITS), verify=verify) as running:
        yield running


@pytest.mark.parametrize(
    ("query", "scope", "needed"),
    [
        (ENCOUNTERS, "read:patients", ["read:encounters"]),
        (ENCOUNTERS, "write:encounters", ["read:encounters"]),
        (PATIENTS, "write:patients", ["read:patients", "read:encounters", "write:encounters"]),
    ],
)
async def test_a_search_needs_a_scope_for_reading(limited: Service, query: str, scope: str, needed: list[str]) -> None:
    refused = await extensions(limited, query, token=scope, system="mrn", value="7")

    assert (refused["code"], refused["scopes"]) == ("insufficient_scope", needed)


async def read_entries(cast: Cast, event_type: str, patient_id: str) -> list[tuple[str | None, Any]]:
    """Return the entity and the details of the entries of reads that name a patient."""
    rows = await cast.connection.fetch(
        "SELECT entity_id, details::text FROM patient_graph.audit_log WHERE event_type = $1"
        " AND (patient_id = $2 OR details->'patients' ? $2) ORDER BY occurred_at, id",
        event_type,
        patient_id,
    )
    return [(row["entity_id"], json.loads(row["details"])) for row in rows]


async def test_found_encounters_are_audited_as_a_read(service: Service, cast: Cast) -> None:
    patient_id, value = await cast.patient(), number()
    await record(service, patient_id, {"emr": value})

    await found(service, "emr", value)

    async def entries() -> list[Any]:
        return await read_entries(cast, "patient_graph.encounters.read", patient_id)

    await wait_until(entries)
    assert await entries() == [(patient_id, {"encounters": 1})]


async def test_found_patients_have_one_audit_entry_that_names_them(service: Service, cast: Cast) -> None:
    value = number()
    ids = [f"{value}-{n}" for n in range(3)]
    for patient_id in ids:
        await ask(service, REGISTER, input={"brandId": "loop", "id": patient_id, "externalIds": {"mrn": value}})
    await ask(service, PATIENTS, system="mrn", value=value)

    async def entries() -> list[Any]:
        found = await read_entries(cast, "patient_graph.patients.read", ids[0])
        return [details for _, details in found if len(details["patients"]) > 1]

    await wait_until(entries)
    # Showing the external ids of the patients found adds no entry.
    assert await entries() == [{"patients": ids}]


async def test_registering_shows_external_ids_to_a_caller_without_a_brand(limited: Service, cast: Cast) -> None:
    members = {"brandId": "loop", "id": f"new-{number()}", "externalIds": {"mrn": "7"}}

    registered = await ask(limited, REGISTER, token="admin:*", input=members)

    assert registered["patient"] == {"id": members["id"], "externalIds": {"mrn": "7"}}


async def test_external_ids_of_listed_patients_have_one_audit_entry(service: Service, cast: Cast) -> None:
    ids = [await cast.patient() for _ in range(3)]
    query = "query ($ids: [ID!]!) { patients(ids: $ids) { externalIds again: externalIds } }"
    await ask(service, "query ($ids: [ID!]!) { patients(ids: $ids) { id createdAt } }", ids=ids)
    await ask(service, query, ids=ids)

    async def entries() -> list[Any]:
        return await read_entries(cast, "patient_graph.patients.read", ids[0])

    await wait_until(entries)
    # Ids and times are not audited.
    assert await entries() == [(None, {"patients": ids})]


async def test_no_external_id_is_in_a_log_or_the_audit_log(service: Service, cast: Cast) -> None:
    patient_id, system, value = f"new-{number()}", number(), number()
    external_ids = {system: value}
    with captured_logs() as lines:
        await ask(service, REGISTER, input={"brandId": "loop", "id": patient_id, "externalIds": external_ids})
        recorded = await record(service, patient_id, external_ids)
        await record(service, patient_id, {system: f"{value}\x00"})
        await ask(service, AMEND, id=recorded["encounter"]["id"], input={"externalIds": {value: system}})
        await ask(service, PATIENTS, system=system, value=value)
        await extensions(service, ENCOUNTERS, system=f"{system}\x00", value=value)
        await found(service, value, system)

    assert lines
    assert system not in str(lines)
    assert value not in str(lines)

    async def is_audited() -> bool:
        return bool(await read_entries(cast, "patient_graph.encounters.read", patient_id))

    await wait_until(is_audited)
    for table in ("audit_log", "outbox"):
        rows = await cast.connection.fetch(
            f"SELECT t::text FROM patient_graph.{table} t WHERE strpos(t::text, $1) + strpos(t::text, $2) > 0",
            system,
            value,
        )
        assert rows == []
