"""One PostgreSQL for the run, one database for each worker, one service in this process. No part is mocked.

Tests do not clean up: each registers its own patients (`tests/cast.py`).
"""

import asyncio
import gc
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from gateway.database.database import PoolConnection
from gateway.database.migrate import MIGRATIONS, migrate
from gateway.embedded_postgres.cluster import PrivatePostgres
from gateway.observability.logs import configure_logging
from gateway.settings import Settings
from resolvers.sql import Statement
from tests import citus
from tests.cast import Cast
from tests.doors import Door, GraphQLDoor, RestDoor, Service
from tests.identity_provider import FakeClock, IdentityProvider
from tests.websocket_client import GatewayServer

# Rate limits: tests/http/test_rate_limits.py. A full connection pool: tests/behaviour/test_connection_loss.py.
GENEROUS_LIMITS: dict[str, Any] = {
    "rate_writes_per_minute": 1_000_000,
    "rate_reads_per_minute": 1_000_000,
    "rate_parsing_ms_per_minute": 0,
    "rate_answer_bytes_per_minute": 0,
    "database_acquire_seconds": 30,
}

# The profile of `make fuzz`.
settings.register_profile("fuzz", max_examples=3_000, deadline=None, suppress_health_check=list(HealthCheck))
# A busy machine generates examples slowly and exceeds deadlines. `--hypothesis-profile` replaces this profile.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# A collection of garbage walks the schema, the modules and the tests again: a sixth of the CPU time of a run.
gc.set_threshold(100_000, 50, 100)

SERVER = pytest.StashKey[str]()
"""The URL of a server on which the tests may create databases, as a superuser."""


def pytest_configure(config: pytest.Config) -> None:
    """Start the server once, in the process that controls the workers; workers get its URL."""
    given = citus.COORDINATOR_URL or os.environ.get("TEST_DATABASE_URL")
    url = getattr(config, "workerinput", {}).get("server") or given
    if url is None:
        folder = tempfile.TemporaryDirectory(prefix="gateway-tests-")
        config.add_cleanup(folder.cleanup)
        # The services of each worker keep their connections open: two workers needed more than the default 100.
        postgres = PrivatePostgres(Path(folder.name), durable=False, connections=400)
        postgres.start()
        config.add_cleanup(postgres.stop)
        url = postgres.url()
    config.stash[SERVER] = url
    if citus.COORDINATOR_URL:
        citus.make_cluster_the_default()
    configure_logging()


