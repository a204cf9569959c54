"""A Citus cluster of one test: its nodes can be killed, stopped with SIGSTOP and started again, and nodes be added.

`TEST_CITUS_BIN` is the folder of the programs of a PostgreSQL that has the extension Citus.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import IO, Self

import asyncpg
import psutil

from gateway.database.database import APP_ROLE, RELAY_ROLE
from gateway.database.migrate import migrate
from tests.gateways import free_port
from tests.waiting import wait_until

PROGRAMS = os.environ.get("TEST_CITUS_BIN")

IS_ROOT = os.geteuid() == 0
ACCOUNT = "postgres"
"""The account of the servers if the tests run as root."""

SHARDS = 8
"""Shards of each table: several for each node, and quicker to create and to move than Citus's 32."""

# Transactions prepared by a node that was killed are finished after a second instead of a minute.
CONFIGURATION = """
shared_preload_libraries = 'citus'
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
max_prepared_transactions = 200
max_worker_processes = 40
max_wal_senders = 20
max_replication_slots = 20
wal_level = logical
shared_buffers = 32MB
jit = off
citus.shard_count = {shards}
citus.recover_2pc_interval = 1s
"""

PATIENTS = [f"patient-{number}" for number in range(40)]
"""Made-up patients of the brand `loop`: several for each node."""

PORT_OF_PATIENT = """
SELECT nodeport FROM pg_dist_placement JOIN pg_dist_node USING (groupid)
WHERE shardid = get_shard_id_for_distribution_column('patient_graph.patients', $1::text)
"""


class CitusNode:
    """A PostgreSQL server of the cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the node's database, as a superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    async def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        assert PROGRAMS is not None
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._process = _popen([f"{PROGRAMS}/postgres", "-D", self.folder, "-p", str(self.port)], log)
        await wait_until(self.answers, 120)

    async def answers(self) -> bool:
        """Whether the server accepts a connection."""
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            connection = await asyncpg.connect(self.url, timeout=5)
            await connection.close()
            return True
        return False

    def processes(self) -> list[psutil.Process]:
        """Return the server's processes, the parent first."""
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children()]
        return []

    async def kill(self) -> None:
        """Kill every process of the server with SIGKILL."""
        processes = self.processes()
        self._send(processes, signal.SIGKILL)
        assert self._process is not None
        await asyncio.to_thread(self._process.wait)
        await wait_until(lambda: not any(_runs(each) for each in processes))

    def pause(self) -> None:
        """Stop every process of the server with SIGSTOP: the kernel accepts connections that get no answer."""
        # The parent first, so that no process starts after the others were listed.
        self._send(self.processes()[:1], signal.SIGSTOP)
        self._send(self.processes()[1:], signal.SIGSTOP)

    def resume(self) -> None:
        """Let the processes continue after `pause`."""
        self._send(self.processes(), signal.SIGCONT)

    async def stop(self) -> None:
        """Stop the server, if it runs."""
        assert self._process is not None
        if self._process.poll() is None:
            self.resume()
            self._process.send_signal(signal.SIGQUIT)
            await asyncio.to_thread(self._process.wait)

    @staticmethod
    def _send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
        for each in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # helper processes start and end at any time
                each.send_signal(number)


class CitusServers:
    """A coordinator and its workers, with the tables of the gateway and `PATIENTS`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[CitusNode] = []

    @property
    def coordinator(self) -> CitusNode:
        """The coordinator. It has no shards."""
        return self.nodes[0]

    @property
    def workers(self) -> Sequence[CitusNode]:
        """The nodes with shards, and added nodes that have none yet."""
        return self.nodes[1:]

    @property
    def url(self) -> str:
        """The URL of the coordinator, as a superuser."""
        return self.coordinator.url

    @classmethod
    @contextlib.asynccontextmanager
    async def migrated(cls, workers: int = 2) -> AsyncIterator[Self]:
        """Start a cluster with the current tables, and stop it at the end."""
        # Not in pytest's folder, which only its owner can enter.
        with tempfile.TemporaryDirectory(prefix="gateway-citus-") as folder:
            if IS_ROOT:
                shutil.chown(folder, ACCOUNT, ACCOUNT)
            servers = cls(Path(folder))
            try:
                await servers._create(1 + workers)
                yield servers
            finally:
                await asyncio.gather(*(each.stop() for each in servers.nodes))

    async def _create(self, number: int) -> None:
        for _ in range(number):
            await self._add_server()
        async with self.connection() as connection:
            await connection.execute("SELECT citus_set_coordinator_host('127.0.0.1', $1)", self.coordinator.port)
            for node in self.workers:
                await connection.execute("SELECT citus_add_node('127.0.0.1', $1)", node.port)
        await migrate(self.url)
        async with self.connection() as connection:
            await connection.executemany(
                "INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')",
                [(each,) for each in PATIENTS],
            )

    async def _add_server(self) -> CitusNode:
        """Start another server, with the extension and the roles that nodes log in with."""
        assert PROGRAMS is not None
        node = CitusNode(self.folder / f"node{len(self.nodes)}")
        options = "-U postgres -E UTF8 --locale=C.UTF-8 -A trust --no-sync"
        created = _popen([f"{PROGRAMS}/initdb", "-D", node.folder, *options.split()], subprocess.DEVNULL)
        assert await asyncio.to_thread(created.wait) == 0
        with (node.folder / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION.format(shards=SHARDS))
        await node.start()
        self.nodes.append(node)
        connection = await asyncpg.connect(node.url)
        await connection.execute(
            "CREATE EXTENSION citus; SET citus.enable_ddl_propagation = off;"
            f"CREATE ROLE {APP_ROLE} LOGIN; CREATE ROLE {RELAY_ROLE} LOGIN"
        )
        await connection.close()
        return node

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Yield a connection to the coordinator as a superuser."""
        connection = await asyncpg.connect(self.url)
        try:
            yield connection
        finally:
            await connection.close()

    async def patients_of(self, node: CitusNode) -> list[str]:
        """Return the patients whose shards are on the node."""
        async with self.connection() as connection:
            ports = {each: await connection.fetchval(PORT_OF_PATIENT, each) for each in PATIENTS}
        return [each for each, port in ports.items() if port == node.port]

    async def add_node(self) -> CitusNode:
        """Add a node. It gets no shards before `rebalance`."""
        node = await self._add_server()
        async with self.connection() as connection:
            await connection.execute("SELECT citus_add_node('127.0.0.1', $1)", node.port)
        return node

    async def rebalance(self, mode: str = "block_writes") -> None:
        """Move shards until every node has as many.

        `mode`: `block_writes` blocks writes to a shard while it is copied, `force_logical` only at the end.
        """
        async with self.connection() as connection:
            await connection.execute(
                "SELECT rebalance_table_shards(shard_transfer_mode => $1::citus.shard_transfer_mode)", mode
            )

    async def prepared(self) -> int:
        """Return the number of prepared transactions of the nodes that run."""
        number = 0
        for node in self.nodes:
            if not node.processes():
                continue
            connection = await asyncpg.connect(node.url)
            number += await connection.fetchval("SELECT count(*) FROM pg_prepared_xacts")
            await connection.close()
        return number


def _popen(command: Sequence[str | Path], output: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program of PostgreSQL, which refuses to run as root."""
    account = ACCOUNT if IS_ROOT else None
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=output,
        cwd="/",
        user=account,
        group=account,
        extra_groups=[] if IS_ROOT else None,
    )


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
