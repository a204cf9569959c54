"""Filters of `encounterEvents`, and the members of an event, in both forms of recording."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from gateway.database.database import PoolConnection
from gateway.events.feed import Feed, Follower
from resolvers.commands import EventFilter
from tests.conftest import fresh_database
from tests.controlled_schema import Tokens
from tests.event_helpers import cursor_v1, rows
from tests.graphql.test_subscriptions import (
    BEGINNING,
    REGISTER,
    Follow,
    OverStream,
    change,
    follow,
    gateway_on,
    record,
    serving,
    sockets,
)
from tests.waiting import wait_until
from tests.websocket_client import GatewayServer, WebSocketClient

__all__ = ["follow", "serving", "sockets"]

EVENTS = """subscription ($patientId: ID, $where: EventsFilter, $kinds: [EncounterEventKind!], $after: String) {
  encounterEvents(patientId: $patientId, where: $where, kinds: $kinds, after: $after) {
    cursor kind at version changedBy encounter { id }
  }
}"""
ONE, OTHER = str(uuid4()), str(uuid4())


@pytest.fixture
async def url(server_url: str) -> str:
    """A database of its own, with the patients `a` and `b`."""
    url = await fresh_database(server_url)
    await rows(url, REGISTER)
    return url


@pytest.fixture(params=[False, True], ids=["a server", "a cluster"])
async def alone(request: pytest.FixtureRequest, url: str, tokens: Tokens) -> AsyncIterator[GatewayServer]:
    """A gateway in either form of recording."""
    tokens.give("dev-loopbio", brand_id="loopbio")
    async with gateway_on(url, database_cluster=request.param) as sockets:
        yield sockets


async def write(sockets: GatewayServer) -> dict[str, str]:
    """Record and change encounters; return the names of the encounters that the tests use, by id."""
    lab = await record(sockets, "a", encounterType="LAB", providerId=ONE)
    call = await record(sockets, "b", encounterType="TELEHEALTH", providerId=OTHER)
    free = await record(sockets, "b", encounterType="LAB")
    await record(sockets, "a", token="dev-loopbio", brand_id="loopbio", providerId=ONE)
    await change(sockets, lab, "startEncounter(ID)")
    await change(sockets, lab, f'amendEncounter(ID, input: {{providerId: "{OTHER}"}})')
    await change(sockets, call, "amendEncounter(ID, input: {encounterType: OTHER})")
    await change(sockets, free, f'amendEncounter(ID, input: {{providerId: "{ONE}"}})')
    await change(sockets, lab, "amendEncounter(ID, input: {providerId: null})")
    # Every filter that can match matches one of these last events; an event too many would precede it.
    last = {}
    for patient_id in ("a", "b"):
        encounter_id = await record(sockets, patient_id, encounterType="LAB", providerId=ONE)
        last[encounter_id] = "last"
        await change(sockets, encounter_id, "startEncounter(ID)")
        await change(sockets, encounter_id, f'amendEncounter(ID, input: {{providerId: "{OTHER}"}})')
        await change(sockets, encounter_id, "amendEncounter(ID, input: {encounterType: TELEHEALTH})")
        await change(sockets, encounter_id, "amendEncounter(ID, input: {encounterType: OTHER})")
    return {lab: "lab", call: "call", free: "free"} | last


ALL = [
    "lab RECORDED", "call RECORDED", "free RECORDED", "lab STARTED", "lab AMENDED", "call AMENDED", "free AMENDED",
    "lab AMENDED",
]  # fmt: skip
FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ALL),
    ({"where": {}}, ALL),
    ({"where": {"patientId": ["a"]}}, ["lab RECORDED", "lab STARTED", "lab AMENDED", "lab AMENDED"]),
    ({"where": {"patientId": ["a", "b", "unknown"]}}, ALL),
    (
        {"patientId": "b", "where": {"patientId": ["a", "b"]}},
        ["call RECORDED", "free RECORDED", "call AMENDED", "free AMENDED"],
    ),
    ({"patientId": "b", "where": {"patientId": ["a"]}}, []),
    ({"where": {"encounterType": ["LAB"]}}, [each for each in ALL if "call" not in each]),
    # The amendment is sent for the type before it and for the type after it.
    ({"where": {"encounterType": ["TELEHEALTH"]}}, ["call RECORDED", "call AMENDED"]),
    ({"where": {"encounterType": ["OTHER", "PHARMACY"]}}, ["call AMENDED"]),
    # Likewise for the provider before and after. `free` had none before, `lab` has none after its last amendment.
    ({"where": {"providerId": [ONE]}}, ["lab RECORDED", "lab STARTED", "lab AMENDED", "free AMENDED"]),
    ({"where": {"providerId": [OTHER]}}, ["call RECORDED", "lab AMENDED", "call AMENDED", "lab AMENDED"]),
    ({"where": {"providerId": [ONE.upper(), OTHER], "patientId": ["b"], "encounterType": ["LAB"]}}, ["free AMENDED"]),
    ({"kinds": ["STARTED"]}, ["lab STARTED"]),
    (
        {"kinds": ["RECORDED", "AMENDED"], "where": {"providerId": [ONE]}},
        ["lab RECORDED", "lab AMENDED", "free AMENDED"],
    ),
    ({"kinds": []}, []),
    ({"where": {"encounterType": []}}, []),
    ({"where": {"providerId": [], "patientId": ["a"]}}, []),
    ({"where": {"patientId": []}}, []),
]
"""Variables of the subscription, and the events of `write` that it receives before the last ones."""


async def test_a_filter_selects_the_same_events_live_and_stored(alone: GatewayServer, followed: list[str]) -> None:
    async with alone.authenticated() as live, alone.authenticated() as stored:
        await start(live)
        await wait_until(lambda: len(followed) == len(FILTERS))
        names = await write(alone)
        received = await collect(live, names)
        await start(stored, after=BEGINNING)

        assert received == [expected for _, expected in FILTERS]
        assert await collect(stored, names) == received


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The brands of the subscriptions that have reached the live events."""
    follow, brands = Feed.follow, list[str]()

    def noted(self: Feed, brand_id: str, filters: EventFilter) -> AbstractContextManager[Follower]:
        brands.append(brand_id)
        return follow(self, brand_id, filters)

    monkeypatch.setattr(Feed, "follow", noted)
    return brands


