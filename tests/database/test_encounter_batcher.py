"""Concurrent recordings share a statement but not its failures, locks or order."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.database.database import APP_ROLE, Database, PoolConnection
from models import MEMBERS, EncounterStatus, EncounterType
from resolvers.batcher import MAX_BATCH_SIZE
from resolvers.encounters.batcher import MAX_IN_FLIGHT, EncounterBatcher
from resolvers.encounters.published import published
from resolvers.encounters.record import recorded
from resolvers.errors import TemporarilyUnavailable
from resolvers.ids import new_id
from resolvers.services import Insertion, NewEncounter
from resolvers.sql import Statement
from tests import citus
from tests.cast import Cast
from tests.waiting import wait_until

# A cluster has no shared statements.
pytestmark = pytest.mark.one_server


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.connect(database_url, role=APP_ROLE, size=4, acquire_seconds=30, statement_seconds=30)
    yield opened
    await opened.close()


@pytest.fixture
def batcher(database: Database) -> EncounterBatcher:
    return EncounterBatcher(database, timedelta(days=7), queue_timeout=30)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of recordings in each statement."""
    sent: list[int] = []
    original = PoolConnection.fetch

    async def counted(self, statement, **values):
        if "WITH sent AS" in statement.text:
            sent.append(len(json.loads(values["sent"])) if "sent" in values else 1)
        return await original(self, statement, **values)

    monkeypatch.setattr(PoolConnection, "fetch", counted)
    return sent


def new(patient_id: str, **other: Any) -> NewEncounter:
    """Return a recording with default values for all columns that are not given."""
    key = other.get("key")
    columns: dict[str, Any] = dict.fromkeys(MEMBERS.keys() - {"created_at", "updated_at"}) | {
        "patient_id": patient_id, "id": new_id(), "brand_id": "loop", "encounter_type": EncounterType.LAB,
        "status": EncounterStatus.SCHEDULED, "metadata": "{}", "external_ids": "{}", "version": 1,
    }  # fmt: skip
    columns |= {name: other.pop(name) for name in columns.keys() & other.keys()}
    rest: dict[str, Any] = {
        "entry_id": new_id(), "event_id": new_id(), "actor_type": "service", "actor_id": "lab",
        "actor_brand_id": "loop", "request_id": "a-test", "client_id": "lab", "key": None,
        "request_hash": b"" if key else None,
    }  # fmt: skip
    return NewEncounter(columns, **rest | other)


async def test_a_single_recording_is_sent_alone(batcher: EncounterBatcher, cast: Cast, sizes: list[int]) -> None:
    patient_id = await cast.patient()

    for _ in range(3):
        await batcher.insert("loop", new(patient_id))

    assert sizes == [1, 1, 1]


async def test_concurrent_recordings_share_statements_and_are_complete(
    batcher: EncounterBatcher, cast: Cast, sizes: list[int]
) -> None:
    patients = [await cast.patient() for _ in range(5)]
    news = [new(patients[number % 5], notes=f"Note {number}.", key=str(uuid4())) for number in range(200)]

    kept = await asyncio.gather(*(batcher.insert("loop", each) for each in news))

    assert all(each.patient_is_known and each.created_at for each in kept)
    assert sum(sizes) == 200
    assert max(sizes) == MAX_BATCH_SIZE
    assert len(sizes) < 20
    for patient_id in patients:
        for table in ("encounters", "encounter_versions", "audit_log", "outbox", "idempotency_keys"):
            assert await cast.count(table, patient_id) == 40
        notes = {str(row["id"]): row["notes"] for row in await cast.rows(patient_id)}
        sent = [each.columns for each in news]
        assert notes == {str(each["id"]): each["notes"] for each in sent if each["patient_id"] == patient_id}


SPECIAL = '"quoted", \\ and / and \n\t, é, 🩺, \u2028, \', {}, null'


