"""One PostgreSQL for the run, one database for each worker, one service in this process. Nothing is mocked.

Tests do not clean up after each other: each registers patients of its own (`tests/cast.py`).
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from gateway.database.migrate import migrate
from gateway.embedded_postgres.cluster import PrivatePostgres
from gateway.observability.logs import configure_logging
from gateway.settings import Settings
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

# What `make fuzz` asks for: as many examples as it takes a while to try.
settings.register_profile("fuzz", max_examples=3_000, deadline=None, suppress_health_check=list(HealthCheck))

SERVER = pytest.StashKey[str]()
"""The URL of a server on which the tests may create databases, as a superuser."""


def pytest_configure(config: pytest.Config) -> None:
    """Start the server once, in the process that hands out the tests; workers are told where it is."""
    told = getattr(config, "workerinput", {}).get("server") or os.environ.get("TEST_DATABASE_URL")
    if told is None:
        folder = tempfile.TemporaryDirectory(prefix="gateway-tests-")
        config.add_cleanup(folder.cleanup)
        # Each worker's services keep what they have opened: two workers held more than the usual hundred.
        postgres = PrivatePostgres(Path(folder.name), durable=False, connections=400)
        postgres.start()
        config.add_cleanup(postgres.stop)
        told = postgres.url()
    config.stash[SERVER] = told
    configure_logging()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:  # an xdist worker's controller
    node.workerinput["server"] = node.config.stash[SERVER]


def on_database(server_url: str, name: str) -> str:
    """Give the URL of another database on the same server."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


async def create_database(server_url: str, template: str | None = None) -> str:
    """Create an empty database, or a copy of another, and give its URL."""
    name = f"gateway_{uuid4().hex}"
    connection = await asyncpg.connect(server_url)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template or 'template0'}")
    await connection.close()
    return on_database(server_url, name)


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    return request.config.stash[SERVER]


@pytest.fixture(scope="session")
def database_url(server_url: str) -> str:
    """A migrated database of this worker's own."""

    async def prepared() -> str:
        url = await create_database(server_url)
        await migrate(url)
        return url

    return asyncio.run(prepared())


@pytest.fixture(scope="session")
async def service_on_a_server(database_url: str) -> AsyncIterator[Service]:
    """The whole service in this process, in development mode."""
    async with Service.running(Settings(database_url=database_url, **GENEROUS_LIMITS)) as running:
        yield running


@pytest.fixture(scope="session")
async def service_on_a_cluster(database_url: str) -> AsyncIterator[Service]:
    """The same, in the forms of SQL that a cluster likes."""
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
    """The service, recording in one form and the other: what holds of one holds of the other."""
    return service_on_a_server if request.param == "one statement" else service_on_a_cluster


@pytest.fixture(scope="session")
async def subgraph(database_url: str) -> AsyncIterator[Service]:
    """The service as a subgraph of a federation."""
    async with Service.running(Settings(database_url=database_url, federation=True, **GENEROUS_LIMITS)) as running:
        yield running


@pytest.fixture(scope="session")
async def gateway_url(database_url: str) -> AsyncIterator[str]:
    """The service on a port of this machine, for clients that are not ours; it takes batches. Its address."""
    settings = Settings(database_url=database_url, batch_operations=10, **GENEROUS_LIMITS)
    async with GatewayServer.serving(settings) as serving:
        yield f"http://127.0.0.1:{serving.port}"


@pytest.fixture(scope="session")
async def cast(database_url: str) -> AsyncIterator[Cast]:
    """Made-up patients, and a way to look at the tables behind the doors."""
    connection = await asyncpg.connect(database_url)
    yield Cast(connection)
    await connection.close()


@pytest.fixture(scope="session")
async def identity_provider() -> AsyncIterator[IdentityProvider]:
    async with IdentityProvider.running() as running:
        yield running


@pytest.fixture
def provider(identity_provider: IdentityProvider) -> IdentityProvider:
    """An identity provider that has told nothing yet."""
    identity_provider.forget()
    return identity_provider


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=[RestDoor, GraphQLDoor], ids=["rest", "graphql"])
def other_door(request: pytest.FixtureRequest, service: Service) -> Door:
    """A door to come back through: with `door`, every pair of doors."""
    door: Door = request.param(service)
    return door


@pytest.fixture(params=[RestDoor, GraphQLDoor], ids=["rest", "graphql"])
def door(request: pytest.FixtureRequest, service: Service) -> Door:
    """Either door: a behaviour is written once and holds at both."""
    door: Door = request.param(service)
    return door
