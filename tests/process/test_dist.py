"""A release serves without its checkout: the wheel of `make dist`, which the source distribution builds again."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import httpx2
import pytest

from gateway.pages import ASSETS, ENCODINGS, FOLDER, built
from tests.gateways import DEV, PATH, ROOT, VISIT, Gateway

pytestmark = pytest.mark.skipif(not built(), reason="the pages are not built: make pages")

UV = ("sh", ROOT / ".ci" / "uv")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PAGES = {f"gateway/web/{path.relative_to(FOLDER)}" for path in FOLDER.rglob("*") if path.is_file()}


def run(*command: str | Path, folder: Path = ROOT, **variables: str) -> str:
    ran = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the source distribution, built without the prerequisites of `make dist`, which are installed."""
    folder = tmp_path_factory.mktemp("dist")
    run("make", "dist", "--old-file=.venv/dev", "--old-file=.venv/pages", f"ARGS=--directory {folder}")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has what `locks/runtime.txt` names, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    run(*UV, "venv", "--quiet", folder)
    run(*UV, "pip", "install", "--quiet", "--python", folder, "--require-hashes", "--requirement", "locks/runtime.txt")
    return folder


def test_a_wheel_serves_both_doors_and_the_pages_without_a_checkout(dist, environment: Path, tmp_path: Path) -> None:
    run(*UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", environment, dist["wheel"])

    class Installed(Gateway):
        command = (environment / "bin" / "gateway",)
        folder = tmp_path

    # Bytecode is written, as on a user's machine: without it each start compiles all packages.
    variables = {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": ""}
    one = Installed(tmp_path / "data", **variables).started()
    try:
        with httpx2.Client(base_url=one.origin, headers=DEV, timeout=30) as client:
            assert client.get("/readyz").status_code == 200
            for path, name in {"/": "index", "/board": "board", "/graphql": "explorer", "/docs": "docs"}.items():
                page = client.get(path, headers={"accept": "text/html"}).text
                assert _assets(page) == _assets((FOLDER / f"{name}.html").read_text()) != set()
            for asset in (each for each in ASSETS.iterdir() if each.suffix not in ENCODINGS.values()):
                assert client.get(f"/assets/{asset.name}").content == asset.read_bytes()
            assert client.get("/openapi.json").json() == json.loads((ROOT / "rest/openapi.json").read_text())
            recorded = client.post(PATH, json=VISIT)
            assert recorded.status_code == 201
            asked = {"query": f'{{ encounter(id: "{recorded.json()["id"]}") {{ notes }} }}'}
            answered = client.post("/graphql", json=asked).json()
            assert answered == {"data": {"encounter": {"notes": "Slept well."}}}
        assert one.stop() == 0
    finally:
        one.end()
    assert run(*Installed.command, "--version", folder=tmp_path, **variables) == f"gateway {VERSION}\n"


def _assets(page: str) -> set[str]:
    """Return the assets that a page loads first."""
    return set(re.findall(r'"(\./assets/[^"]+)"', page))


def test_the_wheel_contains_the_packages_and_the_pages(dist) -> None:
    names = set(zipfile.ZipFile(dist["wheel"]).namelist())

    assert names >= PAGES
    assert {name.split("/")[0] for name in names} == {
        "gateway", "schema", "resolvers", "rest", "models", f"encounter_gateway-{VERSION}.dist-info",
    }  # fmt: skip


def test_the_source_distribution_contains_what_git_tracks_and_the_pages(dist) -> None:
    with tarfile.open(dist["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    # A checkout that belongs to another user is refused without `safe.directory`.
    git = ("git", "-c", "safe.directory=*", "ls-files")
    new = run(*git, "--others", "--exclude-standard").splitlines()

    assert names - set(new) == {*run(*git).splitlines(), *PAGES, "PKG-INFO"}


def test_the_source_distribution_builds_the_same_wheel_without_node(dist, tmp_path: Path) -> None:
    run("tar", "-xzf", dist["sdist"], "-C", tmp_path)
    (unpacked,) = tmp_path.iterdir()

    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", folder=unpacked, PATH="")

    (wheel,) = (unpacked / "dist").iterdir()
    assert wheel.read_bytes() == dist["wheel"].read_bytes()
