"""Conversion of calls between REST and GraphQL in the explorer: runs tests/javascript/conversion.test.js in Node.js."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
JAVASCRIPT = ROOT / "tests" / "javascript"
NODE = shutil.which("node")


@pytest.mark.skipif(
    NODE is None or not (JAVASCRIPT / "node_modules" / "graphql").is_dir(),
    reason="needs Node 20 and then: make .venv/javascript",
)
def test_a_call_is_converted_between_rest_and_graphql_and_back(tmp_path: Path) -> None:
    # Node.js looks for packages beside a file and in its parent folders, and web/ has none.
    shutil.copytree(ROOT / "web" / "src", tmp_path / "pages")
    shutil.copy(JAVASCRIPT / "conversion.test.js", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(JAVASCRIPT / "node_modules")

    ran = subprocess.run(
        [str(NODE), "--test", "--test-reporter=tap", "conversion.test.js"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stdout
    assert "# pass 64\n" in ran.stdout
