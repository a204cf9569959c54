"""Violations of an input: each fault once, with its pointer and the allowed names."""

from typing import Any

import pytest

from gateway.settings import Settings
from tests.cast import Cast
from tests.doors import RECORD, Service, json_body

INPUT = [
    "brandId", "encounterType", "providerId", "scheduledAt", "chiefComplaint", "notes", "metadata", "status",
    "startedAt", "endedAt", "externalIds",
]  # fmt: skip
MANY = "mutation ($many: [RecordEncountersItem!]!) { recordEncounters(input: $many) { results { __typename } } }"
AMEND = 'mutation ($input: AmendEncounterInput!) { amendEncounter(id: "x", input: $input) { __typename } }'
LIST = 'query ($where: EncounterFilter) { patient(id: "x") { encounters(where: $where) { totalCount } } }'
SECRET = "tuberculosis"
VISIT = {"brandId": "loop", "encounterType": "LAB"}


async def violations_of(service: Service, query: str, **variables: Any) -> list[dict[str, Any]]:
    """Return the violations of a refused request; assert that its values are not repeated."""
    content = json_body({"query": query, "variables": variables})
    answer = await service.rest("POST", "/graphql", headers={"content-type": "application/json"}, content=content)
    assert SECRET not in answer.text
    assert all(error["extensions"]["code"] == "validation_error" for error in answer.json()["errors"])
    return [each for error in answer.json()["errors"] for each in error["extensions"]["violations"]]


def pointers_and_rules(violations: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["pointer"], each["rule"]) for each in violations]


async def test_each_snake_case_member_is_reported_once_with_the_right_name(service: Service) -> None:
    sent = {"brand_id": "loop", "encounter_type": "LAB", "provider_id": SECRET, "notes": SECRET}

    violations = await violations_of(service, RECORD, patientId="x", input=sent)

    assert pointers_and_rules(violations) == [
        (f"/variables/input/{name}", "unknown_member") for name in ("brand_id", "encounter_type", "provider_id")
    ]
    assert [each["message"].split("did you mean ")[1] for each in violations] == [
        "brandId?",
        "encounterType?",
        "providerId?",
    ]
    assert all(each["allowed"] == INPUT for each in violations)


async def test_an_unknown_name_without_a_similar_known_one_is_not_repeated(service: Service) -> None:
    sent = VISIT | {SECRET: 1, f"{SECRET} {SECRET}": 2, "\ud83d": 3}

    [violation] = await violations_of(service, RECORD, patientId="x", input=sent)

    assert (violation["pointer"], violation["rule"]) == ("/variables/input", "unknown_member")
    assert violation["allowed"] == INPUT
    assert violation["message"].endswith("but has 3 others")


NOTES = ("/input/Notes", "unknown_member")
FAULTS: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    (RECORD, {"input": {}}, [("/input/brandId", "required"), ("/input/encounterType", "required")]),
    (RECORD, {"input": VISIT | {"encounterType": "lab"}}, [("/input/encounterType", "enum")]),
    (RECORD, {"input": VISIT | {"brandId": None}}, [("/input/brandId", "null")]),
    (RECORD, {"input": VISIT | {"notes": 5}}, [("/input/notes", "type")]),
    (RECORD, {"input": SECRET}, [("/input", "type")]),
    (
        RECORD,
        {"patientId": {}, "input": VISIT | {"Nots": 1}},
        [("/patientId", "type"), ("/input/Nots", "unknown_member")],
    ),
    (AMEND, {"input": {"chief_complaint": SECRET}}, [("/input/chief_complaint", "unknown_member")]),
    (LIST, {"where": {"provider-id": SECRET}}, [("/where/provider-id", "unknown_member")]),
    (LIST, {"where": {"status": ["LAB", None]}}, [("/where/status/0", "enum"), ("/where/status/1", "null")]),
    (
        MANY,
        {"many": [{"patientId": "x", "input": VISIT}, {"patient_id": "x", "input": {"brand_id": "loop"}}]},
        [
            ("/many/1/patient_id", "unknown_member"),
            ("/many/1/input/brand_id", "unknown_member"),
            ("/many/1/input/encounterType", "required"),
        ],
    ),
]


