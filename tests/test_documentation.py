"""The tables in the documentation match the code, and MkDocs builds it as a site."""

import json
import os
import re
import subprocess
from pathlib import Path

from pydantic_core import PydanticUndefined

from gateway.events.status import EventStatus
from gateway.metrics_endpoint import from_database
from gateway.observability.metrics import REGISTRY
from gateway.settings import PREFIX, Settings
from models import MEMBERS, EncounterStatus
from resolvers.access import DEFAULT_SCOPES
from resolvers.commands import AmendEncounter, Command, EncounterBody, RecordEncounter, Reschedule
from resolvers.encounters.lifecycle import LIFECYCLE
from resolvers.errors import GatewayError
from rest.errors import status_of
from rest.openapi import OPERATIONS, openapi
from schema.field_scopes import ENTITIES, FIELDS

DOCS = Path(__file__).parent.parent / "docs"
MKDOCS = DOCS.parent / ".venv/docs/bin/mkdocs"


def test_the_site_has_a_search_index_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    assert MKDOCS.exists(), "MkDocs is not installed: make .venv/docs"

    # mkdocs.yml is strict: a broken link or anchor, or a page outside the navigation, fails the build.
    built = subprocess.run(
        [MKDOCS, "build", "--site-dir", tmp_path],
        check=False,
        cwd=DOCS.parent,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr

    pages = {page.relative_to(tmp_path).as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    indexed = {entry["location"] for entry in json.loads((tmp_path / "search/search_index.json").read_text())["docs"]}
    assert pages.keys() - indexed == {"404.html"}
    loaded = {
        name: re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//", page)
        for name, page in pages.items()
    }
    assert not any(loaded.values()), loaded


def test_the_index_links_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text()))

    assert linked == {page.name for page in DOCS.glob("*.md")} - {"README.md"}


def test_the_table_of_decisions_is_that_of_their_headers() -> None:
    rows = []
    for page in sorted((DOCS / "decisions").glob("0*.md")):
        title, _, header = page.read_text().split("\n")[:3]
        number, name = title.removeprefix("# ").split(". ", 1)
        date, area, status = (part.split(": ", 1)[1] for part in header.split(" · "))
        rows.append(f"| [{number}]({page.name}) | {name} | {area} | {date} | {status} |")

    table = (DOCS / "decisions/README.md").read_text().splitlines()
    assert [row for row in table if row.startswith("| [")] == rows


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


def test_the_table_of_members_is_that_of_the_code() -> None:
    assert members_table() in (DOCS / "rest.md").read_text(), members_table()


def members_table() -> str:
    """Return the table of an encounter's members of docs/rest.md."""
    rows = ["| member | in GraphQL | value | sent when | clinical |", "|---|---|---|---|---|"]
    for member in MEMBERS.values():
        if member.published:
            value = f"{member.kind.name.lower()}{' or null' if member.optional else ''}"
            commands: dict[str, type[Command]] = {
                "recording": EncounterBody,
                "recording over GraphQL": RecordEncounter,
                "rescheduling": Reschedule,
                "amending": AmendEncounter,
            }
            if member.name in EncounterBody.model_fields:
                del commands["recording over GraphQL"]
            sent = ", ".join(name for name, command in commands.items() if member.name in command.model_fields)
            clinical = "yes" if member.clinical else ""
            rows.append(f"| `{member.name}` | `{member.graphql_name}` | {value} | {sent} | {clinical} |")
    return "\n".join(rows)


def statuses_table() -> str:
    """Return the table of refusals of docs/rest.md."""
    rows = ["| status | what it says |", "|---|---|"]
    refusals = openapi()["components"]["responses"]
    return "\n".join(rows + [f"| {status} | {each['description'].rstrip('.')} |" for status, each in refusals.items()])


def headers_table() -> str:
    """Return the table of headers of docs/rest.md."""
    rows = ["| header | what it says | for instance |", "|---|---|---|"]
    headers = openapi()["components"]["headers"]
    rows += [f"| `{name}` | {each['description']} | `{each['example']}` |" for name, each in headers.items()]
    return "\n".join(rows)


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
    for family in [*REGISTRY.collect(), *from_database(nothing, None, is_up=True)]:
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
