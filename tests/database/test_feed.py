"""The feed: each event once, from any cursor, at any gateway, or an error with the reason."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from gateway.database.database import PoolConnection
from gateway.events import feed, notifier
from models import EncounterEventKind, EncounterType
from resolvers import feed as reading
from resolvers import json_text
from resolvers.commands import EventFilter
from resolvers.errors import InsufficientScope, InvalidInput, PatientNotFound, TemporarilyUnavailable
from resolvers.feed import FeedEvent, stream_events
from resolvers.outbox import Event
from resolvers.relay import move_watermark, prune_events, stamp_events
from tests.conftest import fresh_database
from tests.event_helpers import Gateway, Subscriber, cursor_v1, rows
from tests.waiting import DEADLINE_SECONDS, wait_until

BEGINNING = cursor_v1()
NOW = "2026-11-30T10:00:00Z"


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


@pytest.fixture
async def gateway(url: str) -> AsyncIterator[Gateway]:
    async with Gateway.running(url) as running:
        yield running


async def receive(gateway: Gateway, count: int, after: str | None = BEGINNING, **narrow: Any) -> list[FeedEvent]:
    """Subscribe until `count` events have arrived; return them."""
    subscriber = gateway.subscribe(after, **narrow)
    await wait_until(lambda: len(subscriber.events) >= count or subscriber.ended)
    await subscriber.stop()
    assert subscriber.ended is None
    return subscriber.events


async def refusal(gateway: Gateway, after: str | None = None, **narrow: str) -> BaseException:
    """Return the error that ends a subscription."""
    subscriber = gateway.subscribe(after, **narrow)
    await wait_until(lambda: subscriber.ended)
    assert subscriber.ended is not None
    return subscriber.ended


async def test_an_event_names_its_kind_and_encounter_and_nothing_clinical(gateway: Gateway) -> None:
    encounter_id = await gateway.record("patient")

    (event,) = await receive(gateway, 1)

    assert (event.encounter_id, event.patient_id, event.brand_id) == (encounter_id, "patient", "loop")
    assert event.event_type == "patient_graph.encounter.recorded.v1"
    assert set(FeedEvent.__slots__) == {
        "cursor", "id", "event_type", "kind", "encounter_id", "patient_id", "brand_id", "created_at", "at",
        "version", "actor_id", "reads",
    }  # fmt: skip


async def test_any_cursor_resumes_at_any_gateway_without_gap_or_repeat(
    gateway: Gateway, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH", 3)
    monkeypatch.setattr(feed, "BATCH", 3)
    for number in range(20):
        await gateway.record(f"patient-{number % 3}", "loop" if number % 4 else "loopbio")
    everything = await receive(gateway, 15)

    async with Gateway.running(url) as other:
        for number, event in enumerate(everything[:-1]):
            rest = await receive((gateway, other)[number % 2], 14 - number, event.cursor)
            assert rest == everything[number + 1 :]


async def test_a_cursor_may_be_ahead_of_the_reader_of_its_gateway(gateway: Gateway, url: str) -> None:
    async with Gateway.running(url) as other:
        first = await gateway.record("patient")
        (event,) = await receive(gateway, 1)
        # A subscriber starts the reader of the other gateway; resetting `_seen` puts it behind the cursor.
        held, seen = other.subscribe(BEGINNING), other.feed._seen
        await wait_until(lambda: held.encounters == [first])
        other.feed._seen = seen

        subscriber = other.subscribe(event.cursor)
        second = await gateway.record("patient")

        await wait_until(lambda: subscriber.events)
        assert subscriber.encounters == [second]
        for each in (held, subscriber):
            await each.stop()


async def test_a_subscriber_that_catches_up_during_writes_misses_nothing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH", 2)
    recorded = [await gateway.record("patient") for _ in range(20)]
    subscribers: list[Subscriber] = []
    for _ in range(40):
        subscribers.append(gateway.subscribe(BEGINNING))
        recorded.append(await gateway.record("patient"))

    await wait_until(lambda: all(len(subscriber.events) >= len(recorded) for subscriber in subscribers))

    for subscriber in subscribers:
        assert subscriber.encounters == recorded
        await subscriber.stop()


async def test_a_subscriber_that_joins_while_encounters_are_read_misses_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the reader read the events, no subscriber wanted the second one."""
    reading_encounters, go_on, read_encounters = asyncio.Event(), asyncio.Event(), feed.Feed._read_encounters

    async def held(self: feed.Feed, events: Sequence[Event]) -> None:
        reading_encounters.set()
        await go_on.wait()
        await read_encounters(self, events)

    monkeypatch.setattr(feed.Feed, "_read_encounters", held)
    async with Gateway.running(url, relays=False) as gateway:
        first = gateway.subscribe(BEGINNING, patient_id=await register(url, "first"))
        await wait_until(lambda: gateway.feed._followers)
        recorded = [await gateway.record("first"), await gateway.record("second")]
        await stamp_events(gateway.relay)
        await move_watermark(gateway.relay)
        await reading_encounters.wait()
        every = gateway.subscribe(BEGINNING)
        await wait_until(lambda: len(gateway.feed._followers) == 2)
        go_on.set()

        await wait_until(lambda: first.events and len(every.events) == 2)

        assert first.encounters == recorded[:1]
        assert every.encounters == recorded
        for each in (first, every):
            await each.stop()


