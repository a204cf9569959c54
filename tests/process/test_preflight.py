"""The gateway refuses a database that could lose acknowledged records; `gateway check` reports it."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.forked_gateway import ForkedGateway
from tests.postgres_servers import PostgresServer
from tests.waiting import wait_until

HARMS = {
    "fsync": "a power cut may destroy the whole database",
    "full_page_writes": "a power cut may destroy pages",
    "synchronous_commit": "a power cut may lose encounters that were acknowledged",
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[PostgresServer]:
    async with PostgresServer.migrated(tmp_path) as server:
        yield server


async def run(command: str, url: str | None, **settings: str) -> tuple[int, str]:
    """Run a command of the gateway; return its exit code and output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    environment |= {} if url is None else {"GATEWAY_DATABASE_URL": url}
    environment |= {"GATEWAY_PORT": "0", **settings}
    process = ForkedGateway([command], env=environment)
    output = await asyncio.to_thread(process.output)
    return process.wait(), output


async def set_and_wait(url: str, name: str, value: str) -> None:
    """Change a setting of the whole server and wait until it takes effect."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"ALTER SYSTEM SET {name} = {value}")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()

    async def takes_effect() -> bool:
        another = await asyncpg.connect(url)
        try:
            return await another.fetchval(f"SHOW {name}") == value
        finally:
            await another.close()

    await wait_until(takes_effect)


async def test_each_setting_that_may_lose_acknowledged_records_is_refused(
    server: PostgresServer,
) -> None:
    assert "danger" not in (await run("check", server.url))[1]
    for name, harm in HARMS.items():
        await set_and_wait(server.url, name, "off")

        checked, refused = await run("check", server.url), await run("serve", server.url)

        await set_and_wait(server.url, name, "on")
        for code, output in (checked, refused):
            assert code == 1
            assert f"{name} is off: {harm}" in output
            assert not any(f"{other} is off" in output for other in HARMS.keys() - {name})
        assert "GATEWAY_DATABASE_UNSAFE=true" in refused[1]
        assert "REST" not in refused[1]
    code, output = await run("check", server.url)
    assert "danger" not in output


async def test_check_without_a_database_starts_none(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert (await run("check", None, GATEWAY_DATA_DIR=str(folder)))[0] == 0
    assert not folder.exists()

    folder.mkdir()
    with (folder / "postgres.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = await run("check", None, GATEWAY_DATA_DIR=str(folder))
    assert code == 1
    assert f"Another gateway is using the data folder {folder}" in output

    (tmp_path / "a-file").touch()
    code, output = await run("check", None, GATEWAY_DATA_DIR=str(tmp_path / "a-file" / "data"))
    assert code == 1
    assert "is not writable" in output
