"""A router can compose the subgraph with others: by the npm package that Apollo's own tools compose with."""

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


async def test_it_composes_with_the_subgraph_that_owns_providers_and_nobody_has_a_remark(
    composed: dict[str, Any],
) -> None:
    assert (composed["errors"], composed["hints"]) == ([], [])
    assert "join__graph" in composed["supergraph"]


async def test_composed_an_encounter_leads_to_what_the_other_subgraph_knows_of_its_provider(
    composed: dict[str, Any],
) -> None:
    assert "provider: Provider" in composed["types"]["Encounter"]
    assert composed["types"]["Provider"] == ["id: ID!", "name: String!"]
    assert "_entities" not in str(composed["types"]["Query"])


async def test_alone_it_is_a_supergraph_too() -> None:
    composed = await compose(encounters=ENCOUNTERS)

    assert (composed["errors"], composed["hints"]) == ([], [])


async def test_a_neighbour_that_contradicts_it_is_refused(tmp_path: Path) -> None:
    """So the judge does judge."""
    (tmp_path / "contrary.graphql").write_text(PROVIDERS.read_text() + "\ntype Encounter { id: ID! status: Int! }")

    composed = await compose(encounters=ENCOUNTERS, providers=tmp_path / "contrary.graphql")

    assert any("Encounter.status" in each for each in composed["errors"])