async def register(url: str, patient_id: str) -> str:
    """Register a patient, and return the id."""
    await rows(url, "INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')", patient_id)
    return patient_id


async def test_a_filter_that_rarely_matches_is_read_in_parts_of_the_feed(
    gateway: Gateway, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH", 2)
    monkeypatch.setattr(reading, "MOST_POSITIONS", 5)
    recorded = [await gateway.record("rare" if number % 16 == 3 else "patient") for number in range(40)]
    await gateway.relayed(40)

    rare, every = (
        await receive(gateway, 3, patient_id=await register(url, "rare")),
        await receive(gateway, 40, kinds=[EncounterEventKind.RECORDED]),
    )

    assert [event.encounter_id for event in rare] == recorded[3::16]
    assert [event.encounter_id for event in every] == recorded


async def test_a_live_event_of_an_earlier_version_matches_every_provider(gateway: Gateway, url: str) -> None:
    """During an upgrade, gateways of the earlier version append events without providers, types and actor."""
    subscriber = gateway.subscribe(provider_id=[str(uuid4())], encounter_type=[EncounterType.LAB])
    await wait_until(lambda: gateway.feed._followers)
    encounter_id = uuid4()
    for kind in ("lab", "pharmacy", "lab"):
        payload = json_text.write({"encounter_id": str(encounter_id), "encounter_type": kind, "recorded_at": NOW})
        await rows(
            url,
            "INSERT INTO patient_graph.outbox (patient_id, id, brand_id, event_type, payload)"
            " VALUES ('patient', gen_random_uuid(), 'loop', 'patient_graph.encounter.recorded.v1', $1)",
            payload,
        )
    gateway.feed.notify()

    await wait_until(lambda: len(subscriber.events) == 2)

    assert {(event.version, event.actor_id) for event in subscriber.events} == {(1, None)}
    assert subscriber.encounters == [encounter_id] * 2
    await subscriber.stop()


async def test_events_that_arrive_while_catching_up_do_not_count_as_backlog(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "QUEUED_AT_MOST", 5)
    recorded = [await gateway.record("patient") for _ in range(2)]
    await gateway.relayed(2)
    stream = await stream_events(gateway.context, after=BEGINNING)
    caught_up = [(await anext(stream)).encounter_id]
    recorded += [await gateway.record("patient") for _ in range(20)]
    await gateway.relayed(22)

    caught_up += [(await anext(stream)).encounter_id for _ in recorded[1:]]

    assert caught_up == recorded
    await stream.aclose()


async def test_without_a_cursor_the_stream_begins_with_new_events(gateway: Gateway) -> None:
    await gateway.record("patient")
    await receive(gateway, 1)

    subscriber = gateway.subscribe()
    await wait_until(lambda: gateway.feed._followers)
    later = await gateway.record("patient")

    await wait_until(lambda: subscriber.events)
    assert subscriber.encounters == [later]
    await subscriber.stop()


async def test_events_of_other_brands_and_patients_are_not_sent(gateway: Gateway, url: str) -> None:
    await rows(url, "INSERT INTO patient_graph.patients (id, brand_id) VALUES ('one', 'loop'), ('one', 'loopbio')")
    theirs = gateway.subscribe(cursor_v1("loopbio"), brand_id="loopbio")
    of_patient_one = gateway.subscribe(BEGINNING, patient_id="one")
    wanted = []
    for _ in range(3):
        await gateway.record("two")
        await gateway.record("one", "loopbio")
        wanted.append(await gateway.record("one"))

    await wait_until(lambda: len(of_patient_one.events) == 3)

    assert of_patient_one.encounters == wanted
    assert [event.encounter_id for event in await receive(gateway, 3, patient_id="one")] == wanted
    await wait_until(lambda: len(theirs.events) == 3)
    assert {event.brand_id for event in theirs.events} == {"loopbio"}
    for subscriber in (theirs, of_patient_one):
        await subscriber.stop()


async def test_a_subscription_needs_the_read_scope(gateway: Gateway) -> None:
    without_scopes = replace(gateway.context, caller=replace(gateway.context.caller, scopes=frozenset()))

    with pytest.raises(InsufficientScope):
        await stream_events(without_scopes)


async def test_a_subscription_to_an_unknown_patient_is_refused(gateway: Gateway, url: str) -> None:
    patient_id = f"patient-{uuid4()}"
    await rows(url, "INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loopbio')", patient_id)

    assert isinstance(await refusal(gateway, patient_id=patient_id), PatientNotFound)


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "nonsense",
        "ünïcode",
        "AAAA",
        cursor_v1("loopbio"),
        cursor_v1("loop", -1),
        cursor_v1("loop", 99),
    ],
)
async def test_a_cursor_of_another_feed_is_refused(gateway: Gateway, cursor: str) -> None:
    await gateway.record("patient")

    assert isinstance(await refusal(gateway, cursor), InvalidInput)


