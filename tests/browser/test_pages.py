"""The pages in Chromium, driven by Playwright, on a gateway in its own process.

After each test: no request to another host, no violation of the policy, no token in a URL or in storage.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.pages import built
from tests.gateways import Gateway

CHROMIUM = shutil.which("chromium")
NODE = shutil.which("node")
SCRIPT = Path(__file__).parent / "pages.test.js"
PLAYWRIGHT = SCRIPT.parent.parent / "javascript" / "node_modules" / "playwright-core"
TESTS = re.findall(r'^test\("(.+?)", ', SCRIPT.read_text(), re.MULTILINE)
TESTS += [f"axe finds no fault on any page, wide and narrow ({scheme})" for scheme in ("light", "dark")]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
    pytest.mark.skipif(NODE is None or not PLAYWRIGHT.is_dir(), reason="needs Node 20 and then: make .venv/javascript"),
    pytest.mark.skipif(not built(), reason="the pages are not built: make pages"),
]


def run_in_chromium(script: Path, gateway: Gateway) -> str:
    """Run a script on a gateway that has been started, end the gateway, and return the Test Anything Protocol."""
    try:
        return subprocess.run(
            [str(NODE), "--test", "--test-reporter=tap", str(script)],
            env={**os.environ, "ORIGIN": gateway.origin, "CHROMIUM": str(CHROMIUM), "PYTHON": sys.executable},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout
    finally:
        gateway.end()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The results of all tests, which run in one browser, on one gateway."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), GATEWAY_RATE_WRITES_PER_MINUTE="0").started()
    return run_in_chromium(SCRIPT, gateway)


@pytest.mark.parametrize("name", TESTS)
def test_in_chromium(name: str, results: str) -> None:
    assert re.search(rf"^ *ok \d+ - {re.escape(name)}$", results, re.MULTILINE), results
