"""The files of docs/clients for a frontend: generated types compile, and the cache keeps each object under one key."""

import shutil
from pathlib import Path

import pytest
from graphql import is_interface_type

from resolvers.access import Permission
from schema import build_schema
from tests.cast import Cast
from tests.node import FOLDER, needs_node, run, run_node

ROOT = FOLDER.parent.parent
CLIENTS = ROOT / "docs/clients"
SCHEMA = build_schema()._schema

pytestmark = needs_node


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A frontend with the documented configuration, its types generated and its programs compiled."""
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "src").mkdir()
    shutil.copy(CLIENTS / "apollo-cache.ts", tmp_path / "src")
    shutil.copy(FOLDER / "frontend.ts", tmp_path / "src")
    strict = ["--strict", "--noUncheckedIndexedAccess", "--target", "es2022", "--module", "nodenext"]

    operations, schema = CLIENTS / "operations.graphql", ROOT / "schema/schema.graphql"
    made = run("node", FOLDER / "codegen.mjs", CLIENTS / "codegen.mjs", schema, operations, tmp_path)
    compiled = run(
        "tsc", *strict, "--skipLibCheck", "--lib", "es2022,dom,esnext.disposable", "src/frontend.ts", cwd=tmp_path
    )

    assert made.returncode == 0, made.stderr
    assert (compiled.returncode, compiled.stdout) == (0, "")
    return tmp_path


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
