"""A gateway in a process of its own that lets requests go wrong by a seed, on a database that can be looked into."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import asyncpg

from tests.event_helpers import fresh_database

ROOT = Path(__file__).parent.parent


def serve(*arguments: str, stderr: Path, **settings: str) -> subprocess.Popen[str]:
    """Start `gateway serve` with these settings and no others. What it logs goes to a file, so no pipe fills up."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    with stderr.open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", *arguments],
            cwd=ROOT,
            env=environment | {"GATEWAY_PORT": "0", "GATEWAY_DATABASE_UNSAFE": "true"} | settings,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


class FaultyGateway:
    """A rehearsal under way."""

    def __init__(self, welcome: str, log: Path, connection: asyncpg.Connection) -> None:
        self.banner = welcome
        self.origin = re.findall(r"http://127\.0\.0\.1:\d+", welcome)[0]
        self.connection = connection
        self._log = log

    @classmethod
    @asynccontextmanager
    async def running(cls, server_url: str, folder: Path, seed: int) -> AsyncIterator[Self]:
        """Start one, and stop it at the end."""
        url = await fresh_database(server_url)
        log = folder / f"log-{seed}-{url[-8:]}"
        process = serve("--faults", str(seed), stderr=log, GATEWAY_DATABASE_URL=url, GATEWAY_RATE_WRITES_PER_MINUTE="0")
        assert process.stdout is not None
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if '\'{"brand_id"' in line:
                    break
            assert lines, log.read_text()
            connection = await asyncpg.connect(url)
            try:
                yield cls("".join(lines), log, connection)
            finally:
                await connection.close()
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.close()
            process.wait(30)

    @property
    def faults(self) -> Counter[str]:
        """Count what went wrong so far, by what the gateway logged."""
        return Counter(re.findall(r'"fault":"(\w+)"', self._log.read_text()))

    async def recorded(self) -> list[str]:
        """Give the notes of every encounter that was recorded, in order."""
        rows = await self.connection.fetch("SELECT notes FROM patient_graph.encounters ORDER BY notes")
        return [row["notes"] for row in rows]
