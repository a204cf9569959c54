"""The build of the pages: once per content of web/, skipped without npm."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# Replacements of Node and npm, so that these tests need no registry: a built page lists its sources.
NODE = """#!/bin/sh
[ "$1" = --version ] && echo v24.1.0 && exit
echo "$@" >> "$0.log"
mkdir -p dist/assets && ls src > dist/index.html
"""
NPM = """#!/bin/sh
mkdir node_modules
"""
BROKEN_NPM = """#!/bin/sh
echo "the registry cannot be reached" >&2
exit 1
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources of the pages."""
    shutil.copytree(ROOT / "web", tmp_path / "web", ignore=shutil.ignore_patterns("node_modules", "dist"))
    (tmp_path / "gateway").mkdir()
    return tmp_path


@pytest.fixture
def build(checkout: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(npm: str = NPM) -> subprocess.CompletedProcess[str]:
        programs = checkout / "bin"
        programs.mkdir(exist_ok=True)
        for name, script in {"npm": npm, "node": NODE}.items():
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        return subprocess.run(
            [sys.executable, checkout / "web" / "build.py"],
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
            check=False,
            capture_output=True,
            text=True,
        )

    return run


def builds(checkout: Path) -> int:
    return len((checkout / "bin" / "node.log").read_text().splitlines())


def test_the_pages_are_rebuilt_only_when_their_sources_have_changed(checkout: Path, build) -> None:
    for _ in range(2):
        assert build().returncode == 0
        assert builds(checkout) == 1

    (checkout / "web" / "src" / "new.js").write_text("// new")
    build()

    assert builds(checkout) == 2
    assert "new.js" in (checkout / "gateway" / "web" / "index.html").read_text()
    assert not (checkout / "web" / "node_modules").exists()


def test_without_npm_the_installation_succeeds_with_a_message(checkout: Path, build) -> None:
    ran = build(BROKEN_NPM)

    assert ran.returncode == 0
    assert "the gateway runs without them" in ran.stderr
    assert "the registry cannot be reached" in ran.stderr
    assert not (checkout / "gateway" / "web").exists()


def test_stale_pages_that_cannot_be_rebuilt_are_removed(checkout: Path, build) -> None:
    build()
    (checkout / "web" / "src" / "new.js").write_text("// new")

    build(BROKEN_NPM)

    assert not (checkout / "gateway" / "web").exists()


def test_no_npm_lock_names_a_host() -> None:
    for lock in (ROOT / "web", ROOT / "tests" / "javascript"):
        assert '"resolved"' not in (lock / "package-lock.json").read_text()