async def test_a_recording_stores_the_same_alone_and_in_a_shared_statement(
    batcher: EncounterBatcher, cast: Cast, sizes: list[int]
) -> None:
    def special(patient_id: str) -> list[NewEncounter]:
        named: dict[str, Any] = {
            "provider_id": uuid4(), "chief_complaint": "", "notes": SPECIAL, "request_hash": bytes(range(256)),
            "metadata": '{"number": %s, "text": "\\u00e9\\n"}' % ("9" * 40 + ".10"), "actor_id": SPECIAL,
        }  # fmt: skip
        instants = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), None]
        external_ids = [json.dumps({SPECIAL: "7", "lis": SPECIAL}), "{}", '{"lis": "7"}']
        return [
            new(patient_id, key=f"{patient_id}-{n}", scheduled_at=instants[n], external_ids=external_ids[n], **named)
            for n in range(3)
        ]

    async def kept(news: Sequence[NewEncounter], table: str) -> list[dict[str, Any]]:
        rows = await cast.connection.fetch(
            f"SELECT * FROM patient_graph.{table} WHERE patient_id = $1", news[0].columns["patient_id"]
        )
        dated = {"created_at", "updated_at", "occurred_at", "changed_at", "answer", "expires_at"}
        named = {"patient_id", "id", "encounter_id", "entity_id", "key", "provider_id", "payload"}
        return sorted(({k: v for k, v in row.items() if k not in dated | named} for row in rows), key=str)

    alone, together = special(await cast.patient()), special(await cast.patient())
    for each in alone:
        await batcher.insert("loop", each)
    await asyncio.gather(*(batcher.insert("loop", each) for each in together))

    assert sizes == [1, 1, 1, 3]
    external_ids = {(row["system"], row["value"]) for row in await kept(alone, "encounter_external_ids")}
    assert external_ids == {("lis", SPECIAL), ("lis", "7"), (SPECIAL, "7")}
    for table in ("encounters", "encounter_versions", "audit_log", "idempotency_keys", "encounter_external_ids"):
        assert await kept(alone, table) == await kept(together, table)
    for news in (alone, together):
        rows = {row["id"]: row for row in await cast.rows(news[0].columns["patient_id"])}
        kept_rows = [rows[each.columns["id"]] for each in news]
        assert [row["provider_id"] for row in kept_rows] == [each.columns["provider_id"] for each in news]
        assert [row["notes"] for row in kept_rows] == [SPECIAL] * 3
        keys = await cast.connection.fetch(
            "SELECT * FROM patient_graph.idempotency_keys WHERE patient_id = $1", news[0].columns["patient_id"]
        )
        answers = {row["encounter_id"]: row["answer"] for row in keys}
        for each in news:
            row = rows[each.columns["id"]]
            assert answers[row["id"]] == published(recorded(each.columns, row["created_at"]))


async def test_the_events_of_a_patient_are_in_the_order_of_the_recordings(
    batcher: EncounterBatcher, cast: Cast
) -> None:
    patient_id = await cast.patient()
    news = [new(patient_id, key=str(uuid4())) for _ in range(150)]

    # Recordings in concurrent statements have no order, so send one batch after the other.
    for first in range(0, 150, 50):
        await asyncio.gather(*(batcher.insert("loop", each) for each in news[first : first + 50]))

    events = await cast.connection.fetch(
        "SELECT payload ->> 'encounter_id' AS id FROM patient_graph.outbox WHERE patient_id = $1"
        " ORDER BY created_at, id",
        patient_id,
    )
    assert [row["id"] for row in events] == [str(each.columns["id"]) for each in news]
    assert [row["id"] for row in await cast.rows(patient_id)] == [each.columns["id"] for each in news]


async def test_an_invalid_row_fails_alone(batcher: EncounterBatcher, cast: Cast) -> None:
    patient_id = await cast.patient()
    # The doors refuse this text, so no client can send it.
    news = [new(patient_id, notes="a\x00b" if number == 7 else None) for number in range(20)]

    kept = await asyncio.gather(*(batcher.insert("loop", each) for each in news), return_exceptions=True)

    assert [number for number, each in enumerate(kept) if not isinstance(each, Insertion)] == [7]
    assert isinstance(kept[7], asyncpg.PostgresError)
    assert await cast.count("encounters", patient_id) == await cast.count("audit_log", patient_id) == 19


