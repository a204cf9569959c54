"""Each index is used by its statement, according to the plan of PostgreSQL."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.database.database import APP_ROLE, RELAY_ROLE, Database
from models import EncounterOrder
from resolvers.encounters.offset_pages import _slice
from resolvers.encounters.read import ENCOUNTERS_BY_IDS, ENCOUNTERS_WITH_EXTERNAL_ID, _pages, arguments_of
from resolvers.encounters.worklists import _page as worklist_page
from resolvers.list_sql import NEWEST_FIRST, ORDERS
from resolvers.outbox import _events
from resolvers.paging import Position
from resolvers.patient_list import _page
from resolvers.patients import PATIENTS_WITH_EXTERNAL_ID
from resolvers.relay import OLDEST_KEPT, UNSTAMPED
from resolvers.sql import Statement
from tests.conftest import fresh_database
from tests.doors import Service

pytestmark = pytest.mark.one_server

SLICE = {"brand_id": "loop", "ids": ["somebody"], "limit": 20, "offset": 0, "most_bytes": 1_000}
PAGE = {"brand_id": "loop", "patient_ids": ["somebody"], "limit": 21, "most_bytes": 1_000}
AFTER = {"after_created_at": "2026-01-01T00:00:00Z", "after_id": uuid4()}
OF_FEED = {"brand_id": "loop", "encounter_type": ["lab"], "provider_id": [uuid4()], "kinds": ["recorded"]}
EVENTS = {"after": 1_000_000, "until": 1_001_000, "limit": 500}
PRUNED = {"pruned": 1_000_000, "until": 1_001_000, "keep": timedelta(days=30), "limit": 500}

NUMBER = {"brand_id": "loop", "system": "mrn", "value": "7"}
PATIENTS = {"brand_id": "loop", "limit": 21, "after_created_at": datetime(2026, 1, 1, tzinfo=UTC), "after_id": "7"}
CREATED = {"created_from": datetime(2026, 1, 1, tzinfo=UTC), "created_until": datetime(2026, 2, 1, tzinfo=UTC)}


@pytest.fixture
async def untouched(server_url: str) -> AsyncIterator[asyncpg.Connection]:
    """An empty database of its own: rows of other tests would change the statistics and so the plans."""
    url = await fresh_database(server_url)
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.mark.parametrize(
    ("statement", "values", "index"),
    [
        (ENCOUNTERS_BY_IDS.plain, {"brand_id": "loop", "ids": [uuid4()], "most_bytes": 1_000}, "ix_encounters_id"),
        (ENCOUNTERS_BY_IDS.counted, {"brand_id": "loop", "ids": [uuid4()], "most_bytes": 1_000}, "ix_encounters_id"),
        (_pages(frozenset(), NEWEST_FIRST, True, ()).plain, PAGE, "ix_encounters_patient_id_created_at_id"),
        (
            _pages(frozenset(), NEWEST_FIRST, True, ("after",)).counted,
            PAGE | AFTER,
            "ix_encounters_patient_id_created_at_id",
        ),
        (_slice(counted=True), SLICE, "ix_encounters_patient_id_created_at_id"),
        (UNSTAMPED, {"limit": 500}, "ix_outbox_created_at_id"),
        (_events(frozenset()), EVENTS, "ix_outbox_position"),
        (_events(frozenset({"brand_id"})), EVENTS | {"brand_id": "loop"}, "ix_outbox_brand_id_position"),
        (_events(frozenset(OF_FEED)), EVENTS | OF_FEED, "ix_outbox_brand_id_position"),
        (OLDEST_KEPT, PRUNED, "ix_outbox_position"),
    ],
)
async def test_a_read_uses_its_index_and_does_not_sort(
    untouched: asyncpg.Connection, statement: Statement, values, index: str
) -> None:
    async with untouched.transaction():
        # PostgreSQL scans an empty table; these settings give the plan for a large one.
        await untouched.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        explained = await untouched.fetchval(f"EXPLAIN (FORMAT JSON) {statement.text}", *statement.arguments(values))

    nodes = list(_nodes(json.loads(explained)[0]["Plan"]))
    scans = [node for node in nodes if node.get("Relation Name") in {"encounters", "outbox"}]
    # The first scan; the one for the total may use another index.
    assert scans[0]["Index Name"] == index
    assert not [node for node in scans if node["Node Type"] == "Seq Scan"]


ORDER_INDEXES = {
    "CREATED_AT_ASC": "created_at_id",
    "CREATED_AT_DESC": "created_at_id",
    "SCHEDULED_AT_ASC": "scheduled_at_id",
    "SCHEDULED_AT_DESC": "scheduled_at_id_desc",
    "UPDATED_AT_DESC": "updated_at_id",
    "PROVIDER_THEN_SCHEDULED_AT_ASC": "provider_id_scheduled_at_id",
}
DAY = {"scheduled_from": datetime(2026, 11, 30, tzinfo=UTC), "scheduled_until": datetime(2026, 12, 1, tzinfo=UTC)}
PLACES = dict.fromkeys(("created_at", "updated_at", "scheduled_at"), datetime(2026, 6, 1, tzinfo=UTC)) | {
    "provider_id": UUID("00000000-0000-0000-0000-000000000020")
}
FILTERED = {
    "a day": ("SCHEDULED_AT_ASC", DAY, "scheduled_at_id"),
    "a day, latest first": ("SCHEDULED_AT_DESC", DAY, "scheduled_at_id_desc"),
    "a provider's day": ("SCHEDULED_AT_ASC", DAY | {"one_provider": uuid4()}, "provider_id_scheduled_at_id"),
    "a day by provider": ("PROVIDER_THEN_SCHEDULED_AT_ASC", {}, "provider_id_scheduled_at_id"),
    "a status": ("SCHEDULED_AT_ASC", {"one_status": "in_progress"}, "status_scheduled_at_id"),
}


@pytest.fixture(scope="module")
async def populated(server_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A database with 20,000 encounters of a brand, and its statistics."""
    url = await fresh_database(server_url)
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ('one', 'loop')")
    await connection.execute(
        "INSERT INTO patient_graph.encounters"
        " (patient_id, id, brand_id, encounter_type, status, scheduled_at, provider_id, created_at, updated_at)"
        " SELECT 'one', gen_random_uuid(), 'loop', 'lab',"
        " CASE number % 100 WHEN 0 THEN 'in_progress' ELSE 'completed' END,"
        " '2026-01-01'::timestamptz + number * interval '25 minutes',"
        " ('00000000-0000-0000-0000-' || lpad((number % 40)::text, 12, '0'))::uuid,"
        " '2026-01-01'::timestamptz + number * interval '25 minutes', now() - number * interval '1 minute'"
        " FROM generate_series(1, 20000) number"
    )
    await connection.execute("ANALYZE patient_graph.encounters")
    yield connection
    await connection.close()


