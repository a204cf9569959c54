"""Subscriptions by the clients of the npm registry: graphql-ws over a socket, graphql-sse by server-sent events."""

from typing import Any

import pytest

from tests.cast import Cast
from tests.node import needs_node, run_node

pytestmark = needs_node

SEEN: dict[str, dict[str, Any]] = {}

both_clients = pytest.mark.parametrize("client", ["graphql-ws", "graphql-sse"])


@pytest.fixture
async def seen(client: str, gateway_url: str, cast: Cast) -> dict[str, Any]:
    """What a client saw when it recorded encounters of a patient and listened; it runs once for all tests."""
    if client not in SEEN:
        SEEN[client] = await run_node("events.mjs", client, f"{gateway_url}/graphql", await cast.patient())
    return SEEN[client]


@both_clients
async def test_what_is_recorded_while_a_client_listens_is_told_once_and_in_order(seen: dict[str, Any]) -> None:
    heard = [encounter_id for _, encounter_id, _ in seen["live"]]
    first = seen["recorded"].index(heard[0])

    assert heard == seen["recorded"][first : first + 3]
    assert {(kind, notes) for kind, _, notes in seen["live"]} == {("RECORDED", "Slept well.")}


@both_clients
async def test_from_a_cursor_on_a_client_is_told_what_it_missed(seen: dict[str, Any]) -> None:
    place = seen["recorded"].index(seen["live"][0][1])

    assert seen["missed"] == seen["recorded"][place + 1 :]
    assert len(seen["missed"]) >= 4


@both_clients
async def test_a_patient_nobody_sees_has_no_events_and_the_client_is_told_so(seen: dict[str, Any]) -> None:
    assert [each["extensions"]["code"] for each in seen["nobody"]["errors"]] == ["not_found"]
