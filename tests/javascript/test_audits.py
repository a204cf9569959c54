"""GraphQL over HTTP as others understand it: the audits of the npm package `graphql-http`."""

from typing import Any

import pytest

from tests.node import needs_node, run_node

pytestmark = needs_node


@pytest.fixture(scope="module")
async def audits(gateway_url: str) -> list[dict[str, Any]]:
    return await run_node("audits.mjs", f"{gateway_url}/graphql", "dev")


async def test_every_audit_is_passed_and_none_with_a_warning(audits: list[dict[str, Any]]) -> None:
    assert {f"{each['id']} {each['name']}": each["reason"] for each in audits if each["status"] != "ok"} == {}


async def test_as_many_audits_were_made_as_there_are(audits: list[dict[str, Any]]) -> None:
    """Fewer would mean that the package left some out; more, that a newer one asks new questions."""
    assert len({each["id"] for each in audits}) == 61
