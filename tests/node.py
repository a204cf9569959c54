"""Programs of the npm registry that the tests run, as `make .venv/javascript` installs them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "javascript"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (FOLDER / "node_modules").exists(),
    reason="the clients of the npm registry are not installed: apt-get install nodejs npm, then make .venv/javascript",
)


def run(program: str, *words: str | Path, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    """Run a program that a package brought, or `node` itself."""
    brought = FOLDER / "node_modules/.bin" / program
    return subprocess.run(
        [brought if brought.exists() else program, *words],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"},
    )