async def test_an_unknown_patient_or_a_used_key_does_not_affect_the_others(
    batcher: EncounterBatcher, cast: Cast
) -> None:
    patient_id, of_other_brand, key = await cast.patient(), await cast.patient("loopbio"), str(uuid4())
    news = [new(patient_id), new("nobody"), new(of_other_brand), new(patient_id, key=key), new(patient_id, key=key)]

    kept = await asyncio.gather(*(batcher.insert("loop", each) for each in news))

    assert [each.patient_is_known for each in kept] == [True, False, False, True, True]
    assert [each.created_at is not None for each in kept] == [True, False, False, True, False]
    assert await cast.count("encounters", patient_id) == await cast.count("outbox", patient_id) == 2


async def test_two_statements_with_the_same_keys_in_any_order_do_not_deadlock(database: Database, cast: Cast) -> None:
    patient_id = await cast.patient()
    keys = [str(uuid4()) for _ in range(60)]
    one, other = (EncounterBatcher(database, timedelta(days=7), queue_timeout=30) for _ in range(2))

    kept = await asyncio.gather(
        *(one.insert("loop", new(patient_id, key=key)) for key in keys),
        *(other.insert("loop", new(patient_id, key=key)) for key in reversed(keys)),
    )

    assert sum(each.created_at is not None for each in kept) == len(keys)
    assert await cast.count("encounters", patient_id) == len(keys)


async def test_a_held_lock_delays_only_the_recordings_that_need_it(
    batcher: EncounterBatcher, database: Database, database_url: str, cast: Cast
) -> None:
    held, free = await cast.patient(), await cast.patient()
    blocker = await asyncpg.connect(database_url)
    async with blocker.transaction():
        await blocker.execute("SELECT FROM patient_graph.patients WHERE id = $1 FOR UPDATE", held)
        blocked = [asyncio.create_task(batcher.insert("loop", new(held, key=str(uuid4())))) for _ in range(3)]
        others = [asyncio.create_task(batcher.insert("loop", new(free, key=str(uuid4())))) for _ in range(20)]

        kept = await asyncio.gather(*others)

        assert all(each.created_at for each in kept)
        assert await cast.count("encounters", free) == await cast.count("audit_log", free) == 20
        assert not any(each.done() for each in blocked)
    await blocker.close()
    assert all(each.created_at for each in await asyncio.gather(*blocked))
    assert await cast.count("encounters", held) == 3
    async with database.connection("loop") as connection:
        row = await connection.fetch_one(Statement("SHOW lock_timeout"))
    assert row is not None
    assert row[0] == "0"


async def test_each_brand_has_its_own_statements(batcher: EncounterBatcher, cast: Cast) -> None:
    patients = {brand: await cast.patient(brand) for brand in ("loop", "loopbio")}

    kept = await asyncio.gather(
        *(
            batcher.insert(brand, new(patients[other], brand_id=brand))
            for brand in patients
            for other in patients
            for _ in range(5)
        )
    )

    assert [each.patient_is_known for each in kept] == [True] * 5 + [False] * 10 + [True] * 5


