"""A list and the events after its `feedCursor`: together they show every change, and no change twice.

Writers commit late and in any order. Two gateways of one database serve the lists and the subscriptions.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import asyncpg
import pytest

from gateway.database.database import Database, PoolConnection
from models import EncounterAction
from resolvers import feed as reading
from resolvers.context import Context
from resolvers.encounters.lifecycle import change_encounter
from resolvers.encounters.record import record_encounter, require_recorder
from tests.conftest import fresh_database
from tests.controlled_schema import TOKENS
from tests.event_helpers import Gateway, rows
from tests.graphql.test_subscriptions import RECORD, gateway_on
from tests.waiting import wait_until
from tests.websocket_client import GatewayServer, WebSocketClient

ROUNDS = 5
PATIENTS = ["a", "b", "c"]
PROVIDERS = [f"00000000-0000-4000-8000-00000000000{number}" for number in range(3)]
TYPES = ["LAB", "TELEHEALTH", "OTHER"]

FILTERS: list[dict[str, Any]] = [
    {},
    {"patientId": "a"},
    {"where": {"patientId": ["a", "b"]}},
    {"where": {"encounterType": ["LAB"]}},
    {"where": {"encounterType": ["LAB", "TELEHEALTH"], "providerId": PROVIDERS[:1]}},
    {"where": {"providerId": PROVIDERS[:1]}},
    {"where": {"providerId": PROVIDERS[1:], "patientId": ["b"]}},
    {"where": {"encounterType": ["PHARMACY"]}},
    {"kinds": ["RECORDED"]},
    {"kinds": ["STARTED", "AMENDED"], "where": {"encounterType": ["LAB"]}},
]
"""The variables of ten subscriptions. The eighth matches nothing."""

MEMBERS = "id version patientId encounterType providerId createdAt"
WORKLIST = f"""query ($where: EncountersFilter) {{
  encounters(first: 100, where: $where) {{ feedCursor nodes {{ {MEMBERS} }} }}
}}"""
PAGES = f"""query ($ids: [ID!]!) {{
  patients(ids: $ids) {{ encounters(first: 100) {{ feedCursor nodes {{ {MEMBERS} }} }} }}
}}"""
EVENTS = f"""subscription ($patientId: ID, $where: EventsFilter, $kinds: [EncounterEventKind!], $after: String) {{
  encounterEvents(patientId: $patientId, where: $where, kinds: $kinds, after: $after) {{
    cursor kind version encounter {{ {MEMBERS} }}
  }}
}}"""


# Late commits


class HeldDatabase:
    """A database whose transactions stay open after their last statement until `release` is set."""

    def __init__(self, database: Database) -> None:
        self.has_run = asyncio.Event()
        self.release = asyncio.Event()
        self._database = database

    def connection(self, brand_id: str) -> AbstractAsyncContextManager[PoolConnection]:
        return self._database.connection(brand_id)

    @asynccontextmanager
    async def transaction(self, brand_id: str) -> AsyncIterator[PoolConnection]:
        async with self._database.transaction(brand_id) as connection:
            yield connection
            self.has_run.set()
            await self.release.wait()


class Held(NamedTuple):
    """A change whose transaction is open."""

    database: HeldDatabase
    task: asyncio.Task[Any]
    encounter_id: str | None
    """The encounter whose row it locks; None for a recording."""

    async def commit(self) -> str:
        """Commit, and return the encounter's id."""
        self.database.release.set()
        done = await self.task
        return str(getattr(done, "encounter", done).id)


