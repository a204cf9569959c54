"""The tables in the documentation match the code."""

import re
from pathlib import Path

from pydantic_core import PydanticUndefined

from gateway.events.status import EventStatus
from gateway.metrics_endpoint import from_database
from gateway.observability.metrics import REGISTRY
from gateway.settings import PREFIX, Settings
from models import EncounterStatus
from resolvers.access import DEFAULT_SCOPES
from resolvers.encounters.lifecycle import LIFECYCLE
from resolvers.errors import GatewayError
from rest.errors import status_of
from rest.openapi import OPERATIONS
from rest.openapi_text import HEADERS, REFUSALS
from schema.field_scopes import ENTITIES, FIELDS

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_settings_matches_the_code() -> None:
    assert settings_table() in (DOCS / "settings.md").read_text(), settings_table()


def test_the_table_of_errors_matches_the_code() -> None:
    assert errors_table() in (DOCS / "errors.md").read_text(), errors_table()


def test_the_table_of_permissions_matches_the_code() -> None:
    assert access_table() in (DOCS / "access.md").read_text(), access_table()


def test_the_table_of_the_lifecycle_matches_the_code() -> None:
    assert lifecycle_table() in (DOCS / "lifecycle.md").read_text(), lifecycle_table()


def test_the_tables_of_statuses_and_headers_match_the_code() -> None:
    page = (DOCS / "rest.md").read_text()

    assert statuses_table() in page, statuses_table()
    assert headers_table() in page, headers_table()


def statuses_table() -> str:
    """Return the table of refusals of docs/rest.md."""
    rows = ["| status | what it says |", "|---|---|"]
    return "\n".join(rows + [f"| {status} | {said.rstrip('.')} |" for status, said in REFUSALS.items()])


def headers_table() -> str:
    """Return the table of headers of docs/rest.md."""
    rows = ["| header | what it says | for instance |", "|---|---|---|"]
    return "\n".join(rows + [f"| `{name}` | {said} | `{example}` |" for name, (said, example) in HEADERS.items()])


def lifecycle_table() -> str:
    """Return the table of transitions of docs/lifecycle.md."""
    rows = ["| action | from | to |", "|---|---|---|"]
    for action, transition in LIFECYCLE.items():
        sources = ", ".join(f"`{status.name}`" for status in EncounterStatus if status in transition.sources)
        target = f"`{transition.target.name}`" if transition.target else "the same"
        rows.append(f"| `{action.name}` | {sources} | {target} |")
    return "\n".join(rows)


def test_the_clients_in_the_documentation_are_the_tested_ones() -> None:
    tested = (Path(__file__).parent / "javascript/follow.mjs").read_text()
    loop = tested[tested.index("const query") : tested.index("\n\nawait follow")]

    assert loop in (DOCS / "live.md").read_text(), loop


def test_the_table_of_metrics_matches_the_code() -> None:
    assert metrics_table() in (DOCS / "operators.md").read_text(), metrics_table()


def metrics_table() -> str:
    """Return the table of metrics of docs/operators.md."""
    nothing = EventStatus(waiting=0, oldest_seconds=0, position=0, unsettled=0, pruned=0, sinks=())
    rows = ["| metric | kind | what it tells |", "|---|---|---|"]
    for family in [*REGISTRY.collect(), *from_database(nothing)]:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return "\n".join(rows)


def test_every_test_named_in_the_documentation_exists() -> None:
    named = re.findall(r"`(tests/\S+?\.py)::(\w+)`", (DOCS / "guarantees.md").read_text())

    assert len(named) > 30
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (DOCS.parent / path).read_text()]
    assert not missing


def access_table() -> str:
    """Return the table of operations of docs/access.md."""
    rows = ["| operation | any one of these scopes | REST | GraphQL |", "|---|---|---|---|"]
    for operation, scopes in DEFAULT_SCOPES.items():
        over_rest = [f"`{method.upper()} {path}`" for (method, path), each in OPERATIONS.items() if each is operation]
        over_graphql = [f"`{field}`" for field, each in FIELDS.items() if each is operation]
        over_graphql += [f"`Query._entities` of `{name}`" for name, each in ENTITIES.items() if each is operation]
        needed = ", ".join(f"`{scope}`" for scope in scopes)
        rows.append(f"| `{operation}` | {needed} | {'<br>'.join(over_rest)} | {'<br>'.join(over_graphql)} |")
    return "\n".join(rows)


def settings_table() -> str:
    """Return the table of settings of docs/settings.md."""
    rows = ["| variable | default | what it does |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "the user's data folder" if field.default is PydanticUndefined else f"`{field.default}`"
        default = "none" if field.default is None else default
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def errors_table() -> str:
    """Return the table of errors of docs/errors.md."""
    rows = ["| code | status | recorded | what it means |", "|---|---|---|---|"]
    kinds = sorted(_leaves(GatewayError), key=lambda kind: (_status(kind), kind.code, kind.__name__))
    rows += [
        f"| `{kind.code}` | {_status(kind)} | {kind.recorded} | {(kind.__doc__ or '').splitlines()[0]} |"
        for kind in kinds
    ]
    return "\n".join(rows)


def _leaves(kind: type[GatewayError]) -> list[type[GatewayError]]:
    below = [leaf for child in kind.__subclasses__() for leaf in _leaves(child)]
    return ([kind] if "code" in vars(kind) or not below else []) + below


def _status(kind: type[GatewayError]) -> int:
    return status_of(kind.__new__(kind))
