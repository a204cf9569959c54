"""The pages below a path, in Chromium, through nginx and Caddy with the examples of `deploy/`.

After each test: every request stayed below the path, and the console has no error.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.browser.test_pages import CHROMIUM, NODE
from tests.browser.test_pages import pytestmark as needs_chromium
from tests.deploy.test_proxies import CADDY, NGINX, caddy, nginx, running
from tests.deploy.test_proxies import pytestmark as needs_openssl
from tests.gateways import GENEROUS_LIMITS, Gateway, free_port

SCRIPT = Path(__file__).parent / "behind_a_path.test.js"
TESTS = re.findall(r"^  test\(`\$\{proxy\}: (.+?)`, ", SCRIPT.read_text(), re.MULTILINE)
PROXIES = {"nginx": nginx, "Caddy": caddy}

pytestmark = [
    *needs_chromium,
    needs_openssl,
    pytest.mark.skipif(not (NGINX and CADDY), reason="apt-get install nginx-light caddy"),
]


@pytest.fixture(scope="module")
async def results(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The results of all tests, which run in one browser, on one gateway behind two proxies."""
    # The public URL is that of nginx, which drops the port of `Host`. Caddy keeps it.
    ports = {name: free_port() for name in PROXIES}
    bases = {name: f"https://localhost:{port}/gateway" for name, port in ports.items()}
    settings = GENEROUS_LIMITS | {"GATEWAY_PUBLIC_URL": bases["nginx"]}
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), **settings).started()
    gateway_port = int(gateway.origin.rpartition(":")[2])
    try:
        async with AsyncExitStack() as stack:
            for name, proxy in PROXIES.items():
                example = partial(proxy, below_a_path=True)
                await stack.enter_async_context(
                    running(example, gateway_port, tmp_path_factory.mktemp(name), ports[name])
                )
            process = await asyncio.create_subprocess_exec(
                *(str(NODE), "--test", "--test-reporter=tap", str(SCRIPT)),
                env={**os.environ, "BASES": json.dumps(bases), "CHROMIUM": str(CHROMIUM)},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            yield (await process.communicate())[0].decode()
    finally:
        gateway.end()


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("proxy", PROXIES)
async def test_behind_a_path_in_chromium(proxy: str, name: str, results: str) -> None:
    assert re.search(rf"^ *ok \d+ - {re.escape(f'{proxy}: {name}')}$", results, re.MULTILINE), results
