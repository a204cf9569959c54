"""Programs of the npm registry that the tests run; `make .venv/javascript` installs them."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "javascript"
SECONDS = 30.0
"""Timeout of a program on a busy machine."""

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (FOLDER / "node_modules").is_dir(),
    reason="Node or its packages are not installed: apt-get install nodejs npm && make .venv/javascript",
)


async def run_node(program: str, *arguments: str) -> Any:
    """Run a program of tests/javascript against a gateway, and return the JSON that it prints."""
    process = await asyncio.create_subprocess_exec(
        "node",
        program,
        *arguments,
        cwd=FOLDER,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SECONDS):
            printed, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return json.loads(printed)


def run(program: str, *arguments: str | Path, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    """Run a program of an npm package, or `node` itself."""
    installed = FOLDER / "node_modules/.bin" / program
    return subprocess.run(
        [installed if installed.exists() else program, *arguments],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"},
    )
