"""Find breaking changes of the contracts. `python -m tests.breaking_changes` makes the printed ones the promised ones.

The promised contracts are in `docs/contracts/`. CHANGELOG.md must name each breaking change under "Unreleased",
"Broken"; otherwise the program changes nothing and exits with an error.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphql import build_schema, find_breaking_changes

ROOT = Path(__file__).parent.parent
PRINTED = {"schema.graphql": ROOT / "schema/schema.graphql", "openapi.json": ROOT / "rest/openapi.json"}
PROMISED = ROOT / "docs/contracts"
METHODS = ("get", "post", "put", "patch", "delete", "head", "options")

Json = dict[str, Any]


def breaks_of_graphql(old: str, new: str) -> list[str]:
    """Return the breaking changes for GraphQL clients."""
    return [change.description for change in find_breaking_changes(build_schema(old), build_schema(new))]


def breaks_of_openapi(old: Json, new: Json) -> list[str]:
    """Return the breaking changes for REST clients."""
    return list(_breaks_of_openapi(old, new))


def _breaks_of_openapi(old: Json, new: Json) -> Iterator[str]:
    for path, item in old["paths"].items():
        for method in METHODS:
            if method not in item:
                continue
            where = f"{method.upper()} {path}"
            if method not in new["paths"].get(path, {}):
                yield f"{where} is removed."
                continue
            yield from _breaks_of_operation(where, _Operation(old, path, method), _Operation(new, path, method))


class _Operation:
    """One operation of an OpenAPI description, with its references resolved."""

    def __init__(self, description: Json, path: str, method: str) -> None:
        self._description = description
        item = description["paths"][path]
        self.operation: Json = item[method]
        both = [self.resolve(each) for each in (*item.get("parameters", ()), *self.operation.get("parameters", ()))]
        self.parameters = {(each["in"], each["name"].lower()): each for each in both}
        self.body = self.resolve(self.operation.get("requestBody", {}))
        self.responses = {status: self.resolve(each) for status, each in self.operation["responses"].items()}

    def resolve(self, part: Any) -> Json:
        """Return a part with its `$ref` resolved and merged with its other keys."""
        if not isinstance(part, dict) or "$ref" not in part:
            return part
        found: Any = self._description
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return {**self.resolve(found), **{key: value for key, value in part.items() if key != "$ref"}}

    def schema(self, part: Any) -> Json:
        """Return a schema with its `allOf` merged."""
        schema = self.resolve(part)
        joined: Json = {"properties": {}, "required": []}
        for each in (schema, *map(self.schema, schema.get("allOf", ()))):
            joined = {
                **joined,
                **each,
                "properties": {**joined["properties"], **each.get("properties", {})},
                "required": [*joined["required"], *each.get("required", [])],
            }
        return joined


def _breaks_of_operation(where: str, old: _Operation, new: _Operation) -> Iterator[str]:
    for place, parameter in new.parameters.items():
        if parameter.get("required") and not old.parameters.get(place, {}).get("required"):
            yield f"{where} requires the {place[0]} parameter {parameter['name']}."
    for place, parameter in old.parameters.items():
        name = f"{where}, {place[0]} parameter {parameter['name']}"
        if place not in new.parameters:
            yield f"{name} is removed."
        else:
            schemas = parameter["schema"], new.parameters[place]["schema"]
            yield from _narrower(name, old, new, *schemas)
    if new.body.get("required") and not old.body.get("required"):
        yield f"{where} requires a body."
    for media_type, content in old.body.get("content", {}).items():
        if media_type not in new.body.get("content", {}):
            yield f"{where} no longer accepts {media_type}."
        else:
            yield from _narrower(
                f"{where}, body", old, new, content["schema"], new.body["content"][media_type]["schema"]
            )
    if not set(map(str, old.operation.get("security", []))) <= set(map(str, new.operation.get("security", []))):
        yield f"{where} accepts fewer scopes."
    for status, response in old.responses.items():
        if status not in new.responses:
            yield f"{where} no longer answers {status}."
        else:
            yield from _breaks_of_response(f"{where}, {status}", old, new, response, new.responses[status])


def _breaks_of_response(where: str, old: _Operation, new: _Operation, was: Json, now: Json) -> Iterator[str]:
    for header in was.get("headers", {}):
        if header not in now.get("headers", {}):
            yield f"{where} no longer has the header {header}."
    for media_type, content in was.get("content", {}).items():
        if media_type not in now.get("content", {}):
            yield f"{where} is no longer {media_type}."
        else:
            yield from _wider(where, old, new, content["schema"], now["content"][media_type]["schema"])


def _narrower(where: str, old: _Operation, new: _Operation, was: Any, now: Any) -> Iterator[str]:
    """Yield the restrictions of values that a client may send."""
    was, now = old.schema(was), new.schema(now)
    if removed := _types(was) - _types(now):
        yield f"{where} no longer accepts {', '.join(sorted(removed))}."
    if "enum" in now and not set(was.get("enum", [object()])) <= set(now["enum"]):
        yield f"{where} accepts fewer values."
    for limit, tighter in (("minLength", 1), ("minimum", 1), ("minItems", 1), ("maxLength", -1), ("maximum", -1)):
        if limit in now and (limit not in was or (now[limit] - was[limit]) * tighter > 0):
            yield f"{where} has a tighter {limit}."
    for rule in ("pattern", "format"):
        if rule in now and now[rule] != was.get(rule):
            yield f"{where} has another {rule}."
    for name in sorted(set(now["required"]) - set(was["required"])):
        yield f"{where} requires the member {name}."
    for name, schema in was["properties"].items():
        if name not in now["properties"]:
            yield f"{where} no longer has the member {name}."
        else:
            yield from _narrower(f"{where}, {name}", old, new, schema, now["properties"][name])
    if "items" in was and "items" in now:
        yield from _narrower(f"{where}, items", old, new, was["items"], now["items"])


def _wider(where: str, old: _Operation, new: _Operation, was: Any, now: Any) -> Iterator[str]:
    """Yield the values that a client may newly receive, and those that it no longer receives."""
    was, now = old.schema(was), new.schema(now)
    if added := _types(now) - _types(was):
        yield f"{where} may be {', '.join(sorted(added))}."
    if "enum" in was and not set(now.get("enum", [object()])) <= set(was["enum"]):
        yield f"{where} may have other values."
    if "format" in was and now.get("format") != was["format"]:
        yield f"{where} has another format."
    for name in sorted(set(was["required"]) - set(now["required"])):
        yield f"{where} may lack the member {name}."
    for name, schema in was["properties"].items():
        if name not in now["properties"]:
            yield f"{where} no longer has the member {name}."
        else:
            yield from _wider(f"{where}, {name}", old, new, schema, now["properties"][name])
    if "items" in was and "items" in now:
        yield from _wider(f"{where}, items", old, new, was["items"], now["items"])


ANYTHING = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})


def _types(schema: Json) -> frozenset[str]:
    types = schema.get("type", ANYTHING)
    types = frozenset([types] if isinstance(types, str) else types)
    return types | {"integer"} if "number" in types else types


def breaks() -> list[str]:
    """Return the breaking changes of the printed contracts against the promised ones."""
    schemas, descriptions = [[(PROMISED / name).read_text(), printed.read_text()] for name, printed in PRINTED.items()]
    return [*breaks_of_graphql(*schemas), *breaks_of_openapi(*map(json.loads, descriptions))]


def unannounced(found: list[str], changelog: str) -> list[str]:
    """Return the breaking changes that the changelog does not name under "Unreleased", "Broken"."""
    unreleased = changelog.partition("## [Unreleased]")[2].partition("\n## ")[0]
    section = unreleased.partition("### Broken")[2].partition("\n### ")[0]
    named = {" ".join(line.split()) for line in re.split(r"^- ", section, flags=re.MULTILINE)}
    return [each for each in found if each not in named]


def land() -> None:
    """Make the printed contracts the promised ones; exit with an error if the changelog lacks a breaking change."""
    if missing := unannounced(breaks(), (ROOT / "CHANGELOG.md").read_text()):
        sys.exit("name these in CHANGELOG.md, under Unreleased, Broken:\n- " + "\n- ".join(missing))
    for name, printed in PRINTED.items():
        (PROMISED / name).write_text(printed.read_text())


if __name__ == "__main__":
    land()