async def start(websocket: WebSocketClient, **more: Any) -> None:
    """Start a subscription for each of `FILTERS`."""
    for number, (variables, _) in enumerate(FILTERS):
        await websocket.start(str(number), EVENTS, **variables, **more)


async def collect(websocket: WebSocketClient, names: dict[str, str]) -> list[list[str]]:
    """Return the events that each subscription receives before its first `last` event."""
    received: list[list[str]] = [[] for _ in FILTERS]
    unfinished = {number for number, (_, expected) in enumerate(FILTERS) if expected}
    while unfinished:
        message = await websocket.receive()
        assert message["type"] == "next", message
        number, event = int(message["id"]), message["payload"]["data"]["encounterEvents"]
        name = names[event["encounter"]["id"]]
        if name == "last":
            unfinished.discard(number)
        else:
            received[number].append(f"{name} {event['kind']}")
    return received


@pytest.mark.parametrize(
    ("variables", "pointer", "rule"),
    [
        ({"where": None}, "/where", "null"),
        ({"kinds": None}, "/kinds", "null"),
        ({"where": {"patientId": None}}, "/where/patientId", "null"),
        ({"where": {"encounterType": None}}, "/where/encounterType", "null"),
        ({"where": {"providerId": None}}, "/where/providerId", "null"),
        ({"where": {"providerId": ["7"]}}, "/where/providerId/0", "uuid"),
        ({"where": {"providerId": [ONE] * 101}}, "/where/providerId", "too_many"),
        ({"where": {"patientId": [str(number) for number in range(101)]}}, "/where/patientId", "too_many"),
        ({"where": {"encounterType": ["LAB"] * 101}}, "/where/encounterType", "too_many"),
        ({"where": {"patientId": ["a\0"]}}, "/where/patientId/0", "nul"),
    ],
)
async def test_a_filter_that_breaks_a_rule_is_refused_by_the_first_message(
    follow: Follow, sockets: GatewayServer, variables: dict[str, Any], pointer: str, rule: str
) -> None:
    async with follow(sockets, query=EVENTS, **variables) as listener:
        refusal = await listener.refusal()

    assert (refusal["code"], refusal["recorded"]) == ("validation_error", "no")
    (violation,) = refusal["violations"]
    assert (violation["pointer"], violation["rule"]) == (pointer, rule)
    if rule == "null":
        assert violation["message"] == "must not be null; leave it out instead"
    if rule == "too_many":
        assert violation["maximum"] == 100


# Members of an event


