"""The gateway on a Citus cluster: what each test run can show, and what only a run on a cluster shows."""

import asyncio
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from gateway.check import check
from gateway.database.citus import nodes, undistributed
from gateway.database.database import APP_ROLE, Database
from gateway.database.migrate import migrate
from gateway.database.session import RELIED_ON, open_session
from gateway.settings import Settings
from models import Table
from models.distribution import COLUMNS, LOCAL, MANAGED
from tests import citus
from tests.cast import Cast
from tests.conftest import create_database

on_a_cluster = pytest.mark.skipif(citus.COORDINATOR_URL is None, reason="needs TEST_CITUS_URL")


def as_cluster(url: str) -> str:
    """Return the URL with the parameter of `GATEWAY_DATABASE_CLUSTER`."""
    return f"{url}{'&' if '?' in url else '?'}cluster=true"


def test_every_table_has_a_distribution() -> None:
    assert COLUMNS.keys() | MANAGED | LOCAL == Table.metadata.tables.keys()
    for name, column in COLUMNS.items():
        table = Table.metadata.tables[name]
        assert column in table.primary_key.columns, f"{name}: Citus requires {column} in the primary key"


async def test_a_transaction_sets_the_brand_and_the_timeout_by_commands(database_url: str, cast: Cast) -> None:
    mine, theirs = await cast.patient(), await cast.patient(brand_id="loopbio")
    session = await open_session(as_cluster(database_url), {**RELIED_ON, "statement_timeout": "7000"}, APP_ROLE)

    async def visible(brand_id: str | None) -> list[str]:
        await session.begin(brand_id)
        rows = await session.fetch("SELECT id FROM patient_graph.patients WHERE id = ANY($1)", [mine, theirs])
        assert await session.fetchval("SELECT current_setting('statement_timeout')") == "7s"
        await session.execute("COMMIT")
        return [row["id"] for row in rows]

    assert await visible("loop") == [mine]
    assert await visible("loopbio") == [theirs]
    assert await visible(None) == []
    # A text that is no brand has no rows, and ends no literal.
    assert await visible("loop'; RESET ROLE; --") == []
    await session.begin("loopbio")
    await session.execute("ROLLBACK")
    # Outside a transaction no brand remains.
    assert await session.fetch("SELECT id FROM patient_graph.patients WHERE id = ANY($1)", [mine, theirs]) == []
    await session.close()


async def test_a_single_statement_on_a_cluster_is_a_transaction(database_url: str, cast: Cast) -> None:
    mine, theirs = await cast.patient(), await cast.patient(brand_id="loopbio")
    database = await Database.connect(
        as_cluster(database_url), role=APP_ROLE, size=1, acquire_seconds=30, statement_seconds=30
    )
    for brand_id, patient_id, expected in (("loop", mine, 1), ("loop", theirs, 0), ("loopbio", theirs, 1)):
        async with database._acquired(brand_id) as connection:
            assert connection.is_in_transaction()
            found = await connection.fetch("SELECT FROM patient_graph.patients WHERE id = $1", patient_id)
            assert len(found) == expected
    await database.close()


@on_a_cluster
async def test_ten_processes_distribute_once(server_url: str) -> None:
    url = await create_database(server_url)
    await asyncio.gather(*(migrate(url) for _ in range(10)))
    await migrate(url)
    connection = await asyncpg.connect(url)
    assert await undistributed(connection) == []
    assert all((await nodes(connection)).values())
    found = await connection.fetch(
        "SELECT logicalrelid::text AS name, colocationid, partmethod::text AS method FROM pg_dist_partition"
    )
    assert {row["name"] for row in found if row["method"] == "h"} == COLUMNS.keys()
    assert {row["name"] for row in found if row["method"] == "n"} == MANAGED
    of_patients = {row["colocationid"] for row in found if COLUMNS.get(row["name"]) == "patient_id"}
    assert of_patients == {row["colocationid"] for row in found if row["name"] == "patient_graph.patients"}
    await connection.close()


@on_a_cluster
async def test_the_nodes_show_no_row_without_a_brand(database_url: str, cast: Cast) -> None:
    """Asked directly, as the roles of the application, each node applies the policies to its shards."""
    patient_ids = [await cast.patient() for _ in range(20)]
    coordinator = await asyncpg.connect(database_url)
    placements = await coordinator.fetch(
        "SELECT nodename, nodeport, shard_name FROM citus_shards WHERE table_name = 'patient_graph.patients'::regclass"
    )
    await coordinator.close()
    own = urlsplit(database_url)
    seen = {"": 0, "loop": 0}
    for host, port, shard in placements:
        node = await asyncpg.connect(urlunsplit(own._replace(netloc=f"{own.username}@{host}:{port}")))
        await node.execute(f"SET ROLE {APP_ROLE}; SET citus.override_table_visibility = off")
        for brand_id in seen:
            await node.execute("SELECT set_config('app.brand_id', $1, false)", brand_id)
            seen[brand_id] += await node.fetchval(
                f"SELECT count(*) FROM {shard} WHERE id = ANY($1)",
                patient_ids,
            )
        await node.close()
    assert seen == {"": 0, "loop": len(patient_ids)}


@on_a_cluster
async def test_the_brand_and_the_timeout_reach_the_nodes(database_url: str, cast: Cast) -> None:
    patient_ids = [await cast.patient() for _ in range(20)]
    session = await open_session(as_cluster(database_url), {**RELIED_ON, "statement_timeout": "7000"}, APP_ROLE)
    await session.begin("loop")
    # Each node evaluates the functions for its own rows.
    rows = await session.fetch(
        "SELECT inet_server_port() AS port, current_setting('app.brand_id') AS brand_id,"
        " current_setting('statement_timeout') AS timeout FROM patient_graph.patients WHERE id = ANY($1)",
        patient_ids,
    )
    await session.execute("ROLLBACK")
    await session.close()
    assert len(rows) == len(patient_ids)
    assert {(row["brand_id"], row["timeout"]) for row in rows} == {("loop", "7s")}
    assert urlsplit(database_url).port not in {row["port"] for row in rows}


@on_a_cluster
async def test_the_check_names_the_tables_that_are_not_distributed(
    server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = await create_database(server_url)
    await migrate(url)
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT undistribute_table('patient_graph.idempotency_keys')")
    await connection.close()

    def checked() -> tuple[int, str]:
        return check(Settings(database_url=url, port=0, database_unsafe=True)), capsys.readouterr().out

    _, printed = await asyncio.to_thread(checked)
    assert "not distributed yet: patient_graph.idempotency_keys." in printed
    assert "must be migrated" in printed
    await migrate(url)
    status, printed = await asyncio.to_thread(checked)
    assert status == 0
    assert "every table is distributed; 3 of 3 nodes answer." in printed
