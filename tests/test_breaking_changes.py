"""Breaking changes: the printed contracts keep the promises of docs/contracts and of the published page."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from rest.openapi import openapi
from tests.breaking_changes import (
    PRINTED,
    PROMISED,
    ROOT,
    breaks,
    breaks_of_graphql,
    breaks_of_openapi,
    unannounced,
)
from tests.http.test_contract import ENCOUNTER, ENCOUNTERS, ERROR, REQUEST_BODY

REQUEST: dict[str, Any] = dict(REQUEST_BODY)
PATH = "/v1/patients/{patient_id}/encounters"
ONE = PATH + "/{encounter_id}"


def content(schema: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


# The published page of the endpoint: POST and GET.
PAGE: dict[str, Any] = {
    "paths": {
        PATH: {
            "parameters": [{"name": "patient_id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "post": {
                "requestBody": {"required": True} | content(REQUEST_BODY),
                "responses": {
                    "201": {"description": "Encounter recorded"} | content(ENCOUNTER),
                    "404": {"description": "Patient not found"} | content(ERROR),
                    "500": {"description": "Internal error"} | content(ERROR),
                },
            },
            "get": {
                "parameters": [
                    {"name": "limit", "in": "query", "schema": {"type": "integer"}},
                    {"name": "offset", "in": "query", "schema": {"type": "integer"}},
                ],
                "responses": {"200": content(ENCOUNTERS), "404": content(ERROR)},
            },
        }
    }
}


def test_every_breaking_change_is_in_the_changelog() -> None:
    assert unannounced(breaks(), (ROOT / "CHANGELOG.md").read_text()) == [], "see docs/decisions/0028"


def test_the_description_has_everything_that_the_published_page_promises() -> None:
    """Except for sizes, which the page leaves open and stored data must bound."""
    missed = breaks_of_openapi(PAGE, openapi())

    assert missed == [
        f"GET {PATH}, query parameter limit has a tighter minimum.",
        f"GET {PATH}, query parameter limit has a tighter maximum.",
        f"GET {PATH}, query parameter offset has a tighter minimum.",
        f"GET {PATH}, query parameter offset has a tighter maximum.",
        f"POST {PATH}, body, chief_complaint has a tighter maxLength.",
        f"POST {PATH}, body, notes has a tighter maxLength.",
    ]


def test_the_description_has_exactly_the_published_members_and_statuses() -> None:
    described = openapi()
    schemas, responses = described["components"]["schemas"], described["components"]["responses"]

    assert schemas["RecordEncounter"]["properties"].keys() == REQUEST["properties"].keys()
    assert schemas["RecordEncounter"]["required"] == REQUEST_BODY["required"]
    # Not `default`: generators of types make a member with a default required.
    assert "`{}` if left out" in schemas["RecordEncounter"]["properties"]["metadata"]["description"]
    assert list(schemas["Encounter"]["properties"]) == schemas["Encounter"]["required"] == ENCOUNTER["required"]
    assert schemas["Error"]["required"] == ERROR["required"]
    assert described["paths"][PATH]["post"]["responses"]["201"]["description"] == "Encounter recorded"
    assert [responses[status]["description"] for status in ("404", "500")] == ["Patient not found", "Internal error"]


# The checker itself: it finds every planted breaking change, and reports no other


def drop(*place: str) -> Callable[[dict[str, Any]], None]:
    def plant(described: dict[str, Any]) -> None:
        *way, last = place
        for step in way:
            described = described[step]
        del described[last]

    return plant


def put(value: Any, *place: str) -> Callable[[dict[str, Any]], None]:
    def plant(described: dict[str, Any]) -> None:
        *way, last = place
        for step in way:
            described = described.setdefault(step, {})
        described[last] = value

    return plant


SCHEMAS = ("components", "schemas")
POST = ("paths", PATH, "post")
NEEDED = {"name": "X-New", "in": "header", "required": True, "schema": {"type": "string"}}


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (drop("paths", ONE), f"GET {ONE} is removed."),
        (drop(*POST), f"POST {PATH} is removed."),
        (drop(*POST, "responses", "409"), f"POST {PATH} no longer answers 409."),
        (drop(*POST, "responses", "201", "headers", "Location"), "201 no longer has the header Location."),
        (drop("components", "responses", "400", "content", "application/json"), "400 is no longer application/json."),
        (drop(*SCHEMAS, "Encounter", "properties", "notes"), "201 no longer has the member notes."),
        (drop(*SCHEMAS, "Violation", "properties", "rule"), "violations, items no longer has the member rule."),
        (put(["id"], *SCHEMAS, "Encounter", "required"), "201 may lack the member brand_id."),
        (put({"type": "integer"}, *SCHEMAS, "Encounter", "properties", "notes"), "201, notes may be integer."),
        (put({"type": ["string", "null"]}, *SCHEMAS, "Encounter", "properties", "id"), "201, id may be null."),
        (put({}, *SCHEMAS, "Encounter", "properties", "brand_id"), "201, brand_id may be array, boolean"),
        (put(["scheduled", "lost"], *SCHEMAS, "EncounterStatus", "enum"), "201, status may have other values."),
        (put(["lab"], *SCHEMAS, "EncounterType", "enum"), "body, encounter_type accepts fewer values."),
        (put(["brand_id", "notes", "encounter_type"], *SCHEMAS, "RecordEncounter", "required"),
         "body requires the member notes."),
        (drop(*SCHEMAS, "RecordEncounter", "properties", "notes"), "body no longer has the member notes."),
        (put({"type": "null"}, *SCHEMAS, "RecordEncounter", "properties", "notes"), "notes no longer accepts string."),
        (put(5, *SCHEMAS, "RecordEncounter", "properties", "notes", "maxLength"), "notes has a tighter maxLength."),
        (put("^a", *SCHEMAS, "RecordEncounter", "properties", "brand_id", "pattern"), "brand_id has another pattern."),
        (put([NEEDED], *POST, "parameters"), f"POST {PATH} requires the header parameter X-New."),
        (put([], *POST, "parameters"), "header parameter Idempotency-Key is removed."),
        (put({}, *POST, "requestBody", "content"), "no longer accepts application/json."),
        (put([{"bearer": ["admin:encounters"]}], *POST, "security"), f"POST {PATH} accepts fewer scopes."),
    ],
)  # fmt: skip
def test_a_breaking_change_of_rest_is_found(plant: Callable[[dict[str, Any]], None], message: str) -> None:
    described = openapi()
    plant(described)

    found = breaks_of_openapi(openapi(), described)

    assert any(message in each for each in found), found


@pytest.mark.parametrize(
    "plant",
    [
        put({"get": {"responses": {}}}, "paths", "/new"),
        put({"description": "New"}, *POST, "responses", "402"),
        put({"type": "string"}, *SCHEMAS, "Encounter", "properties", "new"),
        put({"type": "string"}, *SCHEMAS, "RecordEncounter", "properties", "new"),
        put({"type": "string", "enum": ["lab"]}, *SCHEMAS, "Encounter", "properties", "brand_id"),
        put(60_000, *SCHEMAS, "RecordEncounter", "properties", "notes", "maxLength"),
        put(["brand_id"], *SCHEMAS, "RecordEncounter", "required"),
        put([{"bearer": ["write:encounters"]}, {"bearer": ["write:visits"]}], *POST, "security"),
        put("Other words", *POST, "description"),
    ],
)
def test_an_addition_is_not_a_breaking_change(plant: Callable[[dict[str, Any]], None]) -> None:
    described = openapi()
    plant(described)

    assert breaks_of_openapi(openapi(), described) == []


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("  startCursor: String\n", "", "PageInfo.startCursor was removed."),
        ("  version: Int!\n", "  version: Int\n", "Encounter.version changed type from Int! to Int."),
        ("  notes: String\n", "  notes: String!\n", "AmendEncounterInput.notes"),
        ("  LAB\n", "", "EncounterType.LAB was removed."),
    ],
)
def test_a_breaking_change_of_graphql_is_found(was: str, now: str, message: str) -> None:
    landed = PRINTED["schema.graphql"].read_text()
    changed = landed.replace(was, now)
    assert changed != landed

    assert any(message in each for each in breaks_of_graphql(landed, changed))


def test_a_breaking_change_must_be_named_under_unreleased() -> None:
    found = ["GET /x is removed.", "GET /y is removed."]
    changelog = """# Changelog

## [Unreleased]

### Broken

- GET /x is
  removed.

### Added

- GET /y is removed.

## 1.0.0

### Broken

- GET /y is removed.
"""
    assert unannounced(found, changelog) == ["GET /y is removed."]
    assert unannounced(found, changelog.replace("### Added\n\n", "")) == []


def test_the_promised_contracts_are_valid() -> None:
    assert {path.name for path in PROMISED.iterdir()} >= PRINTED.keys()
    assert re.search(r"^type Query", (PROMISED / "schema.graphql").read_text(), re.MULTILINE)
    assert json.loads((PROMISED / "openapi.json").read_text())["openapi"] == "3.1.0"
