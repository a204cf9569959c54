"""Failures of the database under load: every answer is compared with the tables afterwards.

For each fault: no answer contradicts the tables, none is a 500, and the gateway recovers without a restart.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
import psutil
import pytest

from tests.conftest import fresh_database
from tests.gateways import (
    DOORS,
    Gateway,
    Load,
    client,
    encounters_by_key,
    gateways,
    is_ready,
    owner_connection,
    wrong_answers,
)
from tests.postgres_servers import PostgresServer
from tests.waiting import wait_until

IMPATIENT = {"GATEWAY_DATABASE_ACQUIRE_SECONDS": "1"}


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[PostgresServer]:
    async with PostgresServer.migrated(tmp_path) as server:
        yield server


@pytest.mark.parametrize("fault", ["kill_and_restart", "restart", "kill_backend"])
async def test_a_database_failure_under_load_is_reported_truthfully(server: PostgresServer, fault: str) -> None:
    async with gateways(server.url, **IMPATIENT) as (gateway,):
        async with Load.on(gateway.origin) as load:
            for _ in range(3):
                so_far = len(load.answers)
                await wait_until(partial(recorded_since, load, so_far))
                await getattr(server, fault)()
                await wait_until(lambda: is_ready(gateway.origin))
            so_far = len(load.answers)
            # The same process records again, without a restart.
            await wait_until(lambda: load.recorded(so_far) >= 20)
        assert gateway.process.poll() is None
        assert unexpected(gateway) == []
        async with owner_connection(server.url) as connection:
            kept = await encounters_by_key(connection)

    assert wrong_answers(load.answers, kept) == []
    assert {answer.status for answer in load.answers} <= {200, 201, 503}
    assert {answer.code for answer in load.answers if not answer.encounter_id} == {"temporarily_unavailable"}
    assert {answer.recorded for answer in load.answers if not answer.encounter_id} <= {"no", "unknown"}


def unexpected(gateway: Gateway) -> list[str]:
    """Return the log lines of unexpected exceptions."""
    return [line for line in gateway.errors().splitlines() if '"event": "unexpected"' in line]


def recorded_since(load: Load, since: int) -> bool:
    return load.recorded(since) >= 20


# Full disk


class SmallDisk:
    """A file system of a few megabytes, and a file that fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.filler = folder / "ballast"

    def fill(self) -> None:
        """Write until no space is left."""
        with self.filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Delete the file that fills the disk."""
        self.filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system can be mounted by root only")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0700", "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("this container may not mount a file system")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
async def server_on_small_disk(small_disk: SmallDisk) -> AsyncIterator[PostgresServer]:
    """A PostgreSQL server on the small disk."""
    async with PostgresServer.migrated(small_disk.folder / "data") as server:
        yield server


async def test_a_full_disk_is_503_until_it_has_space_again(
    small_disk: SmallDisk, server_on_small_disk: PostgresServer
) -> None:
    # Incompressible notes, so that each encounter needs its own pages.
    notes = {"notes": "".join(uuid4().hex for _ in range(600))}
    async with gateways(server_on_small_disk.url, **IMPATIENT) as (gateway,):
        async with Load.on(gateway.origin, clients=4, **notes) as load:
            await wait_until(lambda: load.recorded() >= 10)
            small_disk.fill()
            full = len(load.answers)
            await wait_until(lambda: refused_at(load, full, "rest") and refused_at(load, full, "graphql"))
            small_disk.free()
            # If the WAL could not grow, the server has stopped; an operator would restart it.
            if not server_on_small_disk.processes():
                await server_on_small_disk.start()
            free = len(load.answers)
            await wait_until(lambda: load.recorded(free) >= 10, 60)
        assert gateway.process.poll() is None
        assert unexpected(gateway) == []
        async with owner_connection(server_on_small_disk.url) as connection:
            kept = await encounters_by_key(connection)

    assert wrong_answers(load.answers, kept) == []
    assert {answer.status for answer in load.answers} <= {200, 201, 503}
    assert {answer.code for answer in load.answers if not answer.encounter_id} == {"temporarily_unavailable"}


def refused_at(load: Load, since: int, door: str) -> bool:
    return sum(answer.code is not None and answer.door == door for answer in load.answers[since:]) >= 10


# Locks and timeouts


async def test_requests_for_a_locked_table_are_refused_and_served_afterwards(url: str) -> None:
    async with (
        gateways(url, **IMPATIENT) as (gateway,),
        owner_connection(url) as connection,
        owner_connection(url) as other,
        client() as ours,
    ):
        before = psutil.Process(gateway.process.pid).memory_info().rss
        async with connection.transaction():
            await connection.execute("LOCK TABLE patient_graph.outbox IN ACCESS EXCLUSIVE MODE")
            calls = [asyncio.create_task(DOORS[n % 2](ours, gateway.origin, f"key-{n}")) for n in range(200)]
            # Two statements of up to 64 recordings wait for the table. All other requests are refused meanwhile.
            await wait_until(lambda: sum(call.done() for call in calls) >= 200 - 2 * 64)
            # Requests do not accumulate: another two hundred are refused in the same way.
            again = await asyncio.gather(*(DOORS[n % 2](ours, gateway.origin, f"again-{n}") for n in range(200)))
            after = psutil.Process(gateway.process.pid).memory_info().rss
            # The earlier requests were answered before these, except those in a waiting statement.
            refused = [call.result() for call in calls if call.done()]
        held = [answer for answer in await asyncio.gather(*calls) if answer not in refused]
        assert 0 < len(held) <= 2 * 64
        served = [await DOORS[n % 2](ours, gateway.origin, f"served-{n}") for n in range(20)]
        kept = await encounters_by_key(other)

    assert {
        (answer.code, answer.recorded, answer.retry_after) for answer in [*refused, *again] if answer.door == "rest"
    } == {("temporarily_unavailable", "no", "1")}
    assert {(answer.code, answer.recorded) for answer in [*refused, *again]} == {("temporarily_unavailable", "no")}
    assert all(answer.encounter_id for answer in [*held, *served])
    assert wrong_answers([*refused, *again, *held, *served], kept) == []
    assert after - before < 100 * 1024 * 1024


async def test_a_statement_timeout_is_503_and_nothing_is_recorded(url: str) -> None:
    async with (
        gateways(url, GATEWAY_DATABASE_STATEMENT_SECONDS="1") as (gateway,),
        owner_connection(url) as connection,
        client() as ours,
    ):
        async with connection.transaction():
            await connection.execute("LOCK TABLE patient_graph.encounters IN ACCESS EXCLUSIVE MODE")
            # The lock is held until both are answered, so only the statement timeout can end them.
            answers = await asyncio.gather(*(door(ours, gateway.origin, door.__name__) for door in DOORS))
        kept = await encounters_by_key(connection)
        after = [await door(ours, gateway.origin, door.__name__) for door in DOORS]

    assert answers[0].status == 503
    assert {(each.code, each.recorded) for each in answers} == {("temporarily_unavailable", "no")}
    assert kept == {}
    assert all(each.encounter_id for each in after)


async def test_disconnects_at_any_moment_leave_complete_records_and_a_free_pool(url: str) -> None:
    async with gateways(url, GATEWAY_DATABASE_POOL_SIZE="2") as (gateway,), owner_connection(url) as connection:
        async with client() as ours:
            started = asyncio.get_running_loop().time()
            await DOORS[0](ours, gateway.origin, "warm")
            usual = asyncio.get_running_loop().time() - started
        for number in range(60):
            async with client() as theirs:
                call = asyncio.create_task(DOORS[number % 2](theirs, gateway.origin, f"gone-{number}"))
                # The cancellation falls between before the sending and after the answer.
                await asyncio.wait({call}, timeout=usual * (number % 12) / 8)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
        # The pool has two connections, so a single leaked one would already block.
        async with client() as ours:
            after = await asyncio.gather(*(DOORS[n % 2](ours, gateway.origin, f"after-{n}") for n in range(20)))
        await wait_until(lambda: no_open_transaction(connection))
        kept = await encounters_by_key(connection)  # asserts that each record is complete

    assert all(answer.encounter_id for answer in after)
    assert {answer.key for answer in after} <= kept.keys()


async def no_open_transaction(connection: asyncpg.Connection) -> bool:
    waiting: int = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state LIKE 'idle in transaction%'"
    )
    return waiting == 0
