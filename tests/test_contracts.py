"""The printed contracts match the code, and packages import only what the layers allow."""

import json
import re
from pathlib import Path

from importlinter.cli import lint_imports
from openapi_pydantic import OpenAPI

from rest.openapi import openapi, openapi_json
from schema import build_schema
from schema.federation import subgraph_sdl

ROOT = Path(__file__).parent.parent


def test_schema_graphql_is_the_served_schema() -> None:
    printed = (ROOT / "schema/schema.graphql").read_text()

    assert printed == build_schema().as_str() + "\n", "run `gateway export schema > schema/schema.graphql`"


def test_federated_graphql_is_the_composed_schema() -> None:
    printed = (ROOT / "schema/federated.graphql").read_text()

    asked = "run `gateway export schema --federation > schema/federated.graphql`"
    assert printed == subgraph_sdl(build_schema()) + "\n", asked


def test_openapi_json_is_the_served_description() -> None:
    printed = (ROOT / "rest/openapi.json").read_text()

    assert printed == openapi_json() + "\n", "run `gateway export openapi > rest/openapi.json`"


def test_the_description_is_valid_openapi() -> None:
    described = OpenAPI.model_validate(json.loads(openapi_json()))

    assert described.paths is not None
    assert set(described.paths) == set(openapi()["paths"])


def test_each_component_is_referenced_and_each_reference_names_one() -> None:
    kinds = ("schemas", "responses", "headers")
    components = {f"#/components/{kind}/{name}" for kind in kinds for name in openapi()["components"][kind]}

    assert set(re.findall(r'"\$ref": "([^"]+)"', openapi_json())) == components


def test_no_package_imports_a_forbidden_one(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    # It would disable every logger that exists.
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)

    assert lint_imports(no_cache=True) == 0
