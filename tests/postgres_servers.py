"""A PostgreSQL server of one test, which may be killed or filled without effect on other tests."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import psutil

from gateway.database.migrate import migrate
from tests.gateways import ROOT
from tests.waiting import wait_until

OWNER = ROOT / "tests/process/run_postgres.py"


class PostgresServer:
    """A durable embedded server that can be killed, and started again on the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def migrated(cls, folder: Path) -> AsyncIterator[Self]:
        """Start a server with the current tables, and stop it at the end."""
        server = cls(folder)
        await server.start()
        await migrate(server.url)
        yield server
        await server.stop()

    async def start(self) -> None:
        """Start the server, on the data of its folder if there are any."""
        self._owner = await asyncio.create_subprocess_exec(
            sys.executable, OWNER, self.folder, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert self._owner.stdout is not None
        self.url = (await asyncio.wait_for(self._owner.stdout.readline(), 60)).decode().strip()
        assert self.url

    def processes(self) -> list[psutil.Process]:
        """Return the server's processes, the parent first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._owner.pid).children(recursive=True)
            return [each for each in family if each.name() == "postgres" and each.status() != psutil.STATUS_ZOMBIE]
        return []

    async def restart(self) -> None:
        """Stop the server in an orderly way, and start it again."""
        await self.stop()
        await self.start()

    async def kill_and_restart(self) -> None:
        """Kill the server with SIGKILL, and start it again."""
        for each in self.processes()[:1]:
            each.kill()
        self._owner.kill()
        await self._owner.wait()
        await self.start()

    async def kill_backend(self) -> None:
        """Kill the process of one connection: the server ends all other connections and recovers."""
        backends = [each for each in self.processes() if "[local]" in " ".join(each.cmdline())]
        backends[-1].kill()

    async def stop(self) -> None:
        """Stop the server by SIGINT (fast shutdown)."""
        for each in self.processes()[:1]:
            each.send_signal(signal.SIGINT)
        await wait_until(lambda: not self.processes())
        if self._owner.returncode is None:
            self._owner.kill()
            await self._owner.wait()