class Writer:
    """Records and changes encounters at random, with several transactions open at any time."""

    def __init__(self, gateway: Gateway, clients: list[WebSocketClient], chance: random.Random) -> None:
        self._gateway = gateway
        self._clients = clients
        self._chance = chance
        self._committed: list[str] = []
        self.held: list[Held] = []

    async def write(self) -> None:
        """Open some transactions, and commit some of those that are open; one of them stays open for long."""
        for _ in range(3):
            self.held.append(await self._begin())
        for client in self._clients:
            kind, provider_id = self._chance.choice(TYPES), self._chance.choice(PROVIDERS)
            patient_id = self._chance.choice(PATIENTS)
            self._committed.append(await self.record(client, patient_id, encounterType=kind, providerId=provider_id))
        while len(self.held) > 6:
            # Never the first one, which stays open while all others commit.
            await self._commit(self._chance.randrange(1, len(self.held)))

    async def finish(self) -> None:
        """Commit the open transactions, the oldest first."""
        while self.held:
            await self._commit(0)

    async def record(self, client: WebSocketClient, patient_id: str, **members: Any) -> str:
        """Record an encounter through a gateway; return its id."""
        body = await client.ask(RECORD, patientId=patient_id, input={"brandId": "loop"} | members)
        encounter_id: str = body["data"]["recordEncounter"]["encounter"]["id"]
        return encounter_id

    async def change(self, encounter_id: str, action: EncounterAction, **members: Any) -> None:
        """Change an encounter and commit."""
        held = await self._hold(lambda context: change_encounter(context, encounter_id, action, members))
        await held.commit()

    async def _commit(self, number: int) -> None:
        encounter_id = await self.held.pop(number).commit()
        if encounter_id not in self._committed:
            self._committed.append(encounter_id)

    async def _begin(self) -> Held:
        locked = {held.encounter_id for held in self.held}
        free = [each for each in self._committed if each not in locked]
        if not free or self._chance.random() < 0.3:
            patient_id = self._chance.choice(PATIENTS)
            columns = {
                "brand_id": "loop",
                "encounter_type": self._chance.choice(TYPES).lower(),
                "provider_id": self._chance.choice(PROVIDERS),
            }
            return await self._hold(lambda context: record_encounter(require_recorder(context), patient_id, columns))
        encounter_id = self._chance.choice(free)
        members: dict[str, Any] = self._chance.choice(
            [{"provider_id": each} for each in (None, *PROVIDERS)]
            + [{"encounter_type": each.lower()} for each in TYPES]
        )
        return await self._hold(
            lambda context: change_encounter(context, encounter_id, EncounterAction.AMEND, members), encounter_id
        )

    async def _hold(self, change: Callable[[Context], Awaitable[Any]], encounter_id: str | None = None) -> Held:
        # Of the interface, only what these changes use is implemented.
        database: Any = HeldDatabase(self._gateway.app)
        context = self._gateway.context
        context = replace(
            context,
            caller=replace(context.caller, scopes=frozenset({"admin:patient_graph"})),
            services=replace(context.services, database=database),
        )
        held = Held(database, asyncio.ensure_future(change(context)), encounter_id)
        waiting = asyncio.create_task(database.has_run.wait())
        await asyncio.wait({held.task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if held.task.done():
            waiting.cancel()
            held.task.result()
        return held


# Subscribers


def matches(variables: dict[str, Any], *states: dict[str, Any]) -> bool:
    """Whether a subscription's filter by patient, type and provider matches any of an encounter's states."""
    where = variables.get("where", {})
    return (
        variables.get("patientId") in {None, states[0]["patientId"]}
        and states[0]["patientId"] in where.get("patientId", PATIENTS)
        and all(
            name not in where or any(state[name] in where[name] for state in states)
            for name in ("encounterType", "providerId")
        )
    )


@dataclass
class Board:
    """One subscriber: a list that it read, and the events that it received after the list's cursor."""

    variables: dict[str, Any]
    shown: dict[str, int]
    """The versions of all encounters when the list had been read."""
    newest: str
    """The greatest time of recording on the list."""
    picture: dict[str, dict[str, Any]]
    """The encounters that match the filter, as the subscriber knows them."""
    received: list[tuple[str, int]] = field(default_factory=list)
    """Encounter and version of each event."""
    cursors: set[str] = field(default_factory=set)
    late: int = 0
    """Events of encounters that the list would have shown if they had been committed in the order of their times."""

    def receive(self, event: dict[str, Any]) -> None:
        """Apply an event to the picture."""
        encounter = event["encounter"]
        assert event["cursor"] not in self.cursors
        self.cursors.add(event["cursor"])
        self.received.append((encounter["id"], event["version"]))
        self.late += encounter["id"] not in self.shown and encounter["createdAt"] < self.newest
        self.picture.pop(encounter["id"], None)
        if matches(self.variables, encounter):
            self.picture[encounter["id"]] = encounter

    def lacks(self, changes: list["Change"]) -> set[tuple[str, int]]:
        """Return the changes that the filter matches, made after the list was read, and that no event has shown."""
        return {
            each.key for each in self.expected(changes) if each.version > self.shown.get(each.encounter_id, 0)
        } - set(self.received)

    def expected(self, changes: list["Change"]) -> list["Change"]:
        """Return the changes that the filter matches."""
        return [
            each
            for each in changes
            if each.kind in self.variables.get("kinds", [each.kind])
            and matches(self.variables, each.after, each.before)
        ]


async def open_boards(lists: WebSocketClient, events: WebSocketClient, boards: list[Board]) -> None:
    """Append a subscriber for each filter: read a list at one gateway, and subscribe after its cursor at another.

    A filter of kinds has no list of its own, so its subscriber reads the pages of the patients.
    """
    for number, variables in enumerate(FILTERS):
        where = variables.get("where", {})
        if "patientId" in variables:
            where = {"patientId": [variables["patientId"]]}
        worklist = None
        if "kinds" not in variables:
            worklist = (await lists.ask(WORKLIST, where=where))["data"]["encounters"]
        # Without a filter, and read later: which versions the subscriber need not receive.
        pages = [each["encounters"] for each in (await lists.ask(PAGES, ids=PATIENTS))["data"]["patients"]]
        versions = {node["id"]: node["version"] for page in pages for node in page["nodes"]}
        followed = worklist or pages[0]
        picture = {node["id"]: node for node in followed["nodes"]}
        newest = max((node["createdAt"] for node in followed["nodes"]), default="")
        boards.append(Board(variables, versions, newest, picture))
        await events.start(str(number), EVENTS, after=followed["feedCursor"], **variables)


async def listen(events: WebSocketClient, boards: list[Board]) -> None:
    """Pass the messages of a connection to its subscribers."""
    async for text in events.connection:
        message = json.loads(text)
        assert message["type"] == "next", message
        boards[int(message["id"])].receive(message["payload"]["data"]["encounterEvents"])


# The tables


class Change(NamedTuple):
    """A version of an encounter, with the members that filters compare before and after it."""

    encounter_id: str
    version: int
    kind: str
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def key(self) -> tuple[str, int]:
        return self.encounter_id, self.version


def shown(row: asyncpg.Record) -> dict[str, Any]:
    """Return an encounter's row as GraphQL shows it."""
    return {
        "id": str(row["id"]),
        "version": row["version"],
        "patientId": row["patient_id"],
        "encounterType": row["encounter_type"].upper(),
        "providerId": row["provider_id"] and str(row["provider_id"]),
    }


async def read_tables(url: str) -> tuple[dict[str, dict[str, Any]], list[Change]]:
    """Return the encounters as stored, and all of their changes."""
    encounters = {each["id"]: each for each in map(shown, await rows(url, "SELECT * FROM patient_graph.encounters"))}
    states = dict(encounters)
    changes = []
    # From the current state backwards.
    for row in await rows(url, "SELECT * FROM patient_graph.encounter_versions ORDER BY encounter_id, version DESC"):
        changed, encounter_id = json.loads(row["changes"]), str(row["encounter_id"])
        after = states[encounter_id]
        before = dict(after)
        if "encounter_type" in changed:
            before["encounterType"] = changed["encounter_type"]["before"].upper()
        if "provider_id" in changed:
            before["providerId"] = changed["provider_id"]["before"]
        states[encounter_id] = before
        changes.append(Change(encounter_id, row["version"], row["kind"].upper(), before, after))
    return encounters, changes


# The test


@pytest.fixture
async def url(server_url: str) -> str:
    url = await fresh_database(server_url)
    for patient_id in PATIENTS:
        await rows(url, "INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')", patient_id)
    TOKENS.give("dev")
    return url


@asynccontextmanager
async def clients_of(gateways: list[GatewayServer]) -> AsyncIterator[list[WebSocketClient]]:
    """Open a connection to each gateway."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(each.authenticated()) for each in gateways]


@pytest.mark.parametrize("seed", range(2))
async def test_fifty_subscribers_of_ten_filters_miss_nothing_and_repeat_nothing(
    url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small, so that reading the stored events takes several statements.
    monkeypatch.setattr(reading, "BATCH", 3)
    monkeypatch.setattr(reading, "MOST_POSITIONS", 10)
    boards: list[Board] = []
    async with (
        gateway_on(url) as one,
        gateway_on(url) as other,
        Gateway.running(url) as late,
        clients_of([one, other]) as clients,
        clients_of([one, other]) as lists,
        AsyncExitStack() as stack,
    ):
        writer = Writer(late, clients, random.Random(seed))
        for number in range(ROUNDS):
            await writer.write()
            events = await stack.enter_async_context((other, one)[number % 2].authenticated())
            opened: list[Board] = []
            listening = asyncio.create_task(listen(events, opened))
            stack.callback(listening.cancel)
            await asyncio.gather(open_boards(lists[number % 2], events, opened), writer.write())
            boards += opened
        await writer.finish()
        # Last changes, which every filter matches that can match: an event too many would precede them.
        for patient_id in PATIENTS:
            last = await writer.record(clients[0], patient_id, encounterType="LAB", providerId=PROVIDERS[0])
            await writer.change(last, EncounterAction.AMEND, provider_id=PROVIDERS[1])

        encounters, changes = await read_tables(url)
        await wait_until(lambda: not any(board.lacks(changes) for board in boards))

    assert len(boards) == 50
    for board in boards:
        expected = [each.key for each in board.expected(changes)]
        assert len(board.received) == len(set(board.received))
        assert set(board.received) <= set(expected)
        by_encounter = sorted(board.received, key=lambda key: key[0])
        assert by_encounter == sorted(by_encounter), "the versions of an encounter arrive in order"
        if "kinds" not in board.variables:
            picture = {each["id"]: each | {"createdAt": None} for each in board.picture.values()}
            assert picture == {
                each["id"]: each | {"createdAt": None} for each in encounters.values() if matches(board.variables, each)
            }
    # Otherwise the test would not show that late commits are found.
    assert any(board.late for board in boards)
