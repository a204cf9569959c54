"""A gateway process with injected faults, and a connection to its database."""

import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import asyncpg

from tests import citus
from tests.conftest import fresh_database
from tests.forked_gateway import ForkedGateway

ROOT = Path(__file__).parent.parent


def serve(*arguments: str, stderr: Path, **settings: str) -> ForkedGateway:
    """Start `gateway serve` with only these settings. Its log goes to a file, because a full pipe would block it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    with stderr.open("w") as log:
        environment |= {"GATEWAY_PORT": "0", "GATEWAY_DATABASE_UNSAFE": "true", **citus.for_gateway(settings)}
        return ForkedGateway(["serve", *arguments], env=environment, stderr=log)


class FaultyGateway:
    """A running gateway with injected faults."""

    def __init__(self, welcome: str, log: Path, connection: asyncpg.Connection) -> None:
        self.banner = welcome
        self.origin = re.findall(r"http://127\.0\.0\.1:\d+", welcome)[0]
        self.connection = connection
        self._log = log

    @classmethod
    @asynccontextmanager
    async def running(cls, server_url: str, folder: Path, seed: int) -> AsyncIterator[Self]:
        """Start a gateway with the faults of `seed`, and stop it at the end."""
        url = await fresh_database(server_url)
        log = folder / f"log-{seed}-{url[-8:]}"
        process = serve("--faults", str(seed), stderr=log, GATEWAY_DATABASE_URL=url, GATEWAY_RATE_WRITES_PER_MINUTE="0")
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
        """The number of injected faults of each kind, from the log."""
        return Counter(re.findall(r'"fault":"(\w+)"', self._log.read_text()))

    async def recorded(self) -> list[str]:
        """Return the notes of every recorded encounter, sorted."""
        rows = await self.connection.fetch("SELECT notes FROM patient_graph.encounters ORDER BY notes")
        return [row["notes"] for row in rows]
