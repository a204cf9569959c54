"""No client is broken by surprise: the printed contracts hold what the landed ones, and the published page, promise."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from rest.openapi import openapi
from tests.breaking import (
    LANDED,
    PRINTED,
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


# The endpoint's published page, and its twin.
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


def test_no_break_of_what_has_landed_is_left_out_of_the_changelog() -> None:
    assert unannounced(breaks(), (ROOT / "CHANGELOG.md").read_text()) == [], "see docs/decisions/0028"


def test_the_description_holds_all_that_the_published_page_promises() -> None:
    """But for the sizes that the page does not bound, and anything that is stored must."""
    missed = breaks_of_openapi(PAGE, openapi())

    assert missed == [
        f"GET {PATH}, query parameter limit has a tighter minimum.",
        f"GET {PATH}, query parameter limit has a tighter maximum.",
        f"GET {PATH}, query parameter offset has a tighter minimum.",
        f"GET {PATH}, query parameter offset has a tighter maximum.",
        f"POST {PATH}, body, chief_complaint has a tighter maxLength.",
        f"POST {PATH}, body, notes has a tighter maxLength.",
    ]


def test_the_description_names_exactly_the_published_members_and_statuses() -> None:
    described = openapi()
    schemas, responses = described["components"]["schemas"], described["components"]["responses"]

    assert schemas["RecordEncounter"]["properties"].keys() == REQUEST["properties"].keys()
    assert schemas["RecordEncounter"]["required"] == REQUEST_BODY["required"]
    assert schemas["RecordEncounter"]["properties"]["metadata"]["default"] == {}
    assert list(schemas["Encounter"]["properties"]) == schemas["Encounter"]["required"] == ENCOUNTER["required"]
    assert schemas["Error"]["required"] == ERROR["required"]
    assert described["paths"][PATH]["post"]["responses"]["201"]["description"] == "Encounter recorded"
    assert [responses[status]["description"] for status in ("404", "500")] == ["Patient not found", "Internal error"]


# The gate itself: every break that is planted is found, and nothing else is taken for one.


def gone(*place: str) -> Callable[[dict[str, Any]], None]:
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
    ("plant", "told"),
    [
        (gone("paths", ONE), f"GET {ONE} is gone."),
        (gone(*POST), f"POST {PATH} is gone."),
        (gone(*POST, "responses", "409"), f"POST {PATH} answers no 409 any more."),
        (gone(*POST, "responses", "201", "headers", "Location"), "201 has no header Location any more."),
        (gone("components", "responses", "400", "content", "application/json"), "400 is no application/json any more."),
        (gone(*SCHEMAS, "Encounter", "properties", "notes"), "201 has no member notes any more."),
        (gone(*SCHEMAS, "Violation", "properties", "rule"), "violations, items has no member rule any more."),
        (put(["id"], *SCHEMAS, "Encounter", "required"), "201 may come without the member brand_id."),
        (put({"type": "integer"}, *SCHEMAS, "Encounter", "properties", "notes"), "201, notes may be integer."),
        (put({"type": ["string", "null"]}, *SCHEMAS, "Encounter", "properties", "id"), "201, id may be null."),
        (put({}, *SCHEMAS, "Encounter", "properties", "brand_id"), "201, brand_id may be array, boolean"),
        (put(["scheduled", "lost"], *SCHEMAS, "EncounterStatus", "enum"), "201, status may have other values."),
        (put(["lab"], *SCHEMAS, "EncounterType", "enum"), "body, encounter_type takes fewer values."),
        (put(["brand_id", "notes", "encounter_type"], *SCHEMAS, "RecordEncounter", "required"),
         "body needs the member notes."),
        (gone(*SCHEMAS, "RecordEncounter", "properties", "notes"), "body does not know the member notes any more."),
        (put({"type": "null"}, *SCHEMAS, "RecordEncounter", "properties", "notes"), "notes takes no string any more."),
        (put(5, *SCHEMAS, "RecordEncounter", "properties", "notes", "maxLength"), "notes has a tighter maxLength."),
        (put("^a", *SCHEMAS, "RecordEncounter", "properties", "brand_id", "pattern"), "brand_id has another pattern."),
        (put([NEEDED], *POST, "parameters"), f"POST {PATH} needs the header parameter X-New."),
        (put([], *POST, "parameters"), "header parameter Idempotency-Key is gone."),
        (put({}, *POST, "requestBody", "content"), "takes no application/json any more."),
        (put([{"bearer": ["admin:encounters"]}], *POST, "security"), f"POST {PATH} takes fewer scopes."),
    ],
)  # fmt: skip
def test_a_break_of_the_rest_door_is_found(plant: Callable[[dict[str, Any]], None], told: str) -> None:
    described = openapi()
    plant(described)

    found = breaks_of_openapi(openapi(), described)

    assert any(told in each for each in found), found


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
def test_what_is_only_added_breaks_nobody(plant: Callable[[dict[str, Any]], None]) -> None:
    described = openapi()
    plant(described)

    assert breaks_of_openapi(openapi(), described) == []


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("  startCursor: String\n", "", "PageInfo.startCursor was removed."),
        ("  version: Int!\n", "  version: Int\n", "Encounter.version changed type from Int! to Int."),
        ("  notes: String\n", "  notes: String!\n", "AmendEncounterInput.notes"),
        ("  LAB\n", "", "EncounterType.LAB was removed."),
    ],
)
def test_a_break_of_the_graphql_door_is_found(was: str, now: str, told: str) -> None:
    landed = PRINTED["schema.graphql"].read_text()
    changed = landed.replace(was, now)
    assert changed != landed

    assert any(told in each for each in breaks_of_graphql(landed, changed))


def test_a_break_must_be_named_where_the_next_release_is_told() -> None:
    found = ["GET /x is gone.", "GET /y is gone."]
    changelog = """# Changelog

## [Unreleased]

### Broken

- GET /x is
  gone.

### Added

- GET /y is gone.

## 1.0.0

### Broken

- GET /y is gone.
"""
    assert unannounced(found, changelog) == ["GET /y is gone."]
    assert unannounced(found, changelog.replace("### Added\n\n", "")) == []


def test_the_landed_contracts_are_contracts() -> None:
    assert {path.name for path in LANDED.iterdir()} >= PRINTED.keys()
    assert re.search(r"^type Query", (LANDED / "schema.graphql").read_text(), re.MULTILINE)
    assert json.loads((LANDED / "openapi.json").read_text())["openapi"] == "3.1.0"
