"""Back up, restore to a point in time, and what clients then meet: the commands of docs/backup.md."""

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.database.migrate import migrate
from gateway.settings import Settings
from tests.conftest import GENEROUS_LIMITS, create_database
from tests.forked_gateway import run_gateway
from tests.gateways import DEV, PATH, ROOT, VISIT, client
from tests.graphql.test_subscriptions import OverStream
from tests.waiting import wait_until
from tests.websocket_client import GatewayServer

DEBIAN = Path("/usr/lib/postgresql/15/bin")
KEY = "a key of the audit log, 32 bytes"
pytestmark = pytest.mark.skipif(
    not DEBIAN.exists(), reason="PostgreSQL 15 is not installed: apt-get install postgresql-15"
)


def block(language: str, number: int = 0) -> str:
    """Return a block of code of docs/backup.md."""
    page = (ROOT / "docs/backup.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[number]


class Server:
    """A PostgreSQL 15 that archives its WAL, in a folder of its account."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.backup = folder / "data", folder / "backup"
        self.url = f"postgresql://postgres@/postgres?host={folder}&port=5432"
        self._account: dict[str, Any] = (
            {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        )

    def run(self, *command: str | Path, **variables: str) -> None:
        """Run a program as the server's account."""
        environment = {"PATH": f"{DEBIAN}:{os.defpath}", "PGHOST": str(self.folder), "LC_ALL": "C.UTF-8"}
        environment |= {"PGDATA": str(self.data), "BACKUP": str(self.backup)} | variables
        with (self.folder / "log").open("ab") as log:
            subprocess.run(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, check=True, **self._account
            )

    def make(self) -> None:
        """Create the cluster, with the settings of the page."""
        self.run(
            "initdb", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--auth-local=trust", "--no-sync"
        )
        self.run("mkdir", "-p", self.backup / "wal")
        settings = block("ini").replace("/backup", str(self.backup))
        settings += f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\n"
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(settings)

    def start(self) -> None:
        self.run("pg_ctl", "start", "--silent", "--wait", "--log", self.folder / "server.log")

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "--silent", "--mode=fast")


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="backup-") as folder:
        server = Server(Path(folder))
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()


async def record(gateway: GatewayServer, key: str) -> str:
    """Record under a key; return the encounter's id."""
    async with client() as http:
        answer = await http.post(
            f"http://127.0.0.1:{gateway.port}{PATH}",
            json=VISIT,
            headers=DEV | {"idempotency-key": key.replace(" ", "-")},
        )
    assert answer.status_code == 201, answer.text
    encounter_id: str = answer.json()["id"]
    return encounter_id


async def cursor_after(gateway: GatewayServer, key: str) -> str:
    """Record under a key; return the cursor of its event."""
    async with OverStream.follow(gateway) as listener:
        await record(gateway, key)
        cursor: str = (await listener.event())["cursor"]
        return cursor


async def refusal_of(gateway: GatewayServer, cursor: str) -> list[str]:
    async with OverStream.follow(gateway, after=cursor) as listener:
        return [each["rule"] for each in (await listener.refusal())["violations"]]


async def is_promoted(url: str) -> bool:
    connection = await asyncpg.connect(url)
    is_in_recovery = await connection.fetchval("SELECT pg_is_in_recovery()")
    await connection.close()
    return not is_in_recovery


def command(url: str, *words: str) -> tuple[int, str, str]:
    variables: Mapping[str, str] = {
        "GATEWAY_DATABASE_URL": url,
        "GATEWAY_AUDIT_KEY": KEY,
        "PATH": os.defpath,
    }
    return run_gateway(words, env=variables)


async def test_after_a_restore_lost_keys_record_again_and_cursors_expire(server: Server) -> None:
    url = await create_database(server.url)
    await migrate(url)
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ('demo-patient', 'loop')")
    settings = Settings(database_url=url, audit_key=KEY, **GENEROUS_LIMITS)

    async with GatewayServer.serving(settings) as gateway:
        before = await record(gateway, "before the backup")
        await asyncio.to_thread(server.run, "sh", "-euc", block("sh", 0))
        kept = await record(gateway, "kept")
        time = str(await connection.fetchval("SELECT clock_timestamp()"))
        lost = await record(gateway, "lost")
        for number in range(3):
            cursor = await cursor_after(gateway, f"lost {number}")
    # The rest of the WAL is archived.
    await connection.execute("SELECT pg_switch_wal()")
    await connection.close()
    server.stop()
    shutil.rmtree(server.data)
    server.run("sh", "-euc", block("sh", 1), TIME=time)
    server.start()
    await wait_until(lambda: is_promoted(url))

    async with GatewayServer.serving(settings) as gateway:
        assert await refusal_of(gateway, cursor) == ["cursor_expired"], "its position is still ahead"
    assert (await asyncio.to_thread(command, url, "events", "restored"))[0] == 0
    async with GatewayServer.serving(settings) as gateway:
        assert await record(gateway, "before the backup") == before
        assert await record(gateway, "kept") == kept
        assert await record(gateway, "lost") != lost
        for number in range(9):
            new = await cursor_after(gateway, f"after the restore {number}")
        assert await refusal_of(gateway, cursor) == ["cursor_expired"], "its position belongs to another event now"
        async with OverStream.follow(gateway, after=new) as listener:
            encounter_id = await record(gateway, "followed")
            assert (await listener.event())["encounter"]["id"] == encounter_id

    code, output, errors = await asyncio.to_thread(command, url, "audit", "verify")
    assert (code, errors) == (0, ""), output
