"""Subscriptions with JavaScript clients: graphql-ws over WebSocket, graphql-sse over server-sent events."""

from typing import Any

import pytest

from tests.cast import Cast
from tests.node import needs_node, run_node

pytestmark = needs_node

SEEN: dict[str, dict[str, Any]] = {}

both_clients = pytest.mark.parametrize("client", ["graphql-ws", "graphql-sse"])


@pytest.fixture
async def seen(client: str, gateway_url: str, cast: Cast) -> dict[str, Any]:
    """The results of a client that recorded encounters and subscribed; it runs once for all tests."""
    if client not in SEEN:
        SEEN[client] = await run_node("events.mjs", client, f"{gateway_url}/graphql", await cast.patient())
    return SEEN[client]


@both_clients
async def test_a_subscribed_client_gets_each_event_once_and_in_order(seen: dict[str, Any]) -> None:
    heard = [encounter_id for _, encounter_id, _ in seen["live"]]
    first = seen["recorded"].index(heard[0])

    assert heard == seen["recorded"][first : first + 3]
    assert {(kind, notes) for kind, _, notes in seen["live"]} == {("RECORDED", "Slept well.")}


@both_clients
async def test_a_client_gets_the_missed_events_from_a_cursor(seen: dict[str, Any]) -> None:
    place = seen["recorded"].index(seen["live"][0][1])

    assert seen["missed"] == seen["recorded"][place + 1 :]
    assert len(seen["missed"]) >= 4


@both_clients
async def test_a_subscription_to_an_unknown_patient_is_refused_for_a_client(seen: dict[str, Any]) -> None:
    assert [each["extensions"]["code"] for each in seen["unknown"]["errors"]] == ["not_found"]
