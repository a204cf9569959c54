"""A Citus cluster: distribute the tables of the migrations, and tell which are distributed and which nodes answer.

The functions take a connection to the coordinator. Source: https://docs.citusdata.com/en/stable/develop/api_udf.html
"""

from collections.abc import Mapping

import asyncpg

from models.distribution import COLUMNS, MANAGED, colocated_with

IS_CLUSTER = "SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL"

UNDISTRIBUTED = """
SELECT name
FROM unnest($1::text[]) WITH ORDINALITY AS tables (name, place)
WHERE to_regclass(name) IS NOT NULL
    AND NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass(name))
ORDER BY place
"""

NODES = """
SELECT nodename || ':' || nodeport AS node, citus_check_connection_to_node(nodename, nodeport) AS answers
FROM pg_dist_node WHERE isactive AND noderole = 'primary' ORDER BY nodeid
"""

CONNECT_SECONDS = 1
"""Seconds for a node to accept a connection; otherwise it counts as away. Nodes are asked one after another."""

CONNECT_QUICKLY = f"SELECT set_config('citus.node_connection_timeout', '{CONNECT_SECONDS}s', true)"

PENDING = "5 minutes"
"""Much longer than `citus.recover_2pc_interval`, the minute after which Citus ends what a lost session has prepared."""

PREPARED = f"""
SELECT coalesce(sum(result::bigint), 0) FROM run_command_on_all_nodes($command$
    SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'citus%' AND prepared < now() - interval '{PENDING}'
$command$) WHERE success
"""  # noqa: S608 - of a constant


async def is_cluster(connection: asyncpg.Connection) -> bool:
    """Return whether the database is the coordinator of a cluster, or could become one: it has the extension."""
    return bool(await connection.fetchval(IS_CLUSTER))


async def undistributed(connection: asyncpg.Connection) -> list[str]:
    """Return the tables that a cluster does not distribute yet, in the order to distribute them. Else nothing."""
    if not await is_cluster(connection):
        return []
    return [row["name"] for row in await connection.fetch(UNDISTRIBUTED, [*COLUMNS, *MANAGED])]


async def distribute(connection: asyncpg.Connection) -> None:
    """Distribute the tables that a cluster does not distribute yet, in one transaction. Else do nothing.

    Those of `MANAGED` stay on the coordinator and are added to the metadata of Citus.
    """
    if not (tables := await undistributed(connection)):
        return
    distributed = [table for table in tables if table in COLUMNS]
    async with connection.transaction():
        for table in distributed:
            await connection.execute(
                "SELECT create_distributed_table($1::text::regclass, $2, colocate_with => $3)",
                table,
                COLUMNS[table],
                colocated_with(table),
            )
        # Rows that were inserted before are copied to the shards. The originals would stay, unseen, on the coordinator.
        for table in reversed(distributed):
            await connection.execute("SELECT truncate_local_data_after_distributing_table($1::text::regclass)", table)
        for table in MANAGED.intersection(tables):
            await connection.execute("SELECT citus_add_local_table_to_metadata($1::text::regclass)", table)


async def nodes(connection: asyncpg.Connection) -> Mapping[str, bool]:
    """Return whether the coordinator reaches each active node, by host and port. The connection is in a transaction."""
    await connection.execute(CONNECT_QUICKLY)
    return {row["node"]: row["answers"] for row in await connection.fetch(NODES)}


async def pending(connection: asyncpg.Connection) -> int:
    """Return the number of transactions of all nodes that have been prepared for `PENDING`. Every node must answer."""
    return int(await connection.fetchval(PREPARED))
