"""Erasure and the feed: cursors stay valid, the watermark moves on, and sinks get one event of the erasure."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway import erasing
from gateway.database.database import RELAY_ROLE, Database
from gateway.erasing import ErasureStopped, erase, rewrite
from resolvers.outbox import read_events
from resolvers.relay import relay, stamp_events
from tests.conftest import fresh_database
from tests.event_helpers import Gateway, cursor_v1, rows
from tests.waiting import wait_until

ERASED = "patient_graph.patient.erased.v1"


@pytest.fixture
async def url(server_url: str) -> str:
    url = await fresh_database(server_url)
    await rows(url, "INSERT INTO patient_graph.patients (id, brand_id) VALUES ('erased', 'loop'), ('other', 'loop')")
    return url


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """A connection of the relay."""
    database = await Database.connect(url, role=RELAY_ROLE, size=2, acquire_seconds=10, statement_seconds=20)
    yield database
    await database.close()


async def erase_patient(url: str) -> None:
    await erase(url, "erased", "loop", "privacy officer", lambda _: None)


async def test_every_cursor_before_during_and_after_erased_events_stays_valid(url: str) -> None:
    patients = ["erased", "other", "erased", "erased", "other", "erased"]
    async with Gateway.running(url) as gateway, Gateway.running(url) as another:
        recorded = [await gateway.record(patient) for patient in patients]
        live = gateway.subscribe(cursor_v1())
        await wait_until(lambda: len(live.events) == len(patients))

        await erase_patient(url)
        recorded.append(await another.record("other"))
        await wait_until(lambda: len(live.events) == len(patients) + 1)

        assert live.encounters == recorded
        kept = [
            encounter for patient, encounter in zip([*patients, "other"], recorded, strict=True) if patient == "other"
        ]
        for position in range(len(patients) + 1):
            expected = kept[patients[:position].count("other") :]
            resumed = another.subscribe(cursor_v1(position=position))
            await wait_until(lambda: len(resumed.events) >= len(expected) or resumed.ended)  # noqa: B023 - awaited here
            assert resumed.encounters == expected
            await resumed.stop()
        await live.stop()


@pytest.mark.parametrize("progress", ["without a position", "stamped", "published"])
async def test_the_watermark_moves_on_wherever_the_erased_events_were(
    url: str, database: Database, progress: str
) -> None:
    async with Gateway.running(url, relays=False) as gateway:
        for patient in ("other", "erased", "erased"):
            await gateway.record(patient)
        if progress == "stamped":
            await stamp_events(database)
        elif progress == "published":
            await relay(database)

        await erase_patient(url)
        await gateway.record("other")
        await relay(database)

    (mark,) = await rows(url, "SELECT stamped, position FROM gateway.watermark")
    (last,) = await rows(url, "SELECT max(position) AS position, count(*) AS events FROM patient_graph.outbox")
    assert mark["stamped"] == mark["position"] == last["position"]
    async with database.unscoped() as connection:
        events = await read_events(connection, 0, mark["position"], 10)
    assert [(event.patient_id, event.event_type.split(".")[1]) for event in events] == [
        ("other", "encounter"),
        ("erased", "patient"),
        ("other", "encounter"),
    ]


async def test_dead_letters_of_the_patient_are_erased_and_others_stay(url: str) -> None:
    await rows(
        url,
        """INSERT INTO patient_graph.dead_letters
        (patient_id, id, sink, brand_id, event_type, payload, created_at, position, reason)
        SELECT id, gen_random_uuid(), 'crm', brand_id, 'patient_graph.encounter.recorded.v1', '{}', now(), 1, 'status'
        FROM patient_graph.patients""",
    )

    await erase_patient(url)

    assert [row["patient_id"] for row in await rows(url, "SELECT patient_id FROM patient_graph.dead_letters")] == [
        "other"
    ]


async def test_a_second_erasure_appends_no_second_event_and_no_entry(url: str) -> None:
    await erase_patient(url)
    await erase_patient(url)

    (event,) = await rows(url, "SELECT event_type, payload FROM patient_graph.outbox")
    assert event["event_type"] == ERASED
    (entry,) = await rows(url, "SELECT event_type FROM patient_graph.audit_log")
    assert entry["event_type"] == "patient_graph.patient.erased"


async def test_files_are_not_rewritten_while_an_old_transaction_sees_the_rows(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "OLD_TRANSACTION_SECONDS", 0.2)
    reader = await asyncpg.connect(url)
    async with reader.transaction(isolation="repeatable_read"):
        assert await reader.fetchval("SELECT count(*) FROM patient_graph.patients") == 2

        await erase_patient(url)
        printed: list[str] = []
        with pytest.raises(ErasureStopped, match="may still see the deleted rows"):
            await rewrite(url, printed.append)

    assert printed == []
    await reader.close()


async def test_an_erasure_waits_no_longer_than_its_limit_for_the_relay(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gap before the stamped positions, as after a row that was deleted by hand."""
    monkeypatch.setattr(erasing, "RETRY_SECONDS", 0.2)
    await rows(url, "UPDATE gateway.watermark SET stamped = 1")

    with pytest.raises(ErasureStopped, match="events beyond the watermark are missing"):
        await erase_patient(url)

    assert len(await rows(url, "SELECT FROM patient_graph.patients")) == 2
