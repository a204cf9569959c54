"""The doorbell: `LISTEN` and `NOTIFY` tell every gateway at once that there is something to read.

It is a wake-up and no more: whoever hears it reads the tables, and reads them now and then without having heard it.
So a ring may be lost, with the connection or on a pooler that cannot pass it on, and nothing is but a second.
"""

import asyncio
import contextlib

import asyncpg

from gateway.database.database import UNAVAILABLE
from gateway.database.session import open_session
from gateway.observability.logs import describe, log
from resolvers.outbox import APPENDED, MOVED

# A ring is a transaction of its own, not a statement in that of the recording: a commit that notifies takes a lock
# that every other such commit waits for. The first ring goes out at once, those of the next moment together.
QUIET_SECONDS = 0.05
RECONNECT_SECONDS = 1.0
# A connection that died without a word is found out by the ring nobody asked for.
LONGEST_SILENCE_SECONDS = 30.0
PATIENCE_SECONDS = 5.0

RING = f"SELECT pg_notify('{APPENDED}', '')"


class Notifier:
    """One connection of this process that listens for all its parts, and rings for them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._bells: dict[str, list[asyncio.Event]] = {APPENDED: [], MOVED: []}
        self._wanted = asyncio.Event()

    def subscribe(self, wakeup: asyncio.Event, channel: str) -> asyncio.Event:
        """Set this event whenever the channel is rung, and give it back."""
        self._bells[channel].append(wakeup)
        return wakeup

    def notify(self) -> None:
        """Say that events were appended and committed, to every gateway, very soon."""
        self._wanted.set()

    async def run(self) -> None:
        """Listen and ring until cancelled, whatever becomes of the connection."""
        while True:
            try:
                await self._listen()
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                log.warning("doorbell", **describe(error))
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self) -> None:
        connection = await open_session(
            self._url, {"application_name": "encounter-gateway doorbell"}, timeout=PATIENCE_SECONDS
        )
        try:
            connection.add_termination_listener(lambda _: self.notify())
            for channel in self._bells:
                await connection.add_listener(channel, self._heard)
            # Nothing was heard while nobody listened.
            self.notify()
            for channel in self._bells:
                self._heard(connection, 0, channel, "")
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_SILENCE_SECONDS):
                        await self._wanted.wait()
                self._wanted.clear()
                await connection.execute(RING, timeout=PATIENCE_SECONDS)
                await asyncio.sleep(QUIET_SECONDS)
        finally:
            connection.terminate()

    def _heard(self, _connection: object, _pid: int, channel: str, _payload: object) -> None:
        for wakeup in self._bells[channel]:
            wakeup.set()
