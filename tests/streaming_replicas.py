"""A primary and its streaming replicas, with the PostgreSQL of the system and `pg_basebackup`."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import asyncpg
import psutil
import pytest

from gateway.database.migrate import migrate
from tests.gateways import free_port, owner_connection
from tests.waiting import wait_until

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)

needs_postgresql = pytest.mark.skipif(
    PROGRAMS is None or not (PROGRAMS / "pg_basebackup").exists(),
    reason="PostgreSQL is not installed: apt-get install postgresql",
)

LOGIN = "gateway"
"""A login without any privilege but its membership in the gateway's roles."""

OPTIONS = (
    *("-c", "fsync=off"),
    *("-c", "listen_addresses=127.0.0.1"),
    *("-c", "unix_socket_directories="),
    *("-c", "max_standby_streaming_delay=200ms"),
)


class StreamingServer:
    """One server, of the account `postgres` if this process is root's."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """URL of the superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def serving_url(self) -> str:
        """URL of the login that serves."""
        return f"postgresql://{LOGIN}@127.0.0.1:{self.port}/postgres"

    async def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        self._process = await _spawn("postgres", "-D", self.data, "-p", self.port, *OPTIONS)
        await wait_until(self.is_accepting)

    async def is_accepting(self) -> bool:
        """Whether the server accepts connections."""
        try:
            await (await asyncpg.connect(self.url)).close()
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    async def fetch(self, statement: str, *arguments: Any) -> Any:
        """Run a statement as the superuser, and return its first value. Repeated if it conflicts with the replay."""
        while True:
            try:
                async with owner_connection(self.url) as owner:
                    return await owner.fetchval(statement, *arguments)
            except (asyncpg.PostgresConnectionError, asyncpg.SerializationError) as error:
                if "conflict with recovery" not in str(error):
                    raise

    async def copy(self, data: Path) -> "StreamingServer":
        """Make a replica of this server with `pg_basebackup`, and start it."""
        replica = StreamingServer(data)
        # A session of the server itself, so that its name for synchronous replication is known.
        source = f"host=127.0.0.1 port={self.port} user=postgres application_name=replica"
        await _run("pg_basebackup", "-D", data, "-d", source, "-R", "--checkpoint=fast", "--no-sync")
        await replica.start()
        return replica

    def pause(self) -> None:
        """Stop every process of the server, as a machine that hangs does: connections stay open."""
        for each in self._processes():
            each.suspend()

    def resume(self) -> None:
        """Let a paused server go on."""
        for each in self._processes():
            each.resume()

    async def kill(self) -> None:
        """Kill every process of the server."""
        for each in self._processes():
            with suppress(psutil.NoSuchProcess):
                each.kill()
        await self._over()

    async def stop(self) -> None:
        """Stop the server if it runs."""
        if self._process is not None and self._process.returncode is None:
            self.resume()
            self._process.send_signal(signal.SIGINT)
            await self._over()

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    async def _over(self) -> None:
        assert self._process is not None
        async with asyncio.timeout(30):
            await self._process.wait()


class ReplicatedServers:
    """A primary and its replicas."""

    def __init__(self, primary: StreamingServer, replicas: Sequence[StreamingServer]) -> None:
        self.primary = primary
        self.replicas = replicas

    @classmethod
    @asynccontextmanager
    async def running(cls, number: int) -> AsyncIterator[Self]:
        """Start a primary with the current tables and a demo patient, and its replicas."""
        folder = Path(tempfile.mkdtemp(prefix="gateway-replicas-"))
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        servers = [StreamingServer(folder / "primary")]
        try:
            await _run("initdb", "-D", servers[0].data, "-A", "trust", "-U", "postgres", "--no-sync")
            await servers[0].start()
            await migrate(servers[0].url)
            async with owner_connection(servers[0].url) as owner:
                await owner.execute(
                    f"CREATE ROLE {LOGIN} LOGIN; GRANT gateway_app, gateway_relay TO {LOGIN};"
                    " INSERT INTO patient_graph.patients (id, brand_id) VALUES ('demo-patient', 'loop')"
                )
            for each in range(number):
                servers.append(await servers[0].copy(folder / f"replica-{each + 1}"))
            yield cls(servers[0], servers[1:])
        finally:
            for server in reversed(servers):
                await server.stop()
            shutil.rmtree(folder)


async def _spawn(program: str, *arguments: object) -> asyncio.subprocess.Process:
    assert PROGRAMS is not None
    account: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    return await asyncio.create_subprocess_exec(
        PROGRAMS / program,
        *map(str, arguments),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
        **account,
    )


async def _run(program: str, *arguments: object) -> None:
    assert await (await _spawn(program, *arguments)).wait() == 0, program
