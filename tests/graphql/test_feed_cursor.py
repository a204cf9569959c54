"""`feedCursor`: encounters that a page does not show yet arrive through the feed from its cursor."""

import random
from contextlib import AsyncExitStack
from typing import Any

import pytest

from resolvers.commands import DEFAULT_LIMITS, RecordEncounter
from resolvers.encounters.record import columns_of, insert_encounter
from resolvers.outbox import FIND_MARK
from resolvers.patients import time_at
from tests.cast import Cast
from tests.conftest import fresh_database
from tests.controlled_schema import TOKENS
from tests.doors import Service
from tests.event_helpers import Gateway, OpenTransaction, cursor_v1, rows
from tests.graphql.test_subscriptions import EVENTS, REGISTER, OverStream, gateway_on, record
from tests.websocket_client import GatewayServer

LIST = """query ($first: Int) {
  patient(id: "a") { encounters(first: $first) { feedCursor nodes { id } } }
}"""


@pytest.fixture
async def url(server_url: str) -> str:
    url = await fresh_database(server_url)
    await rows(url, REGISTER)
    TOKENS.give("dev")
    return url


async def record_uncommitted(gateway: Gateway, patient_id: str) -> OpenTransaction:
    """Record an encounter completely, without committing yet."""
    stack = AsyncExitStack()
    connection = await stack.enter_async_context(gateway.app.transaction("loop"))
    command = RecordEncounter.read({"brand_id": "loop", "encounter_type": "lab"}, DEFAULT_LIMITS)
    columns = columns_of(command, patient_id)
    now = await time_at(connection, "loop", patient_id)
    assert now is not None
    await insert_encounter(gateway.context, connection, columns, now)
    return OpenTransaction(columns["id"], stack)


async def read_page(sockets: GatewayServer, **variables: Any) -> tuple[str, set[str]]:
    """Return the feed cursor of the patient's first page, and the ids of its encounters."""
    async with sockets.authenticated() as websocket:
        page = (await websocket.ask(LIST, **variables))["data"]["patient"]["encounters"]
    return page["feedCursor"], {node["id"] for node in page["nodes"]}


async def subscribe_until(sockets: GatewayServer, after: str, wanted: set[str]) -> list[str]:
    """Subscribe from a cursor until all wanted encounters have arrived; return the ids in order of arrival."""
    received: list[str] = []
    async with OverStream.follow(sockets, after=after) as listener:
        while not wanted <= set(received):
            received.append((await listener.event())["encounter"]["id"])
    return received


@pytest.mark.parametrize("seed", range(3))
async def test_encounters_missing_from_a_page_arrive_from_its_feed_cursor(url: str, seed: int) -> None:
    """Writers commit late and in any order; two gateways alternate in serving pages and subscriptions."""
    chance = random.Random(seed)
    recorded: set[str] = set()
    pages: list[tuple[str, set[str]]] = []
    async with Gateway.running(url) as writer, gateway_on(url) as one, gateway_on(url) as other:
        held: list[OpenTransaction] = []
        for number in range(12):
            held += [await record_uncommitted(writer, "a") for _ in range(3)]
            for _ in range(chance.randint(0, min(5, len(held))) if len(held) < 8 else 4):
                recorded.add(str(await held.pop(chance.randrange(len(held))).commit()))
            pages.append(await read_page((one, other)[number % 2], first=100))
        for each in held:
            recorded.add(str(await each.commit()))

        assert any(recorded - shown for _, shown in pages)
        for number, (cursor, shown) in enumerate(pages):
            received = await subscribe_until((other, one)[number % 2], cursor, recorded - shown)
            assert len(received) == len(set(received))


async def test_an_empty_page_has_a_valid_feed_cursor(url: str) -> None:
    async with gateway_on(url) as sockets:
        cursor, shown = await read_page(sockets, first=0)
        recorded = await record(sockets, "a")

        assert await subscribe_until(sockets, cursor, {recorded}) == [recorded]
    assert shown == set()


FIELDS = [
    "feedCursor nodes { id }",
    "nodes { id } feedCursor",
    "edges { node { id } } pageInfo { endCursor } ... { place: feedCursor }",
    "... on EncounterConnection { ...Followed } nodes { id }",
]


@pytest.mark.parametrize("fields", FIELDS)
async def test_the_feed_position_is_read_before_the_page(
    service: Service, cast: Cast, statements: list[str], fields: str
) -> None:
    patient_id = await cast.patient()
    # The same page without `feedCursor` may be read first. No plan serves `submission`: a plan reads both at once.
    query = f"""query ($id: ID!) {{
      early: patient(id: $id) {{ encounters(first: 7) {{ nodes {{ id }} }} }}
      late: patient(id: $id) {{ encounters(first: 7) {{ {fields} }} }}
      submission(key: "unused") {{ state }}
    }}
    {"fragment Followed on EncounterConnection { feedCursor }" if "Followed" in fields else ""}"""

    body = await service.graphql(query, {"id": patient_id})

    assert "errors" not in body
    pages = [number for number, text in enumerate(statements) if "LATERAL" in text]
    assert statements.index(FIND_MARK.text) < pages[-1]
    assert len(pages) == 2


async def test_without_feed_cursor_the_feed_position_is_not_read(
    service: Service, cast: Cast, statements: list[str]
) -> None:
    query = "query ($id: ID!) { patient(id: $id) { encounters { __typename nodes { id history { version } } } } }"

    await service.graphql(query, {"id": await cast.patient()})

    assert FIND_MARK.text not in statements


async def test_a_page_below_an_event_has_a_valid_feed_cursor(url: str) -> None:
    below = EVENTS.replace("patient { id }", "patient { encounters { feedCursor nodes { id } } }")
    async with gateway_on(url) as sockets:
        recorded = [await record(sockets, "a") for _ in range(3)]
        async with OverStream.follow(sockets, query=below, after=cursor_v1()) as listener:
            pages = [(await listener.event())["encounter"]["patient"]["encounters"] for _ in recorded]
        later = await record(sockets, "a")

        for page in pages:
            shown = {node["id"] for node in page["nodes"]}
            assert await subscribe_until(sockets, page["feedCursor"], {*recorded, later} - shown)
