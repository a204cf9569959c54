"""The board in Chromium, driven by Playwright, on a gateway that enforces trusted documents.

After each test: no request to another host, no violation of the policy, an empty outbox, nothing else stored.
"""

import json
import re
from pathlib import Path

import pytest

from tests.browser.test_pages import pytestmark, run_in_chromium  # noqa: F401 - the same conditions
from tests.gateways import GENEROUS_LIMITS, Gateway

SCRIPT = Path(__file__).parent / "board.test.js"
TESTS = re.findall(r'^test\("(.+?)", ', SCRIPT.read_text(), re.MULTILINE)
TESTS += [f"axe finds nothing on the board and its dialogs ({scheme})" for scheme in ("light", "dark")]

SEEDS = {
    "register": "mutation ($id: ID!, $externalIds: JSON) { registerPatient("
    'input: {id: $id, brandId: "loop", externalIds: $externalIds}) { __typename } }',
    "cancel": "mutation ($id: ID!) { cancelEncounter(id: $id) { __typename } }",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The results of all tests, which run in one browser, on one gateway."""
    manifest = tmp_path_factory.mktemp("documents") / "seeds.json"
    manifest.write_text(json.dumps(SEEDS))
    settings = {"GATEWAY_DOCUMENTS": str(manifest), "GATEWAY_DOCUMENTS_POLICY": "enforce"}
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), **GENEROUS_LIMITS, **settings).started()
    return run_in_chromium(SCRIPT, gateway)


@pytest.mark.parametrize("name", TESTS)
def test_the_board_in_chromium(name: str, results: str) -> None:
    assert re.search(rf"^ *ok \d+ - {re.escape(name)}$", results, re.MULTILINE), results
