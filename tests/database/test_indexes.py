"""Each index serves the statement it was made for: PostgreSQL's own plan says so."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest

from gateway.database.database import APP_ROLE, RELAY_ROLE, Database
from gateway.database.migrate import migrate
from resolvers.encounters.offset_pages import _slice
from resolvers.encounters.read import ENCOUNTERS_BY_IDS, _pages
from resolvers.outbox import _events
from resolvers.relay import OLDEST_KEPT, UNSTAMPED
from resolvers.sql import Statement
from tests.conftest import create_database
from tests.doors import Service

SLICE = {"brand_id": "loop", "ids": ["somebody"], "limit": 20, "offset": 0, "most_bytes": 1_000}
PAGE = {"brand_id": "loop", "patient_ids": ["somebody"], "limit": 21, "most_bytes": 1_000}
AFTER = {"after_created_at": datetime(2026, 1, 1, tzinfo=UTC), "after_id": uuid4()}
EVENTS = {"after": 1_000_000, "until": 1_001_000, "limit": 500}
PRUNED = {"pruned": 1_000_000, "until": 1_001_000, "keep": timedelta(days=30), "limit": 500}


@pytest.fixture
async def untouched(server_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A database of which nothing is known: what other tests leave in theirs, PostgreSQL counts, and chooses by."""
    url = await create_database(server_url)
    await migrate(url)
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.mark.parametrize(
    ("statement", "values", "index"),
    [
        (ENCOUNTERS_BY_IDS.plain, {"brand_id": "loop", "ids": [uuid4()], "most_bytes": 1_000}, "ix_encounters_id"),
        (ENCOUNTERS_BY_IDS.counted, {"brand_id": "loop", "ids": [uuid4()], "most_bytes": 1_000}, "ix_encounters_id"),
        (_pages(frozenset(), True, False, False).plain, PAGE, "ix_encounters_patient_id_created_at_id"),
        (_pages(frozenset(), True, True, False).counted, PAGE | AFTER, "ix_encounters_patient_id_created_at_id"),
        (_slice(("id", "notes"), counted=True), SLICE, "ix_encounters_patient_id_created_at_id"),
        (UNSTAMPED, {"limit": 500}, "ix_outbox_created_at_id"),
        (_events(frozenset()), EVENTS, "ix_outbox_position"),
        (_events(frozenset({"brand_id"})), EVENTS | {"brand_id": "loop"}, "ix_outbox_brand_id_position"),
        (OLDEST_KEPT, PRUNED, "ix_outbox_position"),
    ],
)
async def test_a_read_uses_its_index_and_sorts_nothing(
    untouched: asyncpg.Connection, statement: Statement, values, index: str
) -> None:
    async with untouched.transaction():
        # An empty table is read whole whatever the indexes: ask what would be done on a large one.
        await untouched.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        explained = await untouched.fetchval(f"EXPLAIN (FORMAT JSON) {statement.text}", *statement.arguments(values))

    nodes = list(_nodes(json.loads(explained)[0]["Plan"]))
    scans = [node for node in nodes if node.get("Relation Name") in {"encounters", "outbox"}]
    # A total that is counted beside may use another.
    assert scans[0]["Index Name"] == index
    assert not [node for node in scans if node["Node Type"] == "Seq Scan"]


def _nodes(plan):
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


async def test_counting_a_list_and_skipping_in_it_read_no_encounter(untouched: asyncpg.Connection) -> None:
    statement = _slice(("id", "notes"), counted=False)
    async with untouched.transaction():
        await untouched.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        values = statement.arguments(SLICE)
        explained = await untouched.fetchval(f"EXPLAIN (FORMAT JSON) {statement.text}", *values)

    index = "ix_encounters_patient_id_created_at_id"
    nodes = list(_nodes(json.loads(explained)[0]["Plan"]))
    scans = [(node["Node Type"], node["Index Name"]) for node in nodes if node.get("Relation Name") == "encounters"]
    assert sorted(scans) == [("Index Only Scan", index)] * 2 + [("Index Scan", index)]


@pytest.mark.parametrize(("setting", "value"), [("enable_bitmapscan", "off"), ("max_parallel_workers_per_gather", "0")])
async def test_the_gateway_gathers_nothing_that_it_can_read_in_order_and_takes_one_processor_at_a_time(
    database_url: str, setting: str, value: str
) -> None:
    # PostgreSQL expects of each patient what is usual, and would gather and sort all that an unusual one has.
    database = await Database.connect(database_url, role=APP_ROLE, size=1, acquire_seconds=5, statement_seconds=5)
    async with database.connection("loop") as connection:
        told = await connection.fetch_one(Statement(f"SHOW {setting}"))
    await database.close()

    assert told is not None
    assert told[setting] == value


PLANNING = Statement("SHOW plan_cache_mode")


async def test_what_callers_ask_is_planned_once_and_on_a_cluster_for_its_arguments(
    service_on_a_server: Service, service_on_a_cluster: Service
) -> None:
    # By the arguments a cluster knows whom to ask: a plan for all arguments it refuses.
    modes = []
    for service in (service_on_a_server, service_on_a_cluster):
        async with service.services.database.connection("loop") as connection:
            told = await connection.fetch_one(PLANNING)
        modes.append(told["plan_cache_mode"])

    assert modes == ["force_generic_plan", "auto"]


async def test_what_a_duty_asks_is_planned_for_what_it_looks_for(database_url: str) -> None:
    # Planned for any time since which it could look, the chain of the audit log reads a third of the log, each time.
    database = await Database.connect(database_url, role=RELAY_ROLE, size=1, acquire_seconds=5, statement_seconds=5)
    async with database.unscoped() as connection:
        told = await connection.fetch_one(PLANNING)
    await database.close()

    assert told is not None
    assert told["plan_cache_mode"] == "auto"
