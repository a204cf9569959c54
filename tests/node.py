"""Programs of Node's that drive a gateway: they lie in tests/javascript, and print as JSON what they saw."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "javascript"
SECONDS = 30.0
"""How long a program may take, on a machine that has other things to do."""

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (FOLDER / "node_modules").is_dir(),
    reason="Node or its packages are not installed: apt-get install nodejs npm && make .venv/javascript",
)


async def run_node(program: str, *arguments: str) -> Any:
    """Run a program of tests/javascript, and give what it printed."""
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
            printed, complained = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complained.decode()
    return json.loads(printed)