@pytest.mark.parametrize(("query", "variables", "expected"), FAULTS, ids=str)
async def test_each_fault_of_a_variable_is_reported_with_its_pointer(
    service: Service, query: str, variables: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    violations = await violations_of(service, query, **{"patientId": "x"} | variables)

    assert pointers_and_rules(violations) == [(f"/variables{pointer}", rule) for pointer, rule in expected]


async def test_a_misspelt_variable_name_is_hinted_at(service: Service) -> None:
    [violation] = await violations_of(service, RECORD, patient_id="x", input=VISIT)

    assert (violation["pointer"], violation["rule"]) == ("/variables/patientId", "required")
    assert "similar name" in violation["message"]


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        ('{brand_id: "loop", encounterType: LAB}', ["unknown_member"]),
        ('{brand_id: "loop", encounter_type: LAB}', ["unknown_member", "unknown_member"]),
        ('{brandId: "loop"}', ["required"]),
        ("{brandId: null, encounterType: LA, notes: 5}", ["null", "enum", "type"]),
        ('{brandId: "loop", encounterType: LAB, tuberculosis: 1}', ["unknown_member"]),
    ],
)  # fmt: skip
async def test_each_fault_of_a_literal_is_reported_with_its_line(
    service: Service, literal: str, expected: list[str]
) -> None:
    query = f'mutation {{\n recordEncounter(patientId: "x", input: {literal}) {{ __typename }} }}'

    body = await service.graphql(query)

    violations = [error["extensions"]["violations"][0] for error in body["errors"]]
    assert [each["rule"] for each in violations] == expected
    assert all(error["locations"][0]["line"] == 2 for error in body["errors"])
    assert all(each["allowed"] == INPUT for each in violations if each["rule"] == "unknown_member")
    assert SECRET not in str(body)


async def test_in_a_batch_each_operation_reports_its_own_faults(database_url: str) -> None:

    async with Service.running(Settings(database_url=database_url, batch_operations=2)) as service:
        wrong = {
            "query": RECORD,
            "variables": {"patientId": "x", "input": {"brand_id": "loop", "encounterType": "LAB"}},
        }
        answer = await service.rest("POST", "/graphql", json=[{"query": "{ __typename }"}, wrong])

    [violation] = answer.json()[1]["errors"][0]["extensions"]["violations"]
    assert violation["pointer"] == "/variables/input/brand_id"


async def test_at_most_twenty_faults_are_reported(service: Service) -> None:
    violations = await violations_of(service, MANY, many=[{}] * 5_000)

    assert len(violations) == 20


# Null


PARTS = {
    "encounterType": "[EncounterType!]",
    "status": "[EncounterStatus!]",
    "providerId": "UUID",
    "scheduledFrom": "DateTime",
    "scheduledUntil": "DateTime",
}


@pytest.mark.parametrize("member", PARTS)
@pytest.mark.parametrize("by", ["variable", "variable in a literal", "literal"])
async def test_null_in_a_filter_is_refused(service: Service, cast: Cast, member: str, by: str) -> None:
    type_ = PARTS[member]
    forms: dict[str, tuple[str, str, dict[str, Any]]] = {
        "variable": ("($where: EncounterFilter)", "$where", {"where": {member: None}}),
        "variable in a literal": (f"($part: {type_})", f"{{{member}: $part}}", {"part": None}),
        "literal": ("", f"{{{member}: null}}", {}),
    }
    declared, where, variables = forms[by]
    page = f"encounters(where: {where}) {{ nodes {{ id }} }}"
    query = f'query {declared} {{ patient(id: "{await cast.patient()}") {{ {page} }} }}'

    [violation] = await violations_of(service, query, **variables)

    assert (violation["pointer"], violation["rule"]) == (f"/where/{member}", "null")


