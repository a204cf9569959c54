"""The gateway behind PgBouncer: session mode, and transaction mode if the URL names it."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from gateway.database.database import APP_ROLE, RELAY_ROLE, Database
from gateway.database.migrate import migrate
from gateway.database.session import UnusableSession
from gateway.settings import Settings, SettingsError
from resolvers.sql import Row, Statement
from tests.cast import Cast
from tests.conftest import GENEROUS_LIMITS, create_database, fresh_database
from tests.controlled_schema import TOKENS
from tests.doors import Door, GraphQLDoor, RestDoor, Service
from tests.gateways import owner_connection
from tests.graphql.test_subscriptions import gateway_on, record
from tests.process.test_preflight import run
from tests.tcp_proxy import TcpProxy
from tests.waiting import wait_until

# Debian installs it outside the PATH of ordinary users.
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed: apt-get install pgbouncer")

# PgBouncer refuses unknown start-up parameters, or drops them silently if the operator listed them.
IGNORED = ("extra_float_digits", "extra_float_digits, role, statement_timeout, options")

CONFIGURATION = """
[databases]
{database} = host=127.0.0.1 port={server_port} user={login}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
pool_mode = {mode}
ignore_startup_parameters = {ignored}
default_pool_size = {size}
{extra}
"""

VISIT = {"encounter_type": "lab", "notes": "Fasting."}
SETTINGS: dict[str, Any] = {"size": 2, "acquire_seconds": 5, "statement_seconds": 7}
SESSION = Statement(
    "SELECT current_user::text AS role, session_user::text AS login, current_setting('app.brand_id') AS brand,"
    " current_setting('statement_timeout') AS statement_timeout,"
    " current_setting('idle_in_transaction_session_timeout') AS idle_timeout,"
    " current_setting('TimeZone') AS timezone, current_setting('plan_cache_mode') AS plans,"
    " (SELECT count(*) FROM patient_graph.patients WHERE brand_id <> current_setting('app.brand_id')) AS foreign_rows"
)


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


@pytest.fixture
async def login(url: str) -> AsyncIterator[str]:
    """A login that is a member of both roles and has more privileges itself."""
    name = f"login_{uuid4().hex}"
    connection = await asyncpg.connect(url)
    await connection.execute(f"CREATE ROLE {name} LOGIN BYPASSRLS; GRANT {APP_ROLE}, {RELAY_ROLE} TO {name}")
    await connection.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ('a', 'loop'), ('b', 'loopbio')")
    yield name
    await connection.execute(f"DROP ROLE {name}")
    await connection.close()


@asynccontextmanager
async def pgbouncer(
    url: str, login: str, folder: Path, mode: str, *, size: int = 20, ignored: str = IGNORED[0], extra: str = ""
) -> AsyncIterator[str]:
    """Start PgBouncer in front of a database; return the URL through it."""
    assert PGBOUNCER is not None
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    async with TcpProxy.to(url) as (_, server):
        database = urlsplit(url).path[1:]
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            CONFIGURATION.format(
                database=database,
                server_port=urlsplit(server).port,
                login=login,
                port=port,
                mode=mode,
                size=size,
                ignored=ignored,
                extra=extra,
            )
        )
        # PgBouncer refuses to run as root.
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        process = await asyncio.create_subprocess_exec(
            PGBOUNCER, *user, configuration, stderr=asyncio.subprocess.DEVNULL
        )
        through = f"postgresql://{login}@127.0.0.1:{port}/{database}?sslmode=disable"

        async def is_accepting() -> bool:
            assert process.returncode is None
            try:
                await (await asyncpg.connect(through)).close()
            except OSError:
                return False
            return True

        try:
            await wait_until(is_accepting)
            yield through
        finally:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("ignored", IGNORED)
async def test_in_session_mode_role_brand_and_timeouts_hold(url: str, login: str, tmp_path: Path, ignored: str) -> None:
    async with pgbouncer(url, login, tmp_path, "session", ignored=ignored) as through:
        database = await Database.connect(through, role=APP_ROLE, plans_once=True, **SETTINGS)
        seen = []
        for brand in ("loop", "loopbio", "loop"):
            async with database.connection(brand) as one, database.connection(brand) as other:
                seen += [dict(row) for each in (one, other) if (row := await each.fetch_one(SESSION))]
        await database.close()

    brands = ["loop", "loop", "loopbio", "loopbio", "loop", "loop"]
    assert [each.pop("brand") for each in seen] == brands
    assert seen == [
        {
            "role": APP_ROLE, "login": login, "statement_timeout": "7s", "idle_timeout": "7s", "timezone": "UTC",
            "plans": "force_generic_plan", "foreign_rows": 0,
        }
    ] * 6  # fmt: skip


async def test_in_session_mode_a_cancelled_statement_keeps_the_settings(url: str, login: str, tmp_path: Path) -> None:
    async with pgbouncer(url, login, tmp_path, "session") as through:
        database = await Database.connect(through, role=APP_ROLE, **SETTINGS | {"size": 1})

        row = await session_after_a_cancellation(url, database)
        await database.close()

    assert row is not None
    assert (row["role"], row["brand"], row["statement_timeout"], row["timezone"]) == (APP_ROLE, "loopbio", "7s", "UTC")


async def session_after_a_cancellation(url: str, database: Database) -> Row | None:
    """Cancel a running statement of a brand; return the session of the next one, which belongs to another brand."""

    async def hang() -> None:
        async with database.connection("loop") as connection:
            await connection.fetch(Statement("SELECT pg_sleep(30)"))

    hanging = asyncio.create_task(hang())
    async with owner_connection(url) as owner:
        await wait_until(lambda: is_sleeping(owner))
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        async with database.connection("loopbio") as connection:
            row = await connection.fetch_one(SESSION)
        assert not await is_sleeping(owner)
    return row


async def is_sleeping(owner: asyncpg.Connection) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    return await owner.fetchval(query) == 1


async def test_in_session_mode_both_doors_serve_two_brands(url: str, login: str, tmp_path: Path) -> None:
    async with pgbouncer(url, login, tmp_path, "session") as through:
        _, output = await run("check", through)
        assert "does not let us in" not in output
        assert "row-level security" not in output
        async with Service.running(Settings(database_url=through)) as service, owner_connection(url) as owner:
            cast = Cast(owner)
            patients = {"dev": await cast.patient(), "dev-loopbio": await cast.patient("loopbio")}
            brands = {"dev": "loop", "dev-loopbio": "loopbio"}
            for door in (RestDoor(service), GraphQLDoor(service)):
                for token, brand in brands.items():
                    outcomes = {
                        other: await door.record(patients[other], VISIT | {"brand_id": brand}, token=token)
                        for other in brands
                    }
                    assert {other: outcome.code for other, outcome in outcomes.items()} == {
                        other: None if other == token else "not_found" for other in brands
                    }
            assert (await service.rest("GET", "/readyz")).status_code == 200


# Transaction mode


@pytest.fixture(params=["untracked", "tracked"])
async def in_transaction_mode(
    request: pytest.FixtureRequest, url: str, login: str, tmp_path: Path
) -> AsyncIterator[str]:
    """A URL through a pooler with four server connections, which it gives to one transaction at a time.

    Debian's PgBouncer does not track prepared statements. A newer one in the PATH is tested both ways.
    """
    if request.param == "tracked" and version_of_pgbouncer() < (1, 21):
        pytest.skip("this PgBouncer does not track prepared statements")
    extra = "max_prepared_statements = 100" if request.param == "tracked" else ""
    async with pgbouncer(url, login, tmp_path, "transaction", size=4, extra=extra) as through:
        yield f"{through}&pool_mode=transaction&prepared_statements={request.param}"


def version_of_pgbouncer() -> tuple[int, ...]:
    assert PGBOUNCER is not None
    printed = subprocess.run([PGBOUNCER, "--version"], check=True, capture_output=True, text=True).stdout
    return tuple(map(int, re.findall(r"\d+", printed)[:2]))


async def test_in_transaction_mode_each_transaction_has_role_brand_and_timeouts(
    in_transaction_mode: str, login: str
) -> None:
    """Two brands alternate on eight connections of the gateway, which share four of the server."""
    database = await Database.connect(in_transaction_mode, role=APP_ROLE, plans_once=True, **SETTINGS | {"size": 8})
    seen: list[dict[str, Any]] = []

    async def read(number: int) -> None:
        for turn in range(20):
            brand = ("loop", "loopbio")[(number + turn) % 2]
            acquired = (database.connection, database.transaction, database.autocommit)[turn % 3]
            async with acquired(brand) as connection:
                rows = [await connection.fetch_one(SESSION) for _ in range(2)]
            seen.extend({**row, "expected": brand} for row in rows if row is not None)

    await asyncio.gather(*map(read, range(16)))
    await database.close()

    assert len(seen) == 16 * 20 * 2
    assert all(each.pop("brand") == each.pop("expected") for each in seen)
    assert {tuple(each.items()) for each in seen} == {
        (("role", APP_ROLE), ("login", login), ("statement_timeout", "7s"), ("idle_timeout", "7s"), ("timezone", "UTC"),
         ("plans", "force_generic_plan"), ("foreign_rows", 0))
    }  # fmt: skip


async def test_in_transaction_mode_no_setting_stays_in_the_servers_session(in_transaction_mode: str) -> None:
    database = await Database.connect(in_transaction_mode, role=APP_ROLE, **SETTINGS | {"size": 8})
    connections = [database.connection("loop") for _ in range(4)]
    await asyncio.gather(*(each.__aenter__() for each in connections))
    await asyncio.gather(*(each.__aexit__(None, None, None) for each in connections))
    await database.close()

    plain = await asyncpg.connect(in_transaction_mode.partition("&pool_mode")[0], statement_cache_size=0)
    async with plain.transaction():
        left = await plain.fetchrow(
            "SELECT current_user = session_user AS own_role, current_setting('app.brand_id', true) AS brand,"
            " current_setting('statement_timeout') AS statement_timeout,"
            " (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE 'PGBOUNCER%') AS prepared"
        )
    await plain.close()
    assert left is not None
    assert (left["own_role"], left["brand"] or "", left["statement_timeout"], left["prepared"]) == (True, "", "0", 0)


async def test_in_transaction_mode_a_connection_is_usable_after_a_cancellation(
    url: str, in_transaction_mode: str
) -> None:
    database = await Database.connect(in_transaction_mode, role=APP_ROLE, **SETTINGS | {"size": 1})

    row = await session_after_a_cancellation(url, database)
    await database.close()

    assert row is not None
    assert (row["role"], row["brand"], row["statement_timeout"]) == (APP_ROLE, "loopbio", "7s")


async def test_in_transaction_mode_an_error_in_a_transaction_rolls_it_back(url: str, in_transaction_mode: str) -> None:
    database = await Database.connect(in_transaction_mode, role=APP_ROLE, **SETTINGS | {"size": 1})
    for acquired in (database.connection, database.autocommit, database.transaction):
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with acquired("loop") as connection:
                await connection.fetch(Statement("SELECT 1 / 0"))
        async with acquired("loop") as connection:
            assert await connection.fetch_one(SESSION) is not None
    await database.close()

    async with owner_connection(url) as owner:
        idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
        assert await owner.fetchval(idle) == 0


@pytest.mark.parametrize("cluster", [False, True], ids=["one server", "cluster"])
async def test_in_transaction_mode_both_doors_serve_two_brands(
    url: str, in_transaction_mode: str, *, cluster: bool
) -> None:
    _, output = await run("check", in_transaction_mode, GATEWAY_DATABASE_OWNER_URL=url)
    assert "pool_mode" not in output
    assert "row-level security" not in output
    settings = Settings(
        database_url=in_transaction_mode, database_cluster=cluster, **GENEROUS_LIMITS, database_statement_seconds=60
    )
    async with Service.running(settings) as service, owner_connection(url) as owner:
        cast = Cast(owner)
        patients = {"dev": await cast.patient(), "dev-loopbio": await cast.patient("loopbio")}
        brands = {"dev": "loop", "dev-loopbio": "loopbio"}

        async def record(door: Door, token: str, other: str) -> None:
            outcome = await door.record(patients[other], VISIT | {"brand_id": brands[token]}, token=token)
            assert outcome.code == (None if other == token else "not_found")

        await asyncio.gather(
            *(
                record(door, token, other)
                for _ in range(10)
                for door in (RestDoor(service), GraphQLDoor(service))
                for token in brands
                for other in brands
            )
        )
        listed = {
            token: (await service.rest("GET", f"/v1/patients/{patients[token]}/encounters", token=token)).json()
            for token in brands
        }
        assert [len(each["encounters"]) for each in listed.values()] == [20, 20]
        assert (await service.rest("GET", "/readyz")).status_code == 200


async def test_in_transaction_mode_events_reach_a_subscriber(url: str, in_transaction_mode: str) -> None:
    TOKENS.give("dev")
    async with gateway_on(in_transaction_mode) as sockets, owner_connection(url) as owner:
        patient_id = await Cast(owner).patient()
        async with sockets.authenticated() as websocket:
            await websocket.start("events", "subscription { encounterEvents { encounter { id } } }")
            recorded = await record(sockets, patient_id)
            message = await websocket.receive()

    assert message["payload"]["data"]["encounterEvents"]["encounter"]["id"] == recorded


async def test_in_transaction_mode_a_migration_is_refused(server_url: str, login: str, tmp_path: Path) -> None:
    empty = await create_database(server_url)
    async with pgbouncer(empty, login, tmp_path, "transaction", size=4) as through:
        with pytest.raises(SettingsError, match="GATEWAY_DATABASE_OWNER_URL"):
            await migrate(f"{through}&pool_mode=transaction")


@pytest.mark.parametrize("size", [1, 20])
async def test_transaction_mode_is_refused_by_check_and_serve(url: str, login: str, tmp_path: Path, size: int) -> None:
    async with pgbouncer(url, login, tmp_path, "transaction", size=size) as through:
        for command in ("check", "serve"):
            code, output = await run(command, through, GATEWAY_DATABASE_OWNER_URL=url, GATEWAY_DATABASE_UNSAFE="true")
            assert code == 1
            assert "Add pool_mode=transaction to the URL" in output
            assert "Traceback" not in output
            assert "REST" not in output


async def test_two_connections_that_share_a_session_are_both_closed(url: str, login: str, tmp_path: Path) -> None:
    async with pgbouncer(url, login, tmp_path, "transaction", size=1) as through:
        app = await Database.connect(through, role=APP_ROLE, **SETTINGS)
        with pytest.raises(UnusableSession, match="pool_mode = session"):
            await Database.connect(through, "relay", role=RELAY_ROLE, **SETTINGS)

        # The second connection has set its role in the session that the first one used.
        async with app.connection("loop") as connection:
            row = await connection.fetch_one(SESSION)
        await app.close()

    assert row is not None
    assert row["role"] == APP_ROLE