async def test_a_cursor_older_than_the_retained_events_is_refused(gateway: Gateway, url: str) -> None:
    recorded = [await gateway.record("patient") for _ in range(5)]
    cursors = [event.cursor for event in await receive(gateway, 5)]
    await rows(url, "UPDATE patient_graph.outbox SET published_at = now() - '2 days'::interval WHERE position <= 3")
    await prune_events(gateway.relay, timedelta(days=1), [])

    error = await refusal(gateway, cursors[1])
    assert isinstance(error, InvalidInput)
    assert [violation.rule for violation in error.violations] == ["cursor_expired"]
    assert [event.encounter_id for event in await receive(gateway, 2, cursors[2])] == recorded[3:]


async def test_a_subscriber_whose_next_events_were_pruned_is_refused(
    gateway: Gateway, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH", 2)
    for _ in range(6):
        await gateway.record("patient")
    await receive(gateway, 6)
    stream = await stream_events(gateway.context, after=BEGINNING)
    await anext(stream)
    await rows(url, "UPDATE patient_graph.outbox SET published_at = now() - '2 days'::interval")
    await prune_events(gateway.relay, timedelta(days=1), [])

    await anext(stream)
    with pytest.raises(InvalidInput):
        await anext(stream)


async def test_a_lost_listen_connection_is_reopened(
    gateway: Gateway, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Polling is disabled, so each event arrives because of a notification.
    monkeypatch.setattr(feed, "POLL_SECONDS", 600)
    monkeypatch.setattr(notifier, "LONGEST_SILENCE_SECONDS", 600)
    monkeypatch.setattr(notifier, "RECONNECT_SECONDS", 0.01)

    async def has_reconnected(killed: set[int]) -> bool:
        return bool({row["pid"] for row in await rows(url, f"SELECT pid {listening}")} - killed)

    listening = "FROM pg_stat_activity WHERE application_name LIKE '%notifier' AND datname = current_database()"
    subscriber = gateway.subscribe()
    await wait_until(lambda: gateway.feed._followers)
    recorded = []
    for _ in range(3):
        recorded.append(await gateway.record("patient"))
        await wait_until(lambda: subscriber.encounters == recorded)

        killed = {row["pid"] for row in await rows(url, f"SELECT pid, pg_terminate_backend(pid) {listening}")}
        await wait_until(partial(has_reconnected, killed))
    await subscriber.stop()


async def test_a_reopened_listen_connection_reads_the_missed_events(
    gateway: Gateway, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Polling is disabled; the first gateway relays, and the second one has lost its LISTEN connection.
    monkeypatch.setattr(feed, "POLL_SECONDS", 600)
    monkeypatch.setattr(notifier, "RECONNECT_SECONDS", 1)
    await wait_until(lambda: rows(url, "SELECT FROM gateway.leases WHERE name = 'relay'"))
    async with Gateway.running(url) as other:
        subscriber = other.subscribe()
        await wait_until(lambda: other.feed._followers)
        listeners = (
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%notifier' AND datname = current_database()"
        )
        await wait_until(partial(count_is, url, listeners, 2))
        await rows(
            url, f"SELECT pg_terminate_backend(max(pid)) FROM ({listeners} ORDER BY backend_start DESC LIMIT 1) AS last"
        )
        recorded = [await gateway.record("patient")]
        await gateway.relayed(1)
        assert subscriber.events == []

        await wait_until(lambda: subscriber.encounters == recorded)
        await subscriber.stop()


async def count_is(url: str, query: str, count: int) -> bool:
    return len(await rows(url, query)) == count


async def test_without_a_listen_connection_events_arrive_by_polling(
    gateway: Gateway, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "RECONNECT_SECONDS", 600)
    subscriber = gateway.subscribe()
    await wait_until(lambda: gateway.feed._followers)
    await rows(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%notifier'"
        " AND datname = current_database()",
    )
    recorded = [await gateway.record("patient") for _ in range(3)]

    await wait_until(lambda: len(subscriber.events) == 3)

    assert subscriber.encounters == recorded
    await subscriber.stop()


async def test_a_subscription_survives_the_loss_of_every_connection(gateway: Gateway, url: str) -> None:
    subscriber = gateway.subscribe(BEGINNING)
    recorded = []
    for _ in range(3):
        recorded.append(await gateway.record("patient"))
        await wait_until(lambda: len(subscriber.events) == len(recorded))
        await rows(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        # Closed connections in the pool are detected when they are acquired next.
        await recover(gateway)
    assert subscriber.encounters == recorded
    await subscriber.stop()


async def recover(gateway: Gateway) -> None:
    """Return once the pools return working connections again."""
    async with asyncio.timeout(10):
        for database in (gateway.app, gateway.relay):
            while True:
                try:
                    await database.ping()
                except TemporarilyUnavailable:
                    continue
                break


async def test_a_slow_subscriber_alone_is_disconnected_and_may_resume(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "QUEUED_AT_MOST", 5)
    slow = await stream_events(gateway.context)
    quick = gateway.subscribe()
    waiting = asyncio.ensure_future(anext(slow))
    await wait_until(lambda: len(gateway.feed._followers.get(("loop", None), ())) == 2)
    recorded = []
    for _ in range(8):
        recorded.append(await gateway.record("patient"))
        await wait_until(lambda: len(quick.events) == len(recorded))

    first = await waiting
    with pytest.raises(TemporarilyUnavailable, match="last cursor"):
        await asyncio.wait_for(read_to_end(slow), DEADLINE_SECONDS)

    assert first.encounter_id == recorded[0]
    assert quick.encounters == recorded
    assert [event.encounter_id for event in await receive(gateway, 7, first.cursor)] == recorded[1:]
    await quick.stop()


async def read_to_end(stream: AsyncIterator[FeedEvent]) -> list[FeedEvent]:
    return [event async for event in stream]


async def test_shutdown_ends_subscriptions_with_an_error(url: str) -> None:
    async with Gateway.running(url) as gateway:
        subscriber = gateway.subscribe()
        await wait_until(lambda: gateway.feed._followers)

    await wait_until(lambda: subscriber.ended)
    assert isinstance(subscriber.ended, TemporarilyUnavailable)


async def test_shutdown_ends_a_subscription_whose_filter_matches_nothing(url: str) -> None:
    async with Gateway.running(url) as gateway:
        stream = await stream_events(gateway.context, filters=EventFilter(patient_id=()))
        waiting = asyncio.ensure_future(anext(stream))
        await wait_until(lambda: gateway.feed._followers)

    with pytest.raises(TemporarilyUnavailable):
        await waiting


async def test_subscribers_share_one_reader_and_none_reads_without_them(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    original = PoolConnection.fetch

    async def counted(self, statement, **values):
        sent.append(statement.text)
        return await original(self, statement, **values)

    async def count_reads(subscribers: list[Subscriber]) -> int:
        sent.clear()
        recorded = []
        for _ in range(3):
            recorded.append(await gateway.record("patient"))
            await wait_until(lambda: all(subscriber.encounters == recorded for subscriber in subscribers))
        return sum("payload" in text and text.startswith("SELECT") for text in sent)

    monkeypatch.setattr(PoolConnection, "fetch", counted)
    assert await count_reads([]) == 0
    await receive(gateway, 3)
    subscribers = [gateway.subscribe() for _ in range(20)]
    await wait_until(lambda: len(gateway.feed._followers.get(("loop", None), ())) == 20)
    assert await count_reads(subscribers) <= 2 * 3
    for subscriber in subscribers:
        await subscriber.stop()
    assert not gateway.feed._followers
