"""The table of rules: complete, printed in docs/rules.md, with examples that both doors confirm."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import pytest

from gateway.importers.encounters import EncounterLine
from gateway.importers.patients import MAX_LINE_BYTES, TABLE
from gateway.importers.reader import LineReader, Refusal, Unknown, opened, records_of
from resolvers.commands import DEFAULT_LIMITS
from resolvers.errors import InvalidInput
from resolvers.patients import RegisterPatient
from resolvers.rules import RULES, Place, RuleId
from tests.cast import Cast
from tests.doors import Service

ROOT = Path(__file__).parent.parent
MARKER = "tuberculosis"


def test_every_rule_has_its_entry_and_its_section_on_the_page() -> None:
    page = (ROOT / "docs/rules.md").read_text()

    assert set(RULES) == set(get_args(RuleId))
    assert rules_page() in page, rules_page()
    assert re.findall(r"^### `(.*)`$", page, re.MULTILINE) == list(RULES)


def test_the_rules_in_the_code_are_the_rules_in_the_table() -> None:
    """mypy refuses a name that is not in the table; this finds a rule that no code names."""
    named = set(names_in_the_code())

    assert named == set(RULES)


# The position of a rule's name among the arguments of a call.
PLACES = {"broken": 0, "MalformedBody": 0, "Violation": 1, "Fault": 1, "_misfit": 1, "LimitViolation": 0, "refused": 1}


def names_in_the_code() -> Iterator[str]:
    """Yield every string of the code that is, or should be, a rule's name."""
    for room in ("resolvers", "schema", "rest", "gateway"):
        for source in sorted((ROOT / room).rglob("*.py")):
            if source.name in {"rules.py", "openapi.py"}:
                continue
            for node in ast.walk(ast.parse(source.read_text())):
                if isinstance(node, ast.Call):
                    yield from _named_by(node)
                elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
                    # `problem_with` and `_RULES` have pairs of a rule and its message.
                    name = getattr(node.elts[0], "value", None)
                    yield from {str(name)} & set(RULES)


def _named_by(call: ast.Call) -> Iterator[str]:
    position = PLACES.get(getattr(call.func, "id", ""))
    if position is not None and len(call.args) > position:
        yield from (
            str(each.value)
            for each in ast.walk(call.args[position])
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value != "rule"
        )


def rules_page() -> str:
    """Return the sections of the rules of docs/rules.md."""
    sections = []
    for name, rule in RULES.items():
        if rule.place == "words":
            sides = f"Refused: {rule.refused}\n\nAccepted: {rule.accepted}"
        else:
            language = "json" if rule.refused.startswith("{") else "text"
            sides = (
                f"Refused:\n\n```{language}\n{rule.refused}\n```\n\nAccepted:\n\n```{language}\n{rule.accepted}\n```"
            )
        sections.append(f"### `{name}`\n\n{rule.means}\n\n{sides}")
    return "\n\n".join(sections) + "\n"


def in_place(place: Place) -> pytest.MarkDecorator:
    """Run a test with both examples of each rule of a place."""
    cases = [
        pytest.param(example, name, broken, id=f"{name}-{'breaks' if broken else 'keeps'}")
        for name, rule in RULES.items()
        if rule.place == place
        for example, broken in ((rule.refused, True), (rule.accepted, False))
    ]
    return pytest.mark.parametrize(("example", "name", "broken"), cases)


@in_place("body")
async def test_an_example_of_a_body(service: Service, cast: Cast, example: str, name: str, broken: bool) -> None:
    answer = await service.rest(
        "POST",
        f"/v1/patients/{await cast.patient()}/encounters",
        headers={"content-type": "application/json"},
        content=example,
    )

    assert answer.status_code == (400 if broken else 201)
    assert [each["rule"] for each in answer.json().get("violations", [])] == [name] * broken


@in_place("key")
async def test_an_example_of_a_key(service: Service, cast: Cast, example: str, name: str, broken: bool) -> None:
    answer = await service.rest(
        "POST",
        f"/v1/patients/{await cast.patient()}/encounters",
        headers={"idempotency-key": example.replace("4711", uuid4().hex)},
        json={"brand_id": "loop", "encounter_type": "lab"},
    )

    assert answer.status_code == (400 if broken else 201)
    assert [each["rule"] for each in answer.json().get("violations", [])] == [name] * broken


@in_place("query")
async def test_an_example_of_a_query(service: Service, cast: Cast, example: str, name: str, broken: bool) -> None:
    answer = await service.rest("GET", f"/v1/patients/{await cast.patient()}/encounters?{example}")

    assert answer.status_code == (400 if broken else 200)
    assert [each["rule"] for each in answer.json().get("violations", [])] == [name] * broken


