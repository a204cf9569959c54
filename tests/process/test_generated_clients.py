"""Clients generated from the OpenAPI description, against a running gateway."""

import json
import os
import shutil
import subprocess
import sys
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


MINIMAL = """
import json, sys
from client import AuthenticatedClient
from client.api.encounters import record_encounter
from client.models import Encounter, EncounterType, RecordEncounter

origin, patient_id = sys.argv[1:]
with AuthenticatedClient(base_url=origin, token="dev") as client:
    body = RecordEncounter(brand_id="loop", encounter_type=EncounterType.LAB)
    answer = record_encounter.sync_detailed(patient_id, client=client, body=body)
assert isinstance(answer.parsed, Encounter)
print(json.dumps({
    "status": int(answer.status_code), "id": str(answer.parsed.id), "metadata": answer.parsed.metadata.to_dict(),
}))
"""

GENERATORS: dict[str, list[str]] = {
    "openapi-typescript": ["openapi.json", "--output", "gateway.ts"],
    "openapi-ts": ["--file", "hey-api.config.mjs", "--silent"],
    "orval": ["--input", "openapi.json", "--output", "orval/gateway.ts", "--client", "fetch", "--fail-on-warnings"],
}
"""The npm programs that generate TypeScript, and their arguments; `openapi-ts` is that of `@hey-api/openapi-ts`."""

needs_python_client = pytest.mark.skipif(
    not PYTHON.exists(), reason="openapi-python-client is not installed: make .venv/clients"
)


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


@pytest.fixture(scope="module")
def typescript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code of each TypeScript generator, and the programs that use it, compiled together."""
    folder = tmp_path_factory.mktemp("typescript")
    (folder / "node_modules").symlink_to(node.FOLDER / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(DESCRIPTION, folder)
    for program in (node.FOLDER / "client.ts", *(node.FOLDER / "generated").iterdir()):
        shutil.copy(program, folder)
    strict = ["--strict", "--noUncheckedIndexedAccess", "--target", "es2022", "--module", "nodenext", "--skipLibCheck"]
    programs = sorted(each.name for each in folder.glob("*.ts"))

    for generator, arguments in GENERATORS.items():
        made = node.run(generator, *arguments, cwd=folder)
        assert made.returncode == 0, made.stdout + made.stderr
    checked = node.run("tsc", *strict, "--lib", "es2022,dom,dom.iterable", *programs, cwd=folder)

    assert (checked.returncode, checked.stdout) == (0, "")
    return folder


@pytest.fixture(scope="module")
def python_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `client` of openapi-python-client, and the program `minimal.py`, checked by mypy."""
    folder = tmp_path_factory.mktemp("python")
    generate = ["generate", "--fail-on-warning", "--meta", "none", "--output-path", "client", "--path"]

    # Only the program is checked: the generated package has type errors of its own.
    checks = ["--strict", "--follow-imports=silent", "--python-executable", str(PYTHON / "python")]
    (folder / "minimal.py").write_text(MINIMAL)

    made = run("openapi-python-client", *generate, DESCRIPTION, cwd=folder)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *checks, "minimal.py"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert made.returncode == 0, made.stdout + made.stderr
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
    return folder


@node.needs_node
@pytest.mark.parametrize("program", ["openapi-typescript", "hey-api", "orval"])
async def test_a_generated_typescript_client_records_the_minimal_body(
    origin: str, cast: Cast, typescript: Path, program: str
) -> None:
    patient_id = await cast.patient()

    ran = node.run("node", f"{program}.js", origin, patient_id, cwd=typescript)

    assert ran.returncode == 0, ran.stderr
    (row,) = await cast.rows(patient_id)
    assert json.loads(ran.stdout) == {"status": 201, "id": str(row["id"]), "metadata": {}}


@needs_python_client
async def test_a_generated_python_client_records_the_minimal_body(origin: str, cast: Cast, python_client: Path) -> None:
    patient_id = await cast.patient()

    ran = run("python", "-W", "error", "minimal.py", origin, patient_id, cwd=python_client)

    assert ran.returncode == 0, ran.stderr
    (row,) = await cast.rows(patient_id)
    assert json.loads(ran.stdout) == {"status": 201, "id": str(row["id"]), "metadata": {}}


@node.needs_node
async def test_a_generated_typescript_client_compiles_and_records(origin: str, cast: Cast, typescript: Path) -> None:
    patient_id = await cast.patient()

    ran = node.run("node", "client.js", origin, patient_id, cwd=typescript)

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


@needs_python_client
async def test_a_generated_python_client_records(origin: str, cast: Cast, python_client: Path) -> None:
    patient_id = await cast.patient()

    ran = run("python", "-W", "error", "-c", RECORD, origin, patient_id, cwd=python_client)

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