SLOW = {
    Path(__file__).parent / name
    for name in (
        "process", "browser", "deploy", "javascript", "abuse", "fuzz",
        "behaviour/test_answer_size.py", "behaviour/test_audit.py", "behaviour/test_connection_loss.py",
        "behaviour/test_dry_run.py",
        "database/test_audit_chain.py", "database/test_feed.py", "database/test_indexes.py", "database/test_relay.py",
        "database/test_subscriber_reads.py",
        "graphql/test_audited_reads.py", "graphql/test_event_filters.py", "graphql/test_feed_cursor.py",
        "graphql/test_feed_without_gap.py", "graphql/test_limits.py", "graphql/test_overlapping_fields.py",
        "graphql/test_patient_list.py", "graphql/test_plans.py", "graphql/test_sse.py", "graphql/test_subscriptions.py",
        "graphql/test_websocket.py", "graphql/test_websocket_limits.py",
        "http/test_hosts.py", "http/test_identity_providers.py", "http/test_metrics.py", "http/test_middleware.py",
        "http/test_pipelining.py",
        "http/test_rate_limits.py", "http/test_raw_connections.py", "http/test_tokens.py", "http/test_traces.py",
        "logic/test_discovery.py", "logic/test_http_client.py", "logic/test_import_reader.py",
        "logic/test_json_text.py", "logic/test_jwt.py", "logic/test_token_profiles.py", "logic/test_tokens.py",
    )
}  # fmt: skip
"""Folders and files that take longest. `make test-quick` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and move them to the front: no worker has a long file left when the others are done."""
    for item in items:
        if SLOW.intersection((item.path, *item.path.parents)):
            item.add_marker("slow")
        if citus.COORDINATOR_URL and citus.needs_one_server(item):
            item.add_marker(pytest.mark.skip(reason="of the form of one server"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Exclude what exists by now from collections of garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return two workers for each processor: tests wait for processes and timeouts as long as they compute."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:  # called in the controller of the xdist workers
    node.workerinput["server"] = node.config.stash[SERVER]


def on_database(server_url: str, name: str) -> str:
    """Return the URL of another database on the same server."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


async def create_database(server_url: str, template: str | None = None) -> str:
    """Create an empty database, or a copy of another, and return its URL."""
    name = f"gateway_{uuid4().hex}"
    if citus.is_on_cluster(server_url):
        await citus.create_database_on_nodes(server_url, name)
        return on_database(server_url, name)
    connection = await asyncpg.connect(server_url)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template or 'template0'}")
    await connection.close()
    return on_database(server_url, name)


async def fresh_database(server_url: str) -> str:
    """Return the URL of a new migrated database, in which positions start at one.

    It is a copy of a database that the first caller of all workers migrates. Its name is the hash of the migrations.
    """
    if citus.is_on_cluster(server_url):
        url = await create_database(server_url)
        await migrate(url)
        return url
    migrations = b"".join(path.read_bytes() for path in sorted(MIGRATIONS.rglob("*.py")))
    template = f"gateway_{hashlib.sha256(migrations).hexdigest()[:32]}"
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute("SELECT pg_advisory_lock(hashtext($1))", template)
        if not await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", template):
            url = await create_database(server_url)
            await migrate(url)
            await connection.execute(f"ALTER DATABASE {urlsplit(url).path[1:]} RENAME TO {template}")
    finally:
        await connection.close()
    return await create_database(server_url, template)


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    return request.config.stash[SERVER]


@pytest.fixture(scope="session")
def database_url(server_url: str) -> str:
    """A migrated database for this worker."""
    return asyncio.run(fresh_database(server_url))


@pytest.fixture(scope="session")
async def service_on_a_server(database_url: str) -> AsyncIterator[Service]:
    """The whole service in this process, in development mode."""
    async with Service.running(Settings(database_url=database_url, **GENEROUS_LIMITS)) as running:
        yield running


@pytest.fixture(scope="session")
async def service_on_a_cluster(database_url: str) -> AsyncIterator[Service]:
    """The same service with `database_cluster`, which records statement by statement."""
    async with Service.running(
        Settings(database_url=database_url, database_cluster=True, **GENEROUS_LIMITS)
    ) as running:
        yield running


@pytest.fixture(scope="session")
def service(service_on_a_server: Service) -> Service:
    return service_on_a_server


@pytest.fixture(params=["one statement", "statement by statement"])
def service_in_either_form(
    request: pytest.FixtureRequest, service_on_a_server: Service, service_on_a_cluster: Service
) -> Service:
    """The service, recording in one statement and statement by statement."""
    return service_on_a_server if request.param == "one statement" else service_on_a_cluster


@pytest.fixture(scope="session")
async def subgraph(database_url: str) -> AsyncIterator[Service]:
    """The service as a subgraph of a federation."""
    async with Service.running(Settings(database_url=database_url, federation=True, **GENEROUS_LIMITS)) as running:
        yield running


@pytest.fixture(scope="session")
async def gateway_url(database_url: str) -> AsyncIterator[str]:
    """The URL of a listening service that accepts batches, for clients from package registries."""
    settings = Settings(database_url=database_url, batch_operations=10, **GENEROUS_LIMITS)
    async with GatewayServer.serving(settings) as serving:
        yield f"http://127.0.0.1:{serving.port}"


@pytest.fixture(scope="session")
async def cast(database_url: str) -> AsyncIterator[Cast]:
    """Invented patients, and direct access to the tables."""
    connection = await asyncpg.connect(database_url)
    yield Cast(connection)
    await connection.close()


@pytest.fixture(scope="session")
async def identity_provider() -> AsyncIterator[IdentityProvider]:
    async with IdentityProvider.running() as running:
        yield running


@pytest.fixture
def provider(identity_provider: IdentityProvider) -> IdentityProvider:
    """The identity provider, in its initial state."""
    identity_provider.reset()
    return identity_provider


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=[RestDoor, GraphQLDoor], ids=["rest", "graphql"])
def other_door(request: pytest.FixtureRequest, service: Service) -> Door:
    """A second door: with `door`, every pair of doors."""
    door: Door = request.param(service)
    return door


@pytest.fixture(params=[RestDoor, GraphQLDoor], ids=["rest", "graphql"])
def door(request: pytest.FixtureRequest, service: Service) -> Door:
    """Either door."""
    door: Door = request.param(service)
    return door


_sent: ContextVar[list[str] | None] = ContextVar("sent", default=None)


@pytest.fixture
async def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that this test sends to the database, in order; not those of background jobs."""
    original = PoolConnection._rows
    sent: list[str] = []

    async def send(self: PoolConnection, statement: Statement, values: dict[str, object]) -> Any:
        if _sent.get() is sent:
            sent.append(statement.text)
        return await original(self, statement, values)

    monkeypatch.setattr(PoolConnection, "_rows", send)
    _sent.set(sent)
    return sent