@in_place("graphql")
async def test_an_example_of_a_document(service: Service, cast: Cast, example: str, name: str, broken: bool) -> None:
    asked = example.replace("demo-patient", await cast.patient())

    answer = await service.rest("POST", "/graphql", headers={"content-type": "application/json"}, content=asked)

    rules = [each["extensions"]["violations"][0]["rule"] for each in answer.json().get("errors", [])]
    assert rules == [name] * broken


@in_place("import")
def test_an_example_of_a_line(example: str, name: str, broken: bool) -> None:
    line = json.loads(example)
    try:
        (EncounterLine if "patient_id" in line else RegisterPatient).read(line, DEFAULT_LIMITS)
        rules = []
    except InvalidInput as error:
        rules = [violation.rule for violation in error.violations]

    assert rules == [name] * broken


@in_place("file")
def test_an_example_of_a_file(tmp_path: Path, example: str, name: str, broken: bool) -> None:
    (tmp_path / "patients.csv").write_text(example)
    with opened(tmp_path / "patients.csv") as stream:
        (record,) = records_of(LineReader(stream, MAX_LINE_BYTES), tmp_path / "patients.csv", TABLE, Unknown())

    assert (record.rules if isinstance(record, Refusal) else ()) == (name,) * broken


@pytest.mark.parametrize(
    ("member", "value", "expected"),
    [
        ("encounter_type", "house_call", {"allowed": ["office_visit", "telehealth", "lab", "pharmacy", "other"],
                                          "received": {"type": "string", "length": 10}}),
        ("encounter_type", None, {"allowed": ["office_visit", "telehealth", "lab", "pharmacy", "other"],
                                  "received": {"type": "null"}}),
        ("brand_id", "", {"minimum": 1, "received": {"type": "string", "length": 0}}),
        ("notes", MARKER * 5_000, {"maximum": 50_000, "received": {"type": "string", "length": 60_000}}),
        ("notes", [MARKER, MARKER], {"received": {"type": "array", "length": 2}}),
        ("notes", 12.5, {"received": {"type": "number"}}),
        ("notes", True, {"received": {"type": "boolean"}}),
        ("chief_complaint", {MARKER: MARKER}, {"received": {"type": "object", "length": 1}}),
        ("metadata", {"a": MARKER * 9_000}, {"maximum": 65_536, "received": {"type": "object", "length": 1}}),
        ("scheduled_at", MARKER, {"received": {"type": "string", "length": len(MARKER)}}),
    ],
)  # fmt: skip
async def test_a_violation_names_the_expected_values_and_the_type_received(
    service: Service, cast: Cast, member: str, value: Any, expected: dict[str, Any]
) -> None:
    body = {"brand_id": "loop", "encounter_type": "lab"} | {member: value}

    answer = await service.rest("POST", f"/v1/patients/{await cast.patient()}/encounters", json=body)

    (violation,) = answer.json()["violations"]
    assert violation == {name: violation[name] for name in ("rule", "message")} | {"pointer": f"/{member}"} | expected
    assert MARKER not in answer.text + str(answer.headers)


async def test_a_missing_member_has_no_shape(service: Service, cast: Cast) -> None:
    answer = await service.rest("POST", f"/v1/patients/{await cast.patient()}/encounters", json={"brand_id": "loop"})

    (violation,) = answer.json()["violations"]
    assert violation == {"pointer": "/encounter_type", "rule": "required", "message": "is required"}


RECORD = """mutation ($patient: ID!, $input: RecordEncounterInput!) {
  recordEncounter(patientId: $patient, input: $input) {
    ... on InvalidInput { violations { path rule allowed minimum maximum received { type length } } } } }"""


async def test_the_graphql_union_has_the_same_violations(service: Service, cast: Cast) -> None:
    variables = {
        "patient": await cast.patient(),
        "input": {"brandId": "loop", "encounterType": "LAB", "notes": MARKER * 5_000, "metadata": [MARKER]},
    }

    answer = await service.graphql(RECORD, variables)

    nothing = {"allowed": None, "minimum": None, "maximum": None}
    assert answer["data"]["recordEncounter"]["violations"] == [
        nothing
        | {"path": ["input", "notes"], "rule": "too_long", "maximum": 50_000}
        | {"received": {"type": "STRING", "length": 60_000}},
        nothing | {"path": ["input", "metadata"], "rule": "object", "received": {"type": "ARRAY", "length": 1}},
    ]
    assert MARKER not in json.dumps(answer)


async def test_an_invalid_variable_is_reported_with_its_shape(service: Service, cast: Cast) -> None:
    variables = {"patient": await cast.patient(), "input": {"brandId": "loop", "encounterType": "HOUSE_CALL"}}

    (error,) = (await service.graphql(RECORD, variables))["errors"]

    (violation,) = error["extensions"]["violations"]
    assert violation["allowed"] == ["OFFICE_VISIT", "TELEHEALTH", "LAB", "PHARMACY", "OTHER"]
    assert violation["received"] == {"type": "string", "length": 10}
