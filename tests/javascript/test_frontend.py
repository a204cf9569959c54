"""The files of docs/clients for a frontend: generated types compile, and the cache keeps each object under one key."""

import re
import shutil
from pathlib import Path

import pytest
from graphql import is_interface_type, is_object_type

from resolvers.access import Permission
from schema import build_schema
from tests.cast import Cast
from tests.node import FOLDER, needs_node, run, run_node

ROOT = FOLDER.parent.parent
CLIENTS = ROOT / "docs/clients"
SCHEMA = build_schema()._schema

pytestmark = needs_node


PROGRAMS = ("frontend", "graphcache", "live", "offline", "server")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frontend with the files of docs/clients, its types generated and its programs compiled."""
    folder = tmp_path_factory.mktemp("frontend")
    (folder / "node_modules").symlink_to(FOLDER / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "src").mkdir()
    for name in ("apollo-cache", "live-list", "offline-queue", "server-client"):
        shutil.copy(CLIENTS / f"{name}.ts", folder / "src")
    shutil.copy(CLIENTS / "graphcache.ts", folder / "src/graphcache-options.ts")
    for name in PROGRAMS:
        shutil.copy(FOLDER / f"{name}.ts", folder / "src")
    strict = ["--strict", "--noUncheckedIndexedAccess", "--target", "es2022", "--module", "nodenext"]
    libraries = [
        "--skipLibCheck",
        "--types",
        "node",
        "--lib",
        "es2022,dom,dom.iterable,dom.asynciterable,esnext.disposable",
    ]
    programs = [f"src/{name}.ts" for name in PROGRAMS]

    operations, schema = CLIENTS / "operations.graphql", ROOT / "schema/schema.graphql"
    made = run("node", FOLDER / "codegen.mjs", CLIENTS / "codegen.mjs", schema, operations, folder)
    compiled = run("tsc", *strict, *libraries, *programs, cwd=folder)

    assert made.returncode == 0, made.stderr
    assert (compiled.returncode, compiled.stdout) == (0, "")
    return folder


async def test_a_frontend_with_generated_types_records_reads_and_changes(
    project: Path, gateway_url: str, cast: Cast
) -> None:
    patient_id = await cast.patient()

    seen = await run_node(str(project / "src/frontend.js"), f"{gateway_url}/graphql", patient_id)

    older, newer = [str(row["id"]) for row in await cast.rows(patient_id)]
    assert seen["recorded"] == [
        "SCHEDULED",
        "idempotency_key_payload_mismatch",
        "SCHEDULED",
        "recorded_status,recorded_status",
    ]
    # The page of two requests is one list, and the mutation's answer updates the encounter in it.
    assert (seen["started"], seen["statuses"]) == ("EncounterChanged", ["IN_PROGRESS", "SCHEDULED"])
    assert seen["keys"] == sorted(
        [
            f"Encounter:{older}",
            f"Encounter:{newer}",
            f'Patient:{{"brandId":"loop","id":"{patient_id}"}}',
            "Viewer:{}",
        ]
    )
    assert seen["can"] == [permission.name for permission in Permission]
    assert seen["possibleTypes"] == {
        kind.name: sorted(each.name for each in SCHEMA.get_possible_types(kind))
        for kind in SCHEMA.type_map.values()
        if is_interface_type(kind)
    }


async def test_the_cache_of_urql_reads_a_list_again_and_updates_encounters(
    project: Path, gateway_url: str, cast: Cast
) -> None:
    arguments = (f"{gateway_url}/graphql", await cast.patient(), str(ROOT / "schema/schema.graphql"))

    seen = await run_node(str(project / "src/graphcache.js"), *arguments)

    assert seen == {"shown": ["", "SCHEDULED", "IN_PROGRESS"], "lists": 2, "warnings": []}


def test_the_cache_of_urql_has_a_key_for_each_type() -> None:
    page = (CLIENTS / "graphcache.ts").read_text()
    own_key = {"Encounter", "Patient", "Submission"}
    roots = {"Query", "Mutation", "Subscription"}
    types = {kind.name for kind in SCHEMA.type_map.values() if is_object_type(kind) and not kind.name.startswith("__")}

    assert set(re.findall(r'"(\w+)",', page.partition("export")[0])) == types - own_key - roots


async def test_the_offline_queue_records_each_action_once(project: Path, gateway_url: str, cast: Cast) -> None:
    patient_id = await cast.patient()

    seen = await run_node(str(project / "src/offline.js"), gateway_url, patient_id)

    # The answer to the first recording was lost, so it was sent twice.
    assert [row["encounter_type"] for row in await cast.rows(patient_id)] == ["lab", "telehealth"]
    assert seen == {
        "waiting": [3, 3, 0],
        "refused": ["HOUSE_CALL"],
        "old": ["OTHER"],
        "readable": False,
        "extractable": False,
    }


async def test_a_client_for_server_rendering_serves_one_user(project: Path, gateway_url: str) -> None:
    seen = await run_node(str(project / "src/server.js"), gateway_url)

    assert seen == ["loop", "loopbio", "invalid_token", "TimeoutError", "validation_error"]


async def test_a_live_list_shows_each_change_in_its_order(project: Path, gateway_url: str, cast: Cast) -> None:
    seen = await run_node(str(project / "src/live.js"), gateway_url, await cast.patient())

    assert seen == [
        [],
        [["SCHEDULED", "09"]],
        [["SCHEDULED", "08"], ["SCHEDULED", "09"]],
        [["IN_PROGRESS", "08"], ["SCHEDULED", "09"]],
        [["SCHEDULED", "09"]],
    ]


@pytest.mark.parametrize(
    ("page", "name"), [("offline", "offline-queue"), ("server-rendering", "server-client"), ("live-lists", "live-list")]
)
def test_a_page_shows_its_client_unchanged(page: str, name: str) -> None:
    code = (CLIENTS / f"{name}.ts").read_text()

    assert f"```ts\n{code}```" in (ROOT / f"docs/frontend-{page}.md").read_text()