async def test_an_event_has_the_time_the_version_and_the_actor_of_the_change(alone: GatewayServer) -> None:
    encounter_id = await record(alone, "a")
    await change(alone, encounter_id, "startEncounter(ID)")
    await change(alone, encounter_id, 'amendEncounter(ID, input: {notes: "Slept well."})')
    query = EVENTS.replace("encounter { id }", "encounter { history { kind changedAt version changedBy } }")

    async with OverStream.follow(alone, query=query, after=BEGINNING) as listener:
        events = [await listener.event() for _ in range(3)]

    assert [event["version"] for event in events] == [1, 2, 3]
    for event, version in zip(events, events[0]["encounter"]["history"], strict=True):
        assert {"changedAt": event["at"]} | {name: event[name] for name in ("kind", "version", "changedBy")} == version


async def test_events_of_an_earlier_version_have_their_members_too(alone: GatewayServer, url: str) -> None:
    """They have no actor, no providers and no types. Their providers are unknown, so they match every provider."""
    names = await write(alone)
    # The relay has stamped all events, so that it does not update the same rows.
    await wait_until(partial(relayed, url))
    await rows(url, "UPDATE patient_graph.outbox SET actor_id = NULL, provider_ids = NULL, encounter_types = NULL")
    received = []
    for where in ({"providerId": [str(uuid4())]}, {"encounterType": ["TELEHEALTH"], "patientId": ["b"]}):
        async with OverStream.follow(alone, query=EVENTS, where=where, after=BEGINNING) as listener:
            received.append([await listener.event() for _ in range(8 if "providerId" in where else 2)])

    every, of_type = received
    assert [f"{names[event['encounter']['id']]} {event['kind']}" for event in every] == ALL
    assert {event["changedBy"] for event in every} == {"app"}
    assert [event["version"] for event in every] == [1, 1, 1, 2, 3, 2, 2, 4]
    # Of a change, only the type after it is known: `call` is of another type since its amendment.
    assert [names[event["encounter"]["id"]] for event in of_type] == ["call", "last"]
    assert of_type[1]["kind"] == "AMENDED"


async def relayed(url: str) -> bool:
    return not await rows(url, "SELECT FROM patient_graph.outbox WHERE position IS NULL")


# Events that no filter matches


async def test_an_event_that_no_filter_matches_costs_no_read_and_no_audit_entry(
    follow: Follow, alone: GatewayServer, url: str, followed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, sent = PoolConnection.fetch, list[str]()

    async def noted(self: PoolConnection, statement: Any, **values: Any) -> Any:
        sent.append(statement.text)
        return await fetch(self, statement, **values)

    audited = "SELECT patient_id FROM patient_graph.audit_log WHERE event_type = 'patient_graph.encounters.read'"
    filtered = {"query": EVENTS, "where": {"encounterType": ["PHARMACY"]}}
    async with follow(alone, **filtered) as live:
        await wait_until(lambda: followed)
        monkeypatch.setattr(PoolConnection, "fetch", noted)
        for _ in range(5):
            await record(alone, "b")
        async with follow(alone, **filtered, after=BEGINNING) as stored:
            await wait_until(lambda: len(followed) == 2)
            monkeypatch.setattr(PoolConnection, "fetch", fetch)
            wanted = await record(alone, "a", encounterType="PHARMACY")

            for listener in (live, stored):
                assert (await listener.event())["encounter"]["id"] == wanted
            await wait_until(lambda: rows(url, audited))

    assert {row["patient_id"] for row in await rows(url, audited)} == {"a"}
    assert not [text for text in sent if "FROM patient_graph.encounters" in text]


async def test_a_cursor_is_valid_with_another_filter(follow: Follow, alone: GatewayServer) -> None:
    recorded = [await record(alone, "a", encounterType=kind) for kind in ("LAB", "OTHER", "LAB", "OTHER")]
    async with follow(alone, query=EVENTS, where={"encounterType": ["LAB"]}, after=BEGINNING) as listener:
        cursor = (await listener.event())["cursor"]

    async with follow(alone, query=EVENTS, where={"encounterType": ["OTHER"]}, after=cursor) as listener:
        assert [(await listener.event())["encounter"]["id"] for _ in range(2)] == recorded[1::2]


async def test_a_filter_by_patient_shows_no_event_of_another_brand(follow: Follow, alone: GatewayServer) -> None:
    theirs = await record(alone, "a", token="dev-loopbio", brand_id="loopbio")
    ours = await record(alone, "a")

    for token, own in (("dev", ours), ("dev-loopbio", theirs)):
        beginning = cursor_v1("loop" if token == "dev" else "loopbio")
        async with follow(alone, token=token, query=EVENTS, where={"patientId": ["a"]}, after=beginning) as listener:
            assert (await listener.event())["encounter"]["id"] == own
