"""The audits of GraphQL over HTTP of the npm package `graphql-http`."""

from typing import Any

import pytest

from tests.node import needs_node, run_node

pytestmark = needs_node


@pytest.fixture(scope="module")
async def audits(gateway_url: str) -> list[dict[str, Any]]:
    return await run_node("audits.mjs", f"{gateway_url}/graphql", "dev")


async def test_every_audit_passes_without_a_warning(audits: list[dict[str, Any]]) -> None:
    assert {f"{each['id']} {each['name']}": each["reason"] for each in audits if each["status"] != "ok"} == {}


async def test_all_61_audits_were_run(audits: list[dict[str, Any]]) -> None:
    """Fewer would mean that some were skipped; more, that a newer version has new audits."""
    assert len({each["id"] for each in audits}) == 61
