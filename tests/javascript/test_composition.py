"""Composition of the subgraph with others, by the npm package of Apollo's tools."""

from pathlib import Path
from typing import Any

import pytest

from tests.node import FOLDER, needs_node, run_node

pytestmark = needs_node

ENCOUNTERS = FOLDER.parent.parent / "schema/federated.graphql"
PROVIDERS = FOLDER / "providers.graphql"


async def compose(**subgraphs: Path) -> dict[str, Any]:
    return await run_node("compose.mjs", *(f"{name}={path}" for name, path in subgraphs.items()))


@pytest.fixture(scope="module")
async def composed() -> dict[str, Any]:
    return await compose(encounters=ENCOUNTERS, providers=PROVIDERS)


async def test_the_subgraph_composes_with_that_of_providers_without_hints(
    composed: dict[str, Any],
) -> None:
    assert (composed["errors"], composed["hints"]) == ([], [])
    assert "join__graph" in composed["supergraph"]


async def test_in_the_supergraph_an_encounter_has_its_providers_fields(
    composed: dict[str, Any],
) -> None:
    assert "provider: Provider" in composed["types"]["Encounter"]
    assert composed["types"]["Provider"] == ["id: ID!", "name: String!"]
    assert "_entities" not in str(composed["types"]["Query"])


async def test_the_subgraph_alone_composes_to_a_supergraph() -> None:
    composed = await compose(encounters=ENCOUNTERS)

    assert (composed["errors"], composed["hints"]) == ([], [])


async def test_a_conflicting_subgraph_is_refused(tmp_path: Path) -> None:
    """Shows that the composition detects conflicts."""
    (tmp_path / "conflicting.graphql").write_text(PROVIDERS.read_text() + "\ntype Encounter { id: ID! status: Int! }")

    composed = await compose(encounters=ENCOUNTERS, providers=tmp_path / "conflicting.graphql")

    assert any("Encounter.status" in each for each in composed["errors"])
