"""Databases on a Citus cluster (`TEST_CITUS_URL`), for a run of the tests on one.

Citus keeps its metadata in each database, so a new database is created on every node and joined again.
"""

import os
from collections.abc import Mapping
from unittest import mock
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from gateway.database import session
from gateway.settings import Settings

COORDINATOR_URL = os.environ.get("TEST_CITUS_URL")
"""URL of the coordinator, as a superuser whom every node admits. None: the tests run on one server."""

SHARDS = 4
"""Shards of each table: enough for two nodes, and quicker to create than Citus's 32."""

WAITING_SESSIONS = f"""SELECT count(*) FROM {"citus_stat_activity" if COORDINATOR_URL else "pg_stat_activity"}
WHERE datname = current_database() AND wait_event_type = 'Lock'"""
"""Number of sessions that wait for a lock: on a cluster, on every node."""

BLOCKED_PROCESSES = (
    # A number of all nodes: that of the node, and after it that of the process, with ten digits.
    "SELECT (waiting_gpid % 10000000000)::int AS pid FROM citus_lock_waits"
    if COORDINATOR_URL
    else "SELECT pid FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
)
"""Processes of the server, or of the coordinator, that wait for a lock; on one server, of the asking session."""

NODES = "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid <> 0 AND isactive ORDER BY 1, 2"


def needs_one_server(item: pytest.Item) -> bool:
    """Return whether a test is of the form of one server, by its mark or its parameters."""
    if item.get_closest_marker("one_server"):
        return True
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return False
    values = [value for each in callspec.params.values() for value in (each if isinstance(each, tuple) else (each,))]
    forms = {"a server", "one server"}
    return (
        "one statement" in values
        or callspec.params.get("cluster") is False
        or not forms.isdisjoint(callspec.id.split("-"))
    )


def make_cluster_the_default() -> None:
    """Make every service of this process, and of those that it starts, treat the database as a cluster."""
    os.environ["GATEWAY_DATABASE_CLUSTER"] = "true"
    Settings.model_fields["database_cluster"].default = True
    Settings.model_rebuild(force=True)
    mock.patch.object(session, "is_cluster", return_value=True).start()


def is_on_cluster(url: str) -> bool:
    """Return whether a database is on the cluster of the tests, and not on a server of its own test."""
    return COORDINATOR_URL is not None and _host_of(url) == _host_of(COORDINATOR_URL)


def _host_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def for_gateway(settings: Mapping[str, str]) -> Mapping[str, str]:
    """Return these settings of a gateway process, and that its database is a cluster if it is on one."""
    on_cluster = is_on_cluster(settings.get("GATEWAY_DATABASE_URL", ""))
    return {"GATEWAY_DATABASE_CLUSTER": "true", **settings} if on_cluster else settings


async def create_database_on_nodes(url: str, name: str) -> None:
    """Create a database of a name on the coordinator and on every worker, and join them."""
    coordinator = await asyncpg.connect(url)
    # Joining a node alters roles, which all databases share: two at once fail.
    await coordinator.execute("SELECT pg_advisory_lock(hashtext('gateway tests'))")
    workers = [tuple(row) for row in await coordinator.fetch(NODES)]
    own = urlsplit(url)
    urls = [url, *(urlunsplit(own._replace(netloc=_netloc(own.username, own.password, *node))) for node in workers)]
    for each in urls:
        node = await asyncpg.connect(each)
        await node.execute(f"CREATE DATABASE {name}")
        await node.execute(f"ALTER DATABASE {name} SET citus.shard_count = {SHARDS}")
        await node.close()
        joined = await asyncpg.connect(each, database=name)
        await joined.execute("CREATE EXTENSION citus")
        await joined.close()
    joined = await asyncpg.connect(url, database=name)
    await joined.execute("SELECT citus_set_coordinator_host($1, $2)", own.hostname, own.port)
    for host, port in workers:
        await joined.execute("SELECT citus_add_node($1, $2)", host, port)
    await joined.close()
    await coordinator.close()


def _netloc(user: str | None, password: str | None, host: str, port: int) -> str:
    return f"{user or ''}{f':{password}' if password else ''}@{host}:{port}"
