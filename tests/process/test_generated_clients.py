"""Clients generated from the OpenAPI description, against a running gateway."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import node
from tests.cast import Cast
from tests.gateways import ROOT, running_gateway

DESCRIPTION = ROOT / "rest/openapi.json"
PYTHON = ROOT / ".venv/clients/bin"

RECORD = """
import json, sys
from client import AuthenticatedClient
from client.api.encounters import get_encounter, list_encounters, record_encounter
from client.models import EncounterType, Error, RecordEncounter

origin, patient_id = sys.argv[1:]
with AuthenticatedClient(base_url=origin, token="dev") as client:
    body = RecordEncounter(brand_id="loop", encounter_type=EncounterType.LAB, notes="Slept well.")
    recorded = record_encounter.sync(patient_id, client=client, body=body, idempotency_key="py-" + patient_id)
    shown = get_encounter.sync_detailed(patient_id, str(recorded.id), client=client)
    tag = shown.headers["etag"]
    again = get_encounter.sync_detailed(patient_id, str(recorded.id), client=client, if_none_match=tag)
    listed = list_encounters.sync(patient_id, client=client, limit=1)
    refused = record_encounter.sync("nobody", client=client, body=body)
    assert isinstance(refused, Error)
    print(json.dumps({
        "same": shown.parsed == recorded,
        "status": recorded.status.value,
        "year": recorded.created_at.year > 2000,
        "again": again.status_code,
        "total": listed.total,
        "refused": refused.error,
    }))
"""


@pytest.fixture(scope="module")
def origin(database_url: str) -> Iterator[str]:
    with running_gateway(database_url) as origin:
        yield origin


def run(program: str, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the clients' environment, with that environment on the PATH."""
    path = f"{PYTHON}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [PYTHON / program, *words],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PATH": path},
    )


@node.needs_node
async def test_a_generated_typescript_client_compiles_and_records(origin: str, cast: Cast, tmp_path: Path) -> None:
    patient_id = await cast.patient()
    (tmp_path / "node_modules").symlink_to(node.FOLDER / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(node.FOLDER / "client.ts", tmp_path)
    strict = ["--strict", "--noUncheckedIndexedAccess", "--target", "es2022", "--module", "nodenext"]

    made = node.run("openapi-typescript", DESCRIPTION, "--output", tmp_path / "gateway.d.ts")
    checked = node.run("tsc", *strict, "--lib", "es2022,dom", "client.ts", cwd=tmp_path)
    ran = node.run("node", "client.js", origin, patient_id, cwd=tmp_path)

    assert (made.returncode, made.stderr) == (0, "")
    assert (checked.returncode, checked.stdout) == (0, "")
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    (row,) = await cast.rows(patient_id)
    assert printed == {
        "status": "scheduled",
        "notes": None,
        "id": str(row["id"]),
        "metadata": {"room": 7, "tags": ["a", None]},
        "location": f"/v1/patients/{patient_id}/encounters/{row['id']}",
        "shown": str(row["id"]),
        "again": 304,
        "total": 1,
        "refused": {"rule": "too_short", "minimum": 1, "length": 0},
    }


@pytest.mark.skipif(not PYTHON.exists(), reason="openapi-python-client is not installed: make .venv/clients")
async def test_a_generated_python_client_records(origin: str, cast: Cast, tmp_path: Path) -> None:
    patient_id = await cast.patient()
    generate: list[str | Path] = [
        "generate",
        "--fail-on-warning",
        "--meta",
        "none",
        "--path",
        DESCRIPTION,
        "--output-path",
        "client",
    ]

    made = run("openapi-python-client", *generate, cwd=tmp_path)
    ran = run("python", "-W", "error", "-c", RECORD, origin, patient_id, cwd=tmp_path)

    assert made.returncode == 0, made.stdout + made.stderr
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "same": True,
        "status": "scheduled",
        "year": True,
        "again": 304,
        "total": 1,
        "refused": "not_found",
    }
    assert len(await cast.rows(patient_id)) == 1


@node.needs_node
def test_the_openapi_description_passes_the_redocly_lint() -> None:
    linted = node.run("redocly", "lint", DESCRIPTION, "--config", "redocly.yaml", "--format", "json")

    assert json.loads(linted.stdout)["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}, linted.stdout
