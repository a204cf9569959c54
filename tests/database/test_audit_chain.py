"""The audit chain: linking never blocks writers, and verification names each later change of the log."""

import asyncio
import hashlib
import hmac
import json
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from click.testing import CliRunner

from gateway import cli, jobs
from gateway.audit import chain_job
from gateway.audit.chain_job import CHAIN_AUDIT, chaining
from gateway.audit.verify import Finding, Head, Kind, Walk, verify
from gateway.database.database import APP_ROLE, RELAY_ROLE, Database
from gateway.jobs import take_lease
from gateway.observability.metrics import AUDIT_CHAINED
from models import AuditEntry
from resolvers import audit_chain
from resolvers.sql import Statement
from tests.conftest import create_database, fresh_database

KEY = b"sixteen or more bytes"


@pytest.fixture
async def url(server_url: str) -> str:
    """The test's own database, because `verify` reads the whole log."""
    return await fresh_database(server_url)


@pytest.fixture
async def owner(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the owner, who may change the log and the chain."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
async def relay(url: str) -> AsyncIterator[Database]:
    async with relaying(url) as database:
        assert await take_lease(database, CHAIN_AUDIT, uuid4())
        yield database


@asynccontextmanager
async def relaying(url: str) -> AsyncIterator[Database]:
    database = await Database.connect(url, role=RELAY_ROLE, size=3, acquire_seconds=5, statement_seconds=5)
    try:
        yield database
    finally:
        await database.close()


async def append(connection: asyncpg.Connection, brand_id: str = "loop", minutes_ago: float = 0) -> UUID:
    """Append an entry as the gateway does; return its id."""
    entry_id = uuid4()
    await connection.execute(
        "INSERT INTO patient_graph.audit_log (patient_id, id, occurred_at, actor_type, actor_id, actor_brand_id,"
        " event_type, entity_type, entity_id, brand_id, request_id, details)"
        " VALUES ($1, $2, now() - $4 * interval '1 minute', 'user', 'anna', $3, 'test.done', 'test', 'one', $3,"
        """ 'request', '{"encounters": 1}')""",
        f"patient-{entry_id.hex[:6]}",
        entry_id,
        brand_id,
        minutes_ago,
    )
    return entry_id


async def append_five(owner: asyncpg.Connection, relay: Database, brand_id: str = "loop") -> list[UUID]:
    """Append five entries, one per minute until now, and link them; return their ids."""
    entries = [await append(owner, brand_id, minutes_ago) for minutes_ago in range(4, -1, -1)]
    await chain_all(relay)
    return entries


async def chain_all(relay: Database) -> None:
    """Link all entries, as a gateway does after its start."""
    chain_some = chaining(KEY)
    while await chain_some(relay):
        pass


async def findings(url: str, *expected: Head, key: bytes = KEY) -> list[Finding]:
    return [finding async for finding in verify(url, Walk(key, expected))]


async def found(url: str, *expected: Head) -> set[tuple[Kind, UUID | None, int | None]]:
    return {(finding.kind, finding.id, finding.position) for finding in await findings(url, *expected)}


async def positions(owner: asyncpg.Connection, brand_id: str = "loop") -> list[tuple[int, UUID]]:
    rows = await owner.fetch(
        "SELECT position, entry_id FROM patient_graph.audit_chain WHERE brand_id = $1 ORDER BY position", brand_id
    )
    return [tuple(row) for row in rows]


async def head(owner: asyncpg.Connection, brand_id: str = "loop") -> Head:
    row = await owner.fetchrow(
        "SELECT brand_id, position, chain_hash FROM patient_graph.audit_chain WHERE brand_id = $1"
        " ORDER BY position DESC LIMIT 1",
        brand_id,
    )
    assert row is not None
    return Head(*row)


# Linking


async def test_each_brand_has_its_own_chain_in_the_order_of_its_entries(
    url: str, owner: asyncpg.Connection, relay: Database
) -> None:
    ours, theirs, without_brand = [await append_five(owner, relay, brand_id) for brand_id in ("loop", "loopbio", "")]

    for brand_id, entries in (("loop", ours), ("loopbio", theirs), ("", without_brand)):
        assert await positions(owner, brand_id) == list(enumerate(entries, start=1))
    assert await findings(url) == []


@pytest.mark.one_server
async def test_a_hash_can_be_recomputed_as_documented(owner: asyncpg.Connection, relay: Database) -> None:
    await append(owner)
    await chain_all(relay)

    row = await owner.fetchrow(
        "SELECT l.*, id::text AS id_, details::text AS details_,"
        " trunc(extract(epoch FROM l.occurred_at) * 1000000)::text AS occurred_at_, entry_hash, chain_hash"
        " FROM patient_graph.audit_log l JOIN patient_graph.audit_chain c ON c.entry_id = l.id"
    )
    assert row is not None
    columns = dict(row) | {name: row[f"{name}_"] for name in ("id", "details", "occurred_at")}
    entry = {name: columns[name] for name in AuditEntry.model_fields if columns[name] is not None}
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert row["entry_hash"] == hashlib.sha256(text.encode()).digest()
    assert row["chain_hash"] == hmac.digest(KEY, bytes(32) + row["entry_hash"], "sha256")


SPECIAL = [*map(chr, range(1, 0x100)), "\u2028", "\u2029", "\ufeff", "\uffff", "\U0001f9ea", "\U0010ffff", "", "null"]


async def test_linking_and_verification_hash_any_entry_alike(
    url: str, owner: asyncpg.Connection, relay: Database
) -> None:
    # Linking hashes in PostgreSQL, verification in Python.
    await owner.execute(
        "INSERT INTO patient_graph.audit_log (patient_id, id, actor_type, actor_id, event_type, entity_type, entity_id,"
        " brand_id, request_id, details)"
        " SELECT odd, gen_random_uuid(), odd, odd, odd, odd, odd, 'loop', odd, jsonb_build_object(odd, odd)"
        " FROM unnest($1::text[]) AS odd",
        SPECIAL,
    )

    await chain_all(relay)

    assert len(await positions(owner)) == len(SPECIAL)
    assert await findings(url) == []


async def test_a_late_commit_is_linked_later_without_moving_other_entries(
    url: str, owner: asyncpg.Connection, relay: Database
) -> None:
    late = await asyncpg.connect(url)
    transaction = late.transaction()
    await transaction.start()
    entry = await append(late)  # has its time now, becomes visible at the commit

    others = await append_five(owner, relay)
    await transaction.commit()
    await late.close()
    await chain_all(relay)

    assert await positions(owner) == list(enumerate([*others, entry], start=1))
    assert await findings(url) == []


@pytest.mark.parametrize(("minutes_ago", "seconds"), [(0.1, 5), (5, 60)])
async def test_a_late_entry_is_linked_by_the_next_scan_that_covers_its_time(
    url: str, owner: asyncpg.Connection, relay: Database, minutes_ago: float, seconds: float
) -> None:
    now = 0.0
    chain_some = chaining(KEY, lambda: now)
    await append_five(owner, relay)
    await chain_some(relay)
    entry = await append(owner, minutes_ago=minutes_ago)

    now = seconds - 1
    await chain_some(relay)
    assert len(await positions(owner)) == 5
    now = seconds
    await chain_some(relay)

    assert (await positions(owner))[-1] == (6, entry)
    assert await findings(url) == []


async def test_the_time_of_the_last_search_is_a_metric(owner: asyncpg.Connection, relay: Database) -> None:
    chain_some = chaining(KEY)
    AUDIT_CHAINED.set(1)
    await owner.execute("ALTER TABLE patient_graph.audit_chain RENAME TO hidden")
    with pytest.raises(asyncpg.UndefinedTableError):
        await chain_some(relay)
    await owner.execute("ALTER TABLE patient_graph.hidden RENAME TO audit_chain")
    failed = AUDIT_CHAINED._value.get()
    await chain_some(relay)

    assert failed == 1
    assert time.time() - AUDIT_CHAINED._value.get() < 60


async def test_a_scanned_period_is_not_scanned_again(owner: asyncpg.Connection, relay: Database) -> None:
    """An idle log causes no work, whatever its length."""
    for minutes_ago in (5, 5.1):
        await append(owner, minutes_ago=minutes_ago)
        async with relay.transaction("loop") as connection:
            first = await audit_chain.link_entries(connection, "loop", KEY, audit_chain.GLANCE)
    await append(owner, minutes_ago=5.2)

    async with relay.transaction("loop") as connection:
        again = await audit_chain.link_entries(connection, "loop", KEY, audit_chain.GLANCE, first.at)
        anew = await audit_chain.link_entries(connection, "loop", KEY, audit_chain.GLANCE)

    assert [linked.entries for linked in (first, again, anew)] == [1, 0, 1]


async def test_slow_scans_are_scheduled_less_often(relay: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    now, seconds = 0.0, 2.0
    scans: list[tuple[float, timedelta]] = []

    async def slow_scan(database: Database, key: bytes, look_back: timedelta, looked_at: Any) -> bool:
        nonlocal now
        if database is not relay:
            # The job of another service in this process.
            return await ours(database, key, look_back, looked_at)
        scans.append((now, look_back))
        now += seconds if look_back else 0
        return await ours(database, key, look_back, looked_at)

    ours = chain_job._chain_brands
    monkeypatch.setattr(chain_job, "_chain_brands", slow_scan)
    chain_some = chaining(KEY, lambda: now)

    while now < 200:
        await chain_some(relay)
        now += 1

    far = [at for at, look_back in scans if look_back == audit_chain.LOOK_BACK]
    near = [at for at, look_back in scans if look_back == audit_chain.GLANCE]
    assert {after - before for before, after in pairwise(far)} <= {60, 61, 62}
    assert min(after - before for before, after in pairwise(near)) >= 20 * seconds
    assert len(near) > 1


async def test_a_backlog_longer_than_the_look_back_is_linked_in_order(
    url: str, owner: asyncpg.Connection, relay: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_chain, "CHAIN_AT_MOST", 2)
    monkeypatch.setattr("gateway.audit.chain_job.CHAIN_AT_MOST", 2)
    entries = [await append(owner, minutes_ago=minutes_ago) for minutes_ago in range(300, 0, -60)]

    await chain_all(relay)

    assert await positions(owner) == list(enumerate(entries, start=1))
    assert await findings(url) == []


async def test_linking_does_not_block_writers(url: str, owner: asyncpg.Connection, relay: Database) -> None:
    await append(owner)
    async with relay.transaction("loop") as connection:
        assert (await audit_chain.link_entries(connection, "loop", KEY)).entries == 1

        async with asyncio.timeout(1):
            entry = await append(owner)
    await chain_all(relay)

    assert (await positions(owner))[-1] == (2, entry)


@pytest.mark.one_server
async def test_a_busy_log_verifies_while_it_is_linked(
    url: str, owner: asyncpg.Connection, relay: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_chain, "CHAIN_AT_MOST", 7)
    monkeypatch.setattr("gateway.audit.chain_job.CHAIN_AT_MOST", 7)
    writing = asyncio.Event()

    async def write() -> None:
        connection = await asyncpg.connect(url, server_settings={"role": APP_ROLE, "app.brand_id": "loop"})
        for _ in range(100):
            async with connection.transaction():
                await append(connection)
                await asyncio.sleep(0)
        await connection.close()

    async def keep_chaining() -> int:
        rounds = 0
        chain_some = chaining(KEY)
        while not writing.is_set():
            await chain_some(relay)
            rounds += 1
        return rounds

    async def keep_verifying() -> list[Finding]:
        seen = []
        while not writing.is_set():
            seen += await findings(url)
        return seen

    chainer, verifier = asyncio.create_task(keep_chaining()), asyncio.create_task(keep_verifying())
    await asyncio.gather(*(write() for _ in range(4)))
    writing.set()

    assert await chainer > 1
    assert await verifier == []
    await chain_all(relay)
    assert [position for position, _ in await positions(owner)] == list(range(1, 401))
    assert await findings(url) == []


async def test_concurrent_linkers_build_one_chain(
    url: str, owner: asyncpg.Connection, relay: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_chain, "CHAIN_AT_MOST", 3)
    monkeypatch.setattr("gateway.audit.chain_job.CHAIN_AT_MOST", 3)
    for _ in range(60):
        await append(owner)

    # Both link without taking the lease again, like processes that were paused while they held it.
    async with relaying(url) as other:
        await asyncio.gather(*(chain_all(database) for database in (relay, other, relay, other)))

    assert [position for position, _ in await positions(owner)] == list(range(1, 61))
    assert await findings(url) == []


async def test_a_linker_that_lost_its_lease_does_not_fork_the_chain(
    url: str, owner: asyncpg.Connection, relay: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one pauses after reading the head, and continues when another holds the lease."""
    monkeypatch.setattr(jobs, "LEASE_TIME", timedelta(milliseconds=1))
    await append_five(owner, relay)
    stopped, go_on = asyncio.Event(), asyncio.Event()
    link_entries = audit_chain.link_entries

    async def pause_after_linking(connection, brand_id: str, *how: Any) -> audit_chain.Linked:
        linked = await link_entries(connection, brand_id, *how)
        if stopped.is_set() or brand_id != "loop":
            return linked
        stopped.set()
        await go_on.wait()
        return linked

    monkeypatch.setattr("gateway.audit.chain_job.link_entries", pause_after_linking)
    await append(owner)
    first = asyncio.create_task(chain_all(relay))
    await stopped.wait()
    async with relaying(url) as other:
        second = asyncio.create_task(chain_all(other))
        done, _ = await asyncio.wait([second], timeout=0.2)
        assert not done  # it waits for the row lock; an expired lease makes no difference
        await append(owner)
        go_on.set()
        await asyncio.gather(first, second)
    await chain_all(relay)

    assert [position for position, _ in await positions(owner)] == list(range(1, 8))
    assert await findings(url) == []


async def test_without_the_lease_nothing_is_linked(url: str, owner: asyncpg.Connection) -> None:
    await append(owner)

    async with relaying(url) as relay:
        await chain_all(relay)

    assert await positions(owner) == []


async def test_an_entry_with_a_future_time_does_not_stop_the_chain(
    url: str, owner: asyncpg.Connection, relay: Database
) -> None:
    ahead = await append(owner, minutes_ago=-10_000)
    forever = await append(owner)
    await owner.execute("UPDATE patient_graph.audit_log SET occurred_at = 'infinity' WHERE id = $1", forever)

    entries = await append_five(owner, relay)

    assert await positions(owner) == list(enumerate(entries, start=1))
    assert await found(url) == {(Kind.NOT_CHAINED, ahead, None), (Kind.NOT_CHAINED, forever, None)}


@pytest.mark.parametrize(
    ("statement", "values", "index"),
    [
        (audit_chain.HEAD, {"brand_id": "loop"}, "ix_audit_chain_brand_id_position"),
        (audit_chain.NEXT_BRAND, {"after": "loop"}, "ix_audit_log_brand_id_occurred_at_id"),
        (
            audit_chain.UNCHAINED,
            {"brand_id": "loop", "since": datetime(2026, 1, 1, tzinfo=UTC), "limit": 10},
            "ix_audit_log_brand_id_occurred_at_id",
        ),
    ],
)
async def test_the_statements_of_linking_use_their_indexes(
    owner: asyncpg.Connection, statement: Statement, values: dict[str, Any], index: str
) -> None:
    await owner.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off")

    plan = await owner.fetch(f"EXPLAIN {statement.text}", *statement.arguments(values))

    assert index in "".join(row[0] for row in plan)


@pytest.mark.parametrize("role", [APP_ROLE, RELAY_ROLE])
@pytest.mark.parametrize("statement", ["UPDATE {} SET brand_id = 'x'", "DELETE FROM {}", "TRUNCATE {}"])
async def test_neither_role_can_change_the_chain(url: str, role: str, statement: str) -> None:
    connection = await asyncpg.connect(url, server_settings={"role": role, "app.brand_id": "loop"})

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(statement.format("patient_graph.audit_chain"))

    await connection.close()


@pytest.mark.one_server
async def test_the_app_role_reads_the_chain_of_its_brand_and_cannot_insert(
    url: str, owner: asyncpg.Connection, relay: Database
) -> None:
    await append_five(owner, relay)
    await append_five(owner, relay, "loopbio")
    app = await asyncpg.connect(url, server_settings={"role": APP_ROLE, "app.brand_id": "loop"})

    assert await app.fetchval("SELECT array_agg(DISTINCT brand_id) FROM patient_graph.audit_chain") == ["loop"]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.execute("INSERT INTO patient_graph.audit_chain SELECT * FROM patient_graph.audit_chain")

    await app.close()


# Changes of the log

EDITS = {
    "patient_id": "'somebody else'",
    "id": "gen_random_uuid()",
    "occurred_at": "occurred_at + interval '1 microsecond'",
    "actor_type": "'system'",
    "actor_id": "'bert'",
    "actor_brand_id": "NULL",
    "event_type": "'test.undone'",
    "entity_type": "''",
    "entity_id": "NULL",
    "brand_id": "'loopbio'",
    "request_id": "request_id || ' '",
    "details": """'{"encounters": 1.0}'""",
}


def test_every_column_has_an_edit() -> None:
    assert EDITS.keys() == AuditEntry.model_fields.keys()


REFUSED_BY_CITUS = {"patient_id", "id", "occurred_at"}


@pytest.mark.parametrize(
    "column", [pytest.param(each, marks=[pytest.mark.one_server] * (each in REFUSED_BY_CITUS)) for each in EDITS]
)
async def test_an_edited_entry_is_found(url: str, owner: asyncpg.Connection, relay: Database, column: str) -> None:
    entries = await append_five(owner, relay)

    await owner.execute(
        f"UPDATE patient_graph.audit_log SET {column} = {EDITS[column]} WHERE id = $1",
        entries[2],
    )

    # With another id or patient it counts as another entry; the linked one is missing.
    kind = Kind.DELETED if column in {"id", "patient_id"} else Kind.EDITED
    assert await found(url) == {(kind, entries[2], 3)}


@pytest.mark.parametrize("time", ["infinity", "-infinity", "4713-01-01 BC", "200000-01-01"])
async def test_a_time_that_python_cannot_represent_hides_no_edit(
    url: str, owner: asyncpg.Connection, relay: Database, time: str
) -> None:
    entries = await append_five(owner, relay)

    await owner.execute(f"UPDATE patient_graph.audit_log SET occurred_at = '{time}' WHERE id = ANY($1)", entries[1:3])

    assert await found(url) == {(Kind.EDITED, entries[1], 2), (Kind.EDITED, entries[2], 3)}


async def test_a_deleted_entry_is_found_with_its_time(url: str, owner: asyncpg.Connection, relay: Database) -> None:
    entries = await append_five(owner, relay)
    occurred_at = await owner.fetchval("SELECT occurred_at FROM patient_graph.audit_log WHERE id = $1", entries[3])

    await owner.execute("DELETE FROM patient_graph.audit_log WHERE id = $1", entries[3])

    (finding,) = await findings(url)
    assert (finding.kind, finding.id, finding.position) == (Kind.DELETED, entries[3], 4)
    assert finding.occurred_at is not None
    assert datetime.fromisoformat(finding.occurred_at) == occurred_at


async def test_an_entry_deleted_with_its_link_leaves_a_gap(
    url: str, owner: asyncpg.Connection, relay: Database
) -> None:
    entries = await append_five(owner, relay)

    await owner.execute("DELETE FROM patient_graph.audit_log WHERE id = ANY($1)", entries[1:3])
    await owner.execute("DELETE FROM patient_graph.audit_chain WHERE entry_id = ANY($1)", entries[1:3])

    assert await findings(url) == [Finding(Kind.MISSING, "loop", position=2, last_position=3)]


async def test_a_closed_gap_is_found_at_its_position(url: str, owner: asyncpg.Connection, relay: Database) -> None:
    entries = await append_five(owner, relay)

    await owner.execute("DELETE FROM patient_graph.audit_log WHERE id = $1", entries[2])
    await owner.execute("DELETE FROM patient_graph.audit_chain WHERE entry_id = $1", entries[2])
    await owner.execute("UPDATE patient_graph.audit_chain SET position = position - 1 WHERE position > 3")

    assert await found(url) == {(Kind.OUT_OF_PLACE, entries[3], 3)}


async def test_swapped_entries_are_found(url: str, owner: asyncpg.Connection, relay: Database) -> None:
    entries = await append_five(owner, relay)

    await owner.execute("UPDATE patient_graph.audit_chain SET position = 5 - position WHERE position IN (2, 3)")

    # The entry after them too, because its link refers to the other one.
    assert await found(url) == {
        (Kind.OUT_OF_PLACE, entries[2], 2),
        (Kind.OUT_OF_PLACE, entries[1], 3),
        (Kind.OUT_OF_PLACE, entries[3], 4),
    }


@pytest.mark.one_server
async def test_entries_with_swapped_content_are_found(url: str, owner: asyncpg.Connection, relay: Database) -> None:
    entries = await append_five(owner, relay)
    await owner.execute("UPDATE patient_graph.audit_log SET actor_id = 'bert' WHERE id = $1", entries[1])
    await owner.execute("DELETE FROM patient_graph.audit_chain")
    await chain_all(relay)

    await owner.execute(
        "UPDATE patient_graph.audit_log a SET actor_id = b.actor_id FROM patient_graph.audit_log b"
        " WHERE (a.id, b.id) IN (($1, $2), ($2, $1))",
        *entries[1:3],
    )

    assert await found(url) == {(Kind.EDITED, entries[1], 2), (Kind.EDITED, entries[2], 3)}


async def test_an_entry_inserted_long_afterwards_is_found_and_never_linked(
    url: str, owner: asyncpg.Connection, relay: Database
) -> None:
    await append(owner, minutes_ago=60)
    await append_five(owner, relay)

    inserted = await append(owner, minutes_ago=30)
    await chain_all(relay)

    assert await found(url) == {(Kind.INSERTED, inserted, None)}


async def test_an_entry_inserted_with_a_link_is_found(url: str, owner: asyncpg.Connection, relay: Database) -> None:
    entries = await append_five(owner, relay)

    inserted = await append(owner, minutes_ago=3)
    await owner.execute("UPDATE patient_graph.audit_chain SET position = position + 1 WHERE position > 2")
    await owner.execute(
        "INSERT INTO patient_graph.audit_chain (patient_id, entry_id, brand_id, position, occurred_at, entry_hash,"
        " chain_hash) SELECT patient_id, id, brand_id, 3, occurred_at, $2, $2 FROM patient_graph.audit_log"
        " WHERE id = $1",
        inserted,
        bytes(32),
    )

    assert await found(url) == {
        (Kind.OUT_OF_PLACE, inserted, 3),
        (Kind.EDITED, inserted, 3),
        (Kind.OUT_OF_PLACE, entries[2], 4),
    }


async def test_a_position_used_twice_is_found(url: str, owner: asyncpg.Connection, relay: Database) -> None:
    entries = await append_five(owner, relay)

    await owner.execute("UPDATE patient_graph.audit_chain SET position = 2 WHERE position = 3")

    kinds = {(kind, position) for kind, _, position in await found(url)}
    assert (Kind.OUT_OF_PLACE, 2) in kinds
    assert (Kind.MISSING, 3) in kinds
    assert entries


async def test_a_truncated_chain_is_found_with_a_saved_head(
    url: str, owner: asyncpg.Connection, relay: Database
) -> None:
    entries = await append_five(owner, relay)
    kept = await head(owner)

    await owner.execute("DELETE FROM patient_graph.audit_log WHERE id = ANY($1)", entries[3:])
    await owner.execute("DELETE FROM patient_graph.audit_chain WHERE position > 3")

    assert await findings(url) == []
    assert await findings(url, kept) == [Finding(Kind.HEAD, "loop", position=5)]


async def test_a_saved_head_remains_valid_when_the_chain_grows(
    url: str, owner: asyncpg.Connection, relay: Database
) -> None:
    await append_five(owner, relay)
    kept = await head(owner)
    await append_five(owner, relay, "loopbio")
    await append(owner)
    await chain_all(relay)

    assert await findings(url, kept) == []


async def test_a_chain_rebuilt_without_the_key_is_found(url: str, owner: asyncpg.Connection, relay: Database) -> None:
    entries = await append_five(owner, relay)

    await owner.execute("UPDATE patient_graph.audit_log SET actor_id = 'bert' WHERE id = $1", entries[0])
    await owner.execute("DELETE FROM patient_graph.audit_chain")
    async with relaying(url) as attacker:
        await chaining(b"")(attacker)

    assert {kind for kind, _, _ in await found(url)} == {Kind.OUT_OF_PLACE}
    assert await findings(url, key=b"") == []  # without a secret key the forgery would pass


async def test_an_entry_that_stays_unlinked_too_long_is_found(url: str, owner: asyncpg.Connection) -> None:
    young = await append(owner)
    old = await append(owner, minutes_ago=11)

    assert await found(url) == {(Kind.NOT_CHAINED, old, None)}
    assert young


async def test_an_encounter_without_an_audit_entry_is_found(url: str, owner: asyncpg.Connection) -> None:
    encounter_id = uuid4()
    await owner.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ('somebody', 'loop')")
    await owner.execute(
        "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type)"
        " VALUES ('somebody', $1, 'loop', 'lab')",
        encounter_id,
    )

    (finding,) = await findings(url)
    assert (finding.kind, finding.brand_id, finding.id) == (Kind.NOT_AUDITED, "loop", encounter_id)
    assert "encounter" in str(finding)


async def test_a_long_log_is_verified_in_constant_memory(url: str, owner: asyncpg.Connection, relay: Database) -> None:
    async def peak() -> int:
        tracemalloc.start()
        assert await findings(url) == []
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    async def grow(number: int) -> None:
        await owner.execute(
            "INSERT INTO patient_graph.audit_log (patient_id, id, actor_type, actor_id, event_type, entity_type,"
            " brand_id, request_id) SELECT 'somebody', gen_random_uuid(), 'user', 'anna', 'test.done', 'test',"
            " 'loop', '' FROM generate_series(1, $1::int)",
            number,
        )
        await chain_all(relay)

    await grow(3_000)
    await peak()
    short = await peak()
    await grow(9_000)
    assert await peak() < short * 1.5


# The command


def run(monkeypatch: pytest.MonkeyPatch, url: str, *arguments: str):
    monkeypatch.setenv("GATEWAY_DATABASE_URL", url)
    monkeypatch.setenv("GATEWAY_AUDIT_KEY", KEY.decode())
    return CliRunner().invoke(cli.app, ["audit", "verify", *arguments])


async def test_the_command_prints_heads_that_it_accepts(
    url: str, owner: asyncpg.Connection, relay: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append_five(owner, relay)
    await append_five(owner, relay, "")

    result = await asyncio.to_thread(run, monkeypatch, url)

    assert result.exit_code == 0, result.output
    heads = result.output.splitlines()[-2:]
    assert str(await head(owner)) in heads
    again = await asyncio.to_thread(run, monkeypatch, url, *(f"--expect={each}" for each in heads))
    assert again.exit_code == 0, again.output


async def test_the_command_reports_its_findings_and_exits_with_1(
    url: str, owner: asyncpg.Connection, relay: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = await append_five(owner, relay)
    await owner.execute("UPDATE patient_graph.audit_log SET actor_id = 'bert' WHERE id = $1", entries[1])

    result = await asyncio.to_thread(run, monkeypatch, url)

    assert result.exit_code == 1
    assert f"edited:  entry {entries[1]}  brand loop  position 2  20" in result.output
    assert "patient-" not in result.output


async def test_the_command_reports_a_wrong_key(
    url: str, owner: asyncpg.Connection, relay: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append_five(owner, relay)

    monkeypatch.setenv("GATEWAY_DATABASE_URL", url)
    result = await asyncio.to_thread(CliRunner().invoke, cli.app, ["audit", "verify"])

    assert result.exit_code == 1
    assert "check that GATEWAY_AUDIT_KEY is the key" in result.output


@pytest.mark.parametrize("text", ["loop", "loop:0:" + "00" * 32, "loop:1:zz", "loop:1:00", "loop:x:" + "00" * 32])
async def test_an_invalid_head_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    result = await asyncio.to_thread(run, monkeypatch, "postgresql://nowhere", "--expect", text)

    assert result.exit_code == 2


async def test_a_database_without_a_chain_is_reported_in_one_sentence(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = await asyncio.to_thread(run, monkeypatch, await create_database(server_url))

    assert result.exit_code == 1
    assert "gateway migrate" in str(result.exception)