async def test_a_recording_cancelled_in_the_queue_is_not_sent(batcher: EncounterBatcher, cast: Cast) -> None:
    patient_id = await cast.patient()
    tasks = [asyncio.create_task(batcher.insert("loop", new(patient_id))) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()

    kept = await asyncio.gather(*tasks, return_exceptions=True)

    assert [isinstance(each, Insertion) for each in kept] == [number != 3 for number in range(10)]
    assert await cast.count("encounters", patient_id) == 9


async def test_a_recording_that_waits_too_long_in_the_queue_is_refused(
    database: Database, database_url: str, cast: Cast
) -> None:
    batcher = EncounterBatcher(database, timedelta(days=7), queue_timeout=0.2)
    patient_id = await cast.patient()
    blocker = await asyncpg.connect(database_url)
    async with blocker.transaction():
        await blocker.execute("SELECT FROM patient_graph.patients WHERE id = $1 FOR UPDATE", patient_id)
        waiting_recordings = []
        for number in range(MAX_IN_FLIGHT):
            waiting_recordings.append(asyncio.create_task(batcher.insert("loop", new(patient_id))))
            await wait_until(partial(waiting, cast, number + 1))

        refused = await asyncio.gather(
            *(batcher.insert("loop", new(patient_id)) for _ in range(5)), return_exceptions=True
        )
    await blocker.close()

    assert [type(each) for each in refused] == [TemporarilyUnavailable] * 5
    assert all(each.created_at for each in await asyncio.gather(*waiting_recordings))
    assert await cast.count("encounters", patient_id) == MAX_IN_FLIGHT
    # The batcher still works.
    assert (await batcher.insert("loop", new(patient_id))).created_at is not None


async def test_time_in_the_queue_reduces_the_timeout_for_a_connection(
    database_url: str, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await Database.connect(database_url, role=APP_ROLE, size=1, acquire_seconds=30, statement_seconds=30)
    batcher = EncounterBatcher(database, timedelta(days=7), queue_timeout=1)
    patient_id, timeouts = await cast.patient(), []
    original = Database.autocommit

    def measured(self: Database, brand_id: str, within_seconds: float) -> Any:
        timeouts.append(within_seconds)
        return original(self, brand_id, within_seconds)

    monkeypatch.setattr(Database, "autocommit", measured)
    async with database.connection("loop"):
        tasks = []
        # Statements up to the limit wait for the one connection; then as many recordings wait for a statement.
        for number in range(2 * MAX_IN_FLIGHT):
            tasks.append(asyncio.create_task(batcher.insert("loop", new(patient_id))))
            await wait_until(partial(has_sent, timeouts, min(number + 1, MAX_IN_FLIGHT)))
        refused = await asyncio.gather(*tasks, return_exceptions=True)
    await database.close()

    assert [type(each) for each in refused] == [TemporarilyUnavailable] * 2 * MAX_IN_FLIGHT
    assert all(each > 0.9 for each in timeouts[:MAX_IN_FLIGHT])
    assert all(each < 0.5 for each in timeouts[MAX_IN_FLIGHT:])


async def has_sent(timeouts: list[float], number: int) -> bool:
    return len(timeouts) >= number


async def test_statements_with_one_key_of_several_clients_do_not_deadlock(
    database_url: str, database: Database, cast: Cast
) -> None:
    # Two statements claim (client-1, k) and (client-2, k) in opposite order; a third key blocks each in between.
    patient_id, key = await cast.patient(), str(uuid4())
    batchers = [EncounterBatcher(database, timedelta(days=7), queue_timeout=30) for _ in range(2)]
    orders = (("client-1", "client-2"), ("client-2", "client-1"))
    blockers = []
    for client in ("middle-1", "middle-2"):
        blocker = await asyncpg.connect(database_url)
        blockers.append((blocker, transaction := blocker.transaction()))
        await transaction.start()
        await blocker.execute(
            "INSERT INTO patient_graph.idempotency_keys (brand_id, client_id, key, request_hash, patient_id,"
            " encounter_id, answer, expires_at) VALUES ('loop', $1, $2, '', $3, $4, '', now())",
            client, key, patient_id, uuid4(),
        )  # fmt: skip
    tasks = [
        asyncio.create_task(batcher.insert("loop", new(patient_id, key=key, client_id=client)))
        for batcher, (first, second), middle in zip(batchers, orders, ("middle-1", "middle-2"), strict=True)
        for client in (first, middle, second)
    ]
    await wait_until(partial(waiting, cast, 2))
    for blocker, transaction in blockers:
        await transaction.rollback()
        await blocker.close()

    kept = await asyncio.gather(*tasks)

    assert sum(each.created_at is not None for each in kept) == 4


async def waiting(cast: Cast, number: int) -> bool:
    return await cast.connection.fetchval(citus.WAITING_SESSIONS) == number
