"""How many nodes of a Citus cluster answer, for `/readyz`, the metrics and the errors of worklists."""

import asyncio
import contextlib
import time

from gateway.database.citus import CONNECT_QUICKLY, NODES
from gateway.database.database import Database
from resolvers.errors import TemporarilyUnavailable
from resolvers.request_state import NodeCount
from resolvers.sql import Statement

LOOK_SECONDS = 5.0
"""Seconds between two looks. Each node that is away lengthens a look by `CONNECT_SECONDS`."""

RECENT_SECONDS = 1.0
"""Seconds; a result of this age is used again."""

_CONNECT_QUICKLY, _NODES = Statement(CONNECT_QUICKLY), Statement(NODES)


class NodeMonitor:
    """Ask the coordinator for its nodes, at intervals and on request."""

    def __init__(self, database: Database) -> None:
        """Start to look. `database` is a pool of its own, so that a slow look takes no connection from others."""
        self._database = database
        self._looking = asyncio.Lock()
        self._looked_at = -RECENT_SECONDS
        self._latest: NodeCount | None = None
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop looking, and close the pool."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._database.close()

    async def _watch(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    def latest(self) -> NodeCount | None:
        """Return the last result; None if the coordinator did not answer, or was not asked yet."""
        return self._latest

    async def is_node_away(self) -> bool:
        """Return whether a node does not answer now."""
        count = await self._look()
        return count is None or not count.ok

    async def _look(self) -> NodeCount | None:
        async with self._looking:
            if time.monotonic() - self._looked_at >= RECENT_SECONDS:
                self._latest = await self._ask()
                self._looked_at = time.monotonic()
            return self._latest

    async def _ask(self) -> NodeCount | None:
        with contextlib.suppress(TemporarilyUnavailable):
            async with self._database.transaction(None) as connection:
                await connection.fetch(_CONNECT_QUICKLY)
                rows = await connection.fetch(_NODES)
                return NodeCount(sum(row["answers"] for row in rows), len(rows))
        return None