@pytest.mark.parametrize(
    ("order", "criteria", "index"),
    [*((order, {}, index) for order, index in ORDER_INDEXES.items()), *FILTERED.values()],
    ids=[*ORDER_INDEXES, *FILTERED],
)
@pytest.mark.parametrize("has_cursor", [False, True], ids=["first page", "later page"])
async def test_a_worklist_uses_its_index_and_does_not_sort(
    populated: asyncpg.Connection, order: str, criteria: dict[str, object], index: str, has_cursor: bool
) -> None:
    after = Position(tuple(PLACES[key.column] for key in ORDERS[EncounterOrder[order]].keys), uuid4())
    places = arguments_of({"after": after.arguments(ORDERS[EncounterOrder[order]])} if has_cursor else {})
    sides = ("after",) if has_cursor else ()
    statement = worklist_page(frozenset(criteria), ORDERS[EncounterOrder[order]], True, sides).plain
    values = statement.arguments({"brand_id": "loop", "limit": 51, **criteria, **places})

    async with populated.transaction():
        # As the application: row-level security keeps conditions that might leak from an index.
        await populated.execute(f"SET LOCAL ROLE {APP_ROLE}; SET LOCAL app.brand_id = 'loop'")
        await populated.execute("SET LOCAL enable_bitmapscan = off; SET LOCAL plan_cache_mode = force_custom_plan")
        explained = await populated.fetchval(f"EXPLAIN (FORMAT JSON) {statement.text}", *values)

    nodes = list(_nodes(json.loads(explained)[0]["Plan"]))
    assert [node["Index Name"] for node in nodes if "Index Name" in node] == [f"ix_encounters_brand_id_{index}"]
    assert not [node for node in nodes if "Sort" in node["Node Type"] or node["Node Type"] == "Seq Scan"]
    if has_cursor:
        assert "ROW(" in nodes[-1]["Index Cond"]


@pytest.mark.parametrize("order", ORDER_INDEXES)
async def test_a_worklist_of_patients_searches_only_their_encounters(populated: asyncpg.Connection, order: str) -> None:
    statement = worklist_page(frozenset({"patients"}), ORDERS[EncounterOrder[order]], True, ()).plain
    values = statement.arguments({"brand_id": "loop", "limit": 51, "patients": [f"absent-{n}" for n in range(100)]})

    async with populated.transaction():
        await populated.execute(f"SET LOCAL ROLE {APP_ROLE}; SET LOCAL app.brand_id = 'loop'")
        await populated.execute("SET LOCAL enable_bitmapscan = off; SET LOCAL plan_cache_mode = force_custom_plan")
        explained = await populated.fetchval(f"EXPLAIN (FORMAT JSON) {statement.text}", *values)

    names = [node["Index Name"] for node in _nodes(json.loads(explained)[0]["Plan"]) if "Index Name" in node]
    assert names in (["ix_encounters_patient_id_created_at_id"], ["pk_encounters"])


