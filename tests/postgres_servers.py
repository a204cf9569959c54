"""A PostgreSQL of a test's own, for what must not be done to the one that all tests share."""

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import psutil

from tests.gateways import ROOT
from tests.waiting import wait_until

OWNER = ROOT / "tests/process/run_postgres.py"


class PostgresServer:
    """One that may be killed and is started again on the same folder. It is durable, as a private one is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""

    async def start(self) -> None:
        """Start it, or start it again on what is in its folder."""
        self._owner = await asyncio.create_subprocess_exec(
            sys.executable, OWNER, self.folder, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert self._owner.stdout is not None
        self.url = (await asyncio.wait_for(self._owner.stdout.readline(), 60)).decode().strip()
        assert self.url

    def processes(self) -> list[psutil.Process]:
        """Give the server's processes, the first one first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._owner.pid).children(recursive=True)
            return [each for each in family if each.name() == "postgres" and each.status() != psutil.STATUS_ZOMBIE]
        return []

    async def restart(self) -> None:
        """Stop it as an administrator would, and start it again."""
        await self.stop()
        await self.start()

    async def kill_and_restart(self) -> None:
        """Kill it as a machine without memory would, and start it again."""
        for each in self.processes()[:1]:
            each.kill()
        self._owner.kill()
        await self._owner.wait()
        await self.start()

    async def kill_backend(self) -> None:
        """Kill the process of one connection: the server ends all the others too, and recovers by itself."""
        backends = [each for each in self.processes() if "[local]" in " ".join(each.cmdline())]
        backends[-1].kill()

    async def stop(self) -> None:
        """Stop it: its sessions are ended, and it ends in order."""
        for each in self.processes()[:1]:
            each.send_signal(signal.SIGINT)
        await wait_until(lambda: not self.processes())
        if self._owner.returncode is None:
            self._owner.kill()
            await self._owner.wait()
