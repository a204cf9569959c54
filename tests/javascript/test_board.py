"""The source of the board: its generated files are current, it compiles, and its scripts are small."""

import gzip
import json
import re
import shutil
from pathlib import Path

from gateway.pages import ASSETS
from gateway.pages import FOLDER as PAGES
from tests.http.test_pages import needs_pages
from tests.node import FOLDER, needs_node, run

ROOT = FOLDER.parent.parent
WEB = ROOT / "web"
BOARD = WEB / "src/board"
GENERATED = ["operations.ts", "hashes.json", "documents.json"]

MOST_BYTES = 150 * 1024


@needs_node
def test_the_generated_files_are_those_of_the_operations_and_the_schema(tmp_path: Path) -> None:
    made = run("node", FOLDER / "board.mjs", ROOT / "schema/schema.graphql", BOARD / "operations.graphql", tmp_path)

    assert made.returncode == 0, made.stderr
    assert {name: (BOARD / name).read_text() for name in GENERATED} == {
        name: (tmp_path / name).read_text() for name in GENERATED
    }


@needs_node
def test_the_source_compiles_with_the_types_of_its_packages(tmp_path: Path) -> None:
    shutil.copytree(WEB / "src", tmp_path / "src")
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")

    compiled = run("tsc", "--project", "src/board", cwd=tmp_path)

    assert (compiled.returncode, compiled.stdout) == (0, "")


def test_the_packages_of_the_board_have_the_versions_of_the_pages() -> None:
    of_pages, of_tests = (
        json.loads((folder / "package-lock.json").read_text())["packages"] for folder in (WEB, FOLDER)
    )
    imported = set(re.findall(r'from "([^."][^"]*)"', "".join(path.read_text() for path in BOARD.glob("*.ts*"))))
    packages = {"/".join(name.split("/")[: 2 if name.startswith("@") else 1]) for name in imported}

    assert {name: of_tests[f"node_modules/{name}"]["version"] for name in packages} == {
        name: of_pages[f"node_modules/{name}"]["version"] for name in packages
    }


@needs_pages
def test_the_compressed_scripts_are_within_the_limit() -> None:
    names = re.findall(r'/assets/([^"]+\.js)"', (PAGES / "board.html").read_text())

    assert names
    assert sum(len(gzip.compress((ASSETS / name).read_bytes(), 9)) for name in names) <= MOST_BYTES