@pytest.mark.parametrize("fields", ["nodes { id }", "nodes { id history { version } }"], ids=["planned", "executed"])
async def test_a_null_filter_is_refused_and_an_omitted_one_accepted(service: Service, cast: Cast, fields: str) -> None:
    patient_id = await cast.patient()
    page = f"patient(id: $id) {{ encounters(where: $where) {{ {fields} }} }}"
    query = f"query ($id: ID!, $where: EncounterFilter) {{ {page} }}"
    literal = f"query ($id: ID!) {{ {page.replace('$where', 'null')} }}"

    [by_variable] = await violations_of(service, query, id=patient_id, where=None)
    [by_literal] = await violations_of(service, literal, id=patient_id)
    left_out = await service.graphql(query, {"id": patient_id})

    assert pointers_and_rules([by_variable, by_literal]) == [("/where", "null")] * 2
    assert left_out == {"data": {"patient": {"encounters": {"nodes": []}}}}


async def test_a_subscription_with_a_null_patient_is_refused(service: Service) -> None:
    headers = {"accept": "text/event-stream"}
    query = "subscription ($of: ID) { encounterEvents(patientId: $of) { cursor } }"

    answer = await service.rest("POST", "/graphql", headers=headers, json={"query": query, "variables": {"of": None}})

    assert '"pointer":"/patientId","rule":"null"' in answer.text


# Ids, and JSON in a literal


FORMS = {
    "upper case": str.upper,
    "no hyphens": lambda id_: id_.replace("-", ""),
    "braces": lambda id_: f"{{{id_}}}",
    "a URN": lambda id_: f"urn:uuid:{id_}",
    "a space": lambda id_: f" {id_}",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("fields", ["id", "id history { version }"], ids=["planned", "executed"])
async def test_an_id_is_accepted_only_in_its_hyphenated_form(
    service: Service, cast: Cast, form: Any, fields: str
) -> None:
    recorded = await service.graphql(RECORD, {"patientId": await cast.patient(), "input": VISIT})
    id_ = recorded["data"]["recordEncounter"]["encounter"]["id"]
    start = "mutation ($id: ID!) { startEncounter(id: $id) { __typename } }"

    shown = await service.graphql(f"query ($id: ID!) {{ encounter(id: $id) {{ {fields} }} }}", {"id": form(id_)})
    started = await service.graphql(start, {"id": form(id_)})

    known = form is str.upper
    assert (shown["data"]["encounter"] is not None) == known
    assert started["data"]["startEncounter"]["__typename"] == ("EncounterChanged" if known else "EncounterNotFound")


def recording(metadata: str, declared: str = "") -> str:
    given = f'{{brandId: "loop", encounterType: LAB, metadata: {metadata}}}'
    shown = "{ ... on EncounterRecorded { encounter { metadata } } }"
    return f"mutation ($id: ID!{declared}) {{ recordEncounter(patientId: $id, input: {given}) {shown} }}"


async def test_a_missing_variable_below_metadata_omits_its_member(service: Service, cast: Cast) -> None:
    query = recording("{a: 1, b: $b, c: [$b, 2], d: {e: $b}, f: null}", ", $b: JSON")
    patient_id = await cast.patient()

    missing = await service.graphql(query, {"id": patient_id})
    null = await service.graphql(query, {"id": patient_id, "b": None})

    shown = [each["data"]["recordEncounter"]["encounter"]["metadata"] for each in (missing, null)]
    assert shown == [
        {"a": 1, "c": [2], "d": {}, "f": None},
        {"a": 1, "b": None, "c": [None, 2], "d": {"e": None}, "f": None},
    ]


@pytest.mark.parametrize("metadata", ["{room: WARD}", "{rooms: [1, WARD]}", "{a: {b: LAB}}", "WARD"])
async def test_an_enum_literal_below_metadata_is_refused(service: Service, metadata: str) -> None:
    [violation] = await violations_of(service, recording(metadata), id="x")

    assert violation["rule"] == "type"
    assert "metadata must be of type JSON" in violation["message"]


async def test_an_enum_variable_below_metadata_is_refused(service: Service, cast: Cast) -> None:
    query = recording("{kind: $kind}", ", $kind: EncounterType")

    body = await service.graphql(query, {"id": await cast.patient(), "kind": "LAB"})

    assert [error["extensions"]["code"] for error in body["errors"]] == ["validation_error"]