async def test_the_readers_of_a_patient_in_worklists_are_found_by_an_index(untouched: asyncpg.Connection) -> None:
    query = "SELECT 1 FROM patient_graph.audit_log WHERE entity_type = 'worklist' AND details -> 'patients' ? 'one'"
    await untouched.execute("SET enable_seqscan = off")

    explained = await untouched.fetchval(f"EXPLAIN (FORMAT JSON) {query}")

    names = [node.get("Index Name") for node in _nodes(json.loads(explained)[0]["Plan"])]
    assert "ix_audit_log_patients" in names


def _nodes(plan):
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


@pytest.mark.parametrize(
    ("statement", "values", "index"),
    [
        (ENCOUNTERS_WITH_EXTERNAL_ID, NUMBER, "ix_encounter_external_ids_brand_id_system_value_encounter_id"),
        (PATIENTS_WITH_EXTERNAL_ID, NUMBER, "ix_patient_external_ids_brand_id_system_value_patient_id"),
        (_page(frozenset(), False).plain, PATIENTS, "ix_patients_brand_id_created_at_id"),
        (_page(frozenset(CREATED), True).plain, PATIENTS | CREATED, "ix_patients_brand_id_created_at_id"),
    ],
)
async def test_a_search_under_row_level_security_reads_its_index_in_order(
    untouched: asyncpg.Connection, statement: Statement, values, index: str
) -> None:
    async with untouched.transaction():
        await untouched.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        # A policy keeps conditions that are not leakproof from using an index.
        await untouched.execute(f"SET LOCAL ROLE {APP_ROLE}; SET LOCAL app.brand_id = 'loop'")
        explained = await untouched.fetchval(f"EXPLAIN (FORMAT JSON) {statement.text}", *statement.arguments(values))

    *_, scan = nodes = list(_nodes(json.loads(explained)[0]["Plan"]))
    assert [node["Node Type"] for node in nodes if node["Node Type"] != "Result"][:-1] == ["Limit"]
    assert scan["Index Name"] == index
    # Every condition but the policy's is one of the index.
    assert "Filter" not in scan


async def test_the_count_and_the_offset_of_a_list_read_only_the_index(untouched: asyncpg.Connection) -> None:
    statement = _slice(counted=False)
    async with untouched.transaction():
        await untouched.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        values = statement.arguments(SLICE)
        explained = await untouched.fetchval(f"EXPLAIN (FORMAT JSON) {statement.text}", *values)

    index = "ix_encounters_patient_id_created_at_id"
    nodes = list(_nodes(json.loads(explained)[0]["Plan"]))
    scans = [(node["Node Type"], node["Index Name"]) for node in nodes if node.get("Relation Name") == "encounters"]
    assert sorted(scans) == [("Index Only Scan", index)] * 2 + [("Index Scan", index)]


@pytest.mark.parametrize(("setting", "value"), [("enable_bitmapscan", "off"), ("max_parallel_workers_per_gather", "0")])
async def test_bitmap_scans_and_parallel_workers_are_disabled(database_url: str, setting: str, value: str) -> None:
    # PostgreSQL plans for an average patient, and would collect and sort all rows of an unusual one.
    database = await Database.connect(database_url, role=APP_ROLE, size=1, acquire_seconds=5, statement_seconds=5)
    async with database.connection("loop") as connection:
        row = await connection.fetch_one(Statement(f"SHOW {setting}"))
    await database.close()

    assert row is not None
    assert row[setting] == value


PLANNING = Statement("SHOW plan_cache_mode")


async def test_requests_use_generic_plans_except_on_a_cluster(
    service_on_a_server: Service, service_on_a_cluster: Service
) -> None:
    # A cluster routes by the arguments, and refuses a generic plan.
    modes = []
    for service in (service_on_a_server, service_on_a_cluster):
        async with service.services.database.connection("loop") as connection:
            row = await connection.fetch_one(PLANNING)
        modes.append(row["plan_cache_mode"])

    assert modes == ["force_generic_plan", "auto"]


async def test_jobs_use_plans_for_their_arguments(database_url: str) -> None:
    # With a generic plan, each scan of the audit chain would read a third of the log.
    database = await Database.connect(database_url, role=RELAY_ROLE, size=1, acquire_seconds=5, statement_seconds=5)
    async with database.unscoped() as connection:
        row = await connection.fetch_one(PLANNING)
    await database.close()

    assert row is not None
    assert row["plan_cache_mode"] == "auto"
