"""Recordings that come at the same time share a statement, and nothing else."""

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
from tests.cast import Cast
from tests.happenings import until


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.connect(database_url, role=APP_ROLE, size=4, acquire_seconds=30, statement_seconds=30)
    yield opened
    await opened.close()


@pytest.fixture
def recorder(database: Database) -> EncounterBatcher:
    return EncounterBatcher(database, timedelta(days=7), queue_timeout=30)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many recordings each statement held."""
    sent: list[int] = []
    original = PoolConnection.fetch

    async def counted(self, statement, **values):
        if "WITH sent AS" in statement.text:
            sent.append(len(json.loads(values["sent"])) if "sent" in values else 1)
        return await original(self, statement, **values)

    monkeypatch.setattr(PoolConnection, "fetch", counted)
    return sent


def new(patient_id: str, **other: Any) -> NewEncounter:
    """Make a recording in which nothing is particular but what is named."""
    key = other.get("key")
    columns: dict[str, Any] = dict.fromkeys(MEMBERS.keys() - {"created_at", "updated_at"}) | {
        "patient_id": patient_id, "id": new_id(), "brand_id": "loop", "encounter_type": EncounterType.LAB,
        "status": EncounterStatus.SCHEDULED, "metadata": "{}", "version": 1,
    }  # fmt: skip
    columns |= {name: other.pop(name) for name in columns.keys() & other.keys()}
    rest: dict[str, Any] = {
        "entry_id": new_id(), "event_id": new_id(), "actor_type": "service", "actor_id": "lab",
        "actor_brand_id": "loop", "request_id": "a-test", "client_id": "lab", "key": None,
        "request_hash": b"" if key else None,
    }  # fmt: skip
    return NewEncounter(columns, **rest | other)


async def test_a_lone_recording_goes_alone(recorder: EncounterBatcher, cast: Cast, sizes: list[int]) -> None:
    patient_id = await cast.patient()

    for _ in range(3):
        await recorder.insert("loop", new(patient_id))

    assert sizes == [1, 1, 1]


async def test_what_comes_at_the_same_time_goes_together_and_each_is_whole(
    recorder: EncounterBatcher, cast: Cast, sizes: list[int]
) -> None:
    patients = [await cast.patient() for _ in range(5)]
    news = [new(patients[number % 5], notes=f"Note {number}.", key=str(uuid4())) for number in range(200)]

    kept = await asyncio.gather(*(recorder.insert("loop", each) for each in news))

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


ODD = '"quoted", \\ and / and \n\t, é, 🩺, \u2028, \', {}, null'


async def test_what_is_kept_is_the_same_to_the_letter_whether_it_goes_alone_or_with_others(
    recorder: EncounterBatcher, cast: Cast, sizes: list[int]
) -> None:
    def odd(patient_id: str) -> list[NewEncounter]:
        named: dict[str, Any] = {
            "provider_id": uuid4(), "chief_complaint": "", "notes": ODD, "request_hash": bytes(range(256)),
            "metadata": '{"number": %s, "text": "\\u00e9\\n"}' % ("9" * 40 + ".10"), "actor_id": ODD,
        }  # fmt: skip
        instants = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), None]
        return [new(patient_id, key=f"{patient_id}-{n}", scheduled_at=at, **named) for n, at in enumerate(instants)]

    async def kept(news: Sequence[NewEncounter], table: str) -> list[dict[str, Any]]:
        rows = await cast.connection.fetch(
            f"SELECT * FROM patient_graph.{table} WHERE patient_id = $1", news[0].columns["patient_id"]
        )
        dated = {"created_at", "updated_at", "occurred_at", "changed_at", "answer", "expires_at"}
        named = {"patient_id", "id", "encounter_id", "entity_id", "key", "provider_id", "payload"}
        return sorted(({k: v for k, v in row.items() if k not in dated | named} for row in rows), key=str)

    alone, together = odd(await cast.patient()), odd(await cast.patient())
    for each in alone:
        await recorder.insert("loop", each)
    await asyncio.gather(*(recorder.insert("loop", each) for each in together))

    assert sizes == [1, 1, 1, 3]
    for table in ("encounters", "encounter_versions", "audit_log", "idempotency_keys"):
        assert await kept(alone, table) == await kept(together, table)
    for news in (alone, together):
        rows = {row["id"]: row for row in await cast.rows(news[0].columns["patient_id"])}
        kept_rows = [rows[each.columns["id"]] for each in news]
        assert [row["provider_id"] for row in kept_rows] == [each.columns["provider_id"] for each in news]
        assert [row["notes"] for row in kept_rows] == [ODD] * 3
        keys = await cast.connection.fetch(
            "SELECT * FROM patient_graph.idempotency_keys WHERE patient_id = $1", news[0].columns["patient_id"]
        )
        answers = {row["encounter_id"]: row["answer"] for row in keys}
        for each in news:
            row = rows[each.columns["id"]]
            assert answers[row["id"]] == published(recorded(each.columns, row["created_at"]))


async def test_a_patients_events_are_in_the_order_of_the_recordings(recorder: EncounterBatcher, cast: Cast) -> None:
    patient_id = await cast.patient()
    news = [new(patient_id, key=str(uuid4())) for _ in range(150)]

    # What is under way at once in several statements has no order.
    for first in range(0, 150, 50):
        await asyncio.gather(*(recorder.insert("loop", each) for each in news[first : first + 50]))

    told = await cast.connection.fetch(
        "SELECT payload ->> 'encounter_id' AS id FROM patient_graph.outbox WHERE patient_id = $1"
        " ORDER BY created_at, id",
        patient_id,
    )
    assert [row["id"] for row in told] == [str(each.columns["id"]) for each in news]
    assert [row["id"] for row in await cast.rows(patient_id)] == [each.columns["id"] for each in news]


async def test_one_bad_row_fails_alone(recorder: EncounterBatcher, cast: Cast) -> None:
    patient_id = await cast.patient()
    # No client can send this: the doors have refused it before.
    news = [new(patient_id, notes="a\x00b" if number == 7 else None) for number in range(20)]

    kept = await asyncio.gather(*(recorder.insert("loop", each) for each in news), return_exceptions=True)

    assert [number for number, each in enumerate(kept) if not isinstance(each, Insertion)] == [7]
    assert isinstance(kept[7], asyncpg.PostgresError)
    assert await cast.count("encounters", patient_id) == await cast.count("audit_log", patient_id) == 19


async def test_who_is_unknown_and_whose_key_is_taken_are_told_and_the_others_kept(
    recorder: EncounterBatcher, cast: Cast
) -> None:
    patient_id, foreigner, key = await cast.patient(), await cast.patient("loopbio"), str(uuid4())
    news = [new(patient_id), new("nobody"), new(foreigner), new(patient_id, key=key), new(patient_id, key=key)]

    kept = await asyncio.gather(*(recorder.insert("loop", each) for each in news))

    assert [each.patient_is_known for each in kept] == [True, False, False, True, True]
    assert [each.created_at is not None for each in kept] == [True, False, False, True, False]
    assert await cast.count("encounters", patient_id) == await cast.count("outbox", patient_id) == 2


async def test_keys_that_meet_in_two_statements_in_any_order_never_lock_each_other_out(
    database: Database, cast: Cast
) -> None:
    patient_id = await cast.patient()
    keys = [str(uuid4()) for _ in range(60)]
    one, other = (EncounterBatcher(database, timedelta(days=7), queue_timeout=30) for _ in range(2))

    kept = await asyncio.gather(
        *(one.insert("loop", new(patient_id, key=key)) for key in keys),
        *(other.insert("loop", new(patient_id, key=key)) for key in reversed(keys)),
    )

    assert sum(each.created_at is not None for each in kept) == len(keys)
    assert await cast.count("encounters", patient_id) == len(keys)


async def test_of_a_shared_statement_only_what_needs_a_held_lock_waits(
    recorder: EncounterBatcher, database: Database, database_url: str, cast: Cast
) -> None:
    held, free = await cast.patient(), await cast.patient()
    blocker = await asyncpg.connect(database_url)
    async with blocker.transaction():
        await blocker.execute("SELECT FROM patient_graph.patients WHERE id = $1 FOR UPDATE", held)
        blocked = [asyncio.create_task(recorder.insert("loop", new(held, key=str(uuid4())))) for _ in range(3)]
        others = [asyncio.create_task(recorder.insert("loop", new(free, key=str(uuid4())))) for _ in range(20)]

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


async def test_each_brand_goes_for_itself(recorder: EncounterBatcher, cast: Cast) -> None:
    patients = {brand: await cast.patient(brand) for brand in ("loop", "loopbio")}

    kept = await asyncio.gather(
        *(
            recorder.insert(brand, new(patients[other], brand_id=brand))
            for brand in patients
            for other in patients
            for _ in range(5)
        )
    )

    assert [each.patient_is_known for each in kept] == [True] * 5 + [False] * 10 + [True] * 5


async def test_who_gives_up_before_it_is_sent_is_not_sent_and_the_others_are(
    recorder: EncounterBatcher, cast: Cast
) -> None:
    patient_id = await cast.patient()
    tasks = [asyncio.create_task(recorder.insert("loop", new(patient_id))) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()

    kept = await asyncio.gather(*tasks, return_exceptions=True)

    assert [isinstance(each, Insertion) for each in kept] == [number != 3 for number in range(10)]
    assert await cast.count("encounters", patient_id) == 9


async def test_who_waits_too_long_for_a_turn_is_refused_and_nothing_of_theirs_is_kept(
    database: Database, database_url: str, cast: Cast
) -> None:
    recorder = EncounterBatcher(database, timedelta(days=7), queue_timeout=0.2)
    patient_id = await cast.patient()
    blocker = await asyncpg.connect(database_url)
    async with blocker.transaction():
        await blocker.execute("SELECT FROM patient_graph.patients WHERE id = $1 FOR UPDATE", patient_id)
        under_way = []
        for number in range(MAX_IN_FLIGHT):
            under_way.append(asyncio.create_task(recorder.insert("loop", new(patient_id))))
            await until(partial(waiting, cast, number + 1))

        refused = await asyncio.gather(
            *(recorder.insert("loop", new(patient_id)) for _ in range(5)), return_exceptions=True
        )
    await blocker.close()

    assert [type(each) for each in refused] == [TemporarilyUnavailable] * 5
    assert all(each.created_at for each in await asyncio.gather(*under_way))
    assert await cast.count("encounters", patient_id) == MAX_IN_FLIGHT
    # And it serves on.
    assert (await recorder.insert("loop", new(patient_id))).created_at is not None


async def test_who_has_waited_for_a_turn_waits_so_much_less_for_a_connection(
    database_url: str, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await Database.connect(database_url, role=APP_ROLE, size=1, acquire_seconds=30, statement_seconds=30)
    recorder = EncounterBatcher(database, timedelta(days=7), queue_timeout=1)
    patient_id, patience = await cast.patient(), []
    at_once = Database.autocommit

    def noted(self: Database, brand_id: str, within_seconds: float) -> Any:
        patience.append(within_seconds)
        return at_once(self, brand_id, within_seconds)

    monkeypatch.setattr(Database, "autocommit", noted)
    async with database.connection("loop"):
        tasks = []
        # One statement after the other, until all that may be under way wait for the one connection; then some more.
        for number in range(2 * MAX_IN_FLIGHT):
            tasks.append(asyncio.create_task(recorder.insert("loop", new(patient_id))))
            await until(partial(has_sent, patience, min(number + 1, MAX_IN_FLIGHT)))
        refused = await asyncio.gather(*tasks, return_exceptions=True)
    await database.close()

    assert [type(each) for each in refused] == [TemporarilyUnavailable] * 2 * MAX_IN_FLIGHT
    assert all(each > 0.9 for each in patience[:MAX_IN_FLIGHT])
    assert all(each < 0.5 for each in patience[MAX_IN_FLIGHT:])


async def has_sent(patience: list[float], number: int) -> bool:
    return len(patience) >= number


async def test_statements_that_claim_the_same_words_for_several_clients_do_not_lock_each_other_out(
    database_url: str, database: Database, cast: Cast
) -> None:
    # Two that claim (one, k) and (other, k) in opposite order, each held up between its two claims by another key.
    patient_id, key = await cast.patient(), str(uuid4())
    recorders = [EncounterBatcher(database, timedelta(days=7), queue_timeout=30) for _ in range(2)]
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
        asyncio.create_task(recorder.insert("loop", new(patient_id, key=key, client_id=client)))
        for recorder, (first, second), middle in zip(recorders, orders, ("middle-1", "middle-2"), strict=True)
        for client in (first, middle, second)
    ]
    await until(partial(waiting, cast, 2))
    for blocker, transaction in blockers:
        await transaction.rollback()
        await blocker.close()

    kept = await asyncio.gather(*tasks)

    assert sum(each.created_at is not None for each in kept) == 4


async def waiting(cast: Cast, number: int) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return await cast.connection.fetchval(query) == number
