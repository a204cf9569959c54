"""Wake every gateway with PostgreSQL `LISTEN` and `NOTIFY` when there are new events.

A notification is only a wake-up: subscribers read the tables, and also poll them. A notification may be lost with the
connection or behind a pooler that does not support it. This costs at most one polling interval (1 s).
"""

import asyncio
import contextlib
import logging

import asyncpg

from gateway.database.database import UNAVAILABLE
from gateway.database.session import open_session
from gateway.observability.logs import describe
from resolvers.outbox import APPENDED, MOVED

logger = logging.getLogger(__name__)

# Seconds between notifications. A notification has its own transaction instead of the recording's: a commit that
# notifies takes a lock that every other such commit waits for. The first notification is sent at once, those within the
# interval together.
QUIET_SECONDS = 0.05
RECONNECT_SECONDS = 1.0
# Seconds; a NOTIFY at this interval serves as keep-alive and detects a dead connection.
LONGEST_SILENCE_SECONDS = 30.0
TIMEOUT_SECONDS = 5.0

NOTIFY = f"SELECT pg_notify('{APPENDED}', '')"


class Notifier:
    """One connection that listens for all parts of this process, and sends their notifications."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._wakeups: dict[str, list[asyncio.Event]] = {APPENDED: [], MOVED: []}
        self._wanted = asyncio.Event()

    def subscribe(self, wakeup: asyncio.Event, channel: str) -> asyncio.Event:
        """Set `wakeup` on every notification of the channel, and return it."""
        self._wakeups[channel].append(wakeup)
        return wakeup

    def notify(self) -> None:
        """Notify every gateway soon that events were appended and committed."""
        self._wanted.set()

    async def run(self) -> None:
        """Listen and notify until cancelled. A lost connection is opened again."""
        while True:
            try:
                await self._listen()
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                logger.warning("doorbell", extra=describe(error))
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self) -> None:
        connection = await open_session(
            self._url, {"application_name": "encounter-gateway notifier"}, timeout=TIMEOUT_SECONDS
        )
        try:
            connection.add_termination_listener(lambda _: self.notify())
            # Behind a pooler in transaction mode, LISTEN would stay in a session that others use.
            for channel in self._wakeups if connection.keeps_session else ():
                await connection.add_listener(channel, self._on_notification)
            # Notifications were lost while no connection listened.
            self.notify()
            for channel in self._wakeups:
                self._on_notification(connection, 0, channel, "")
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_SILENCE_SECONDS):
                        await self._wanted.wait()
                self._wanted.clear()
                await connection.execute(NOTIFY, timeout=TIMEOUT_SECONDS)
                await asyncio.sleep(QUIET_SECONDS)
        finally:
            connection.terminate()

    def _on_notification(self, _connection: object, _pid: int, channel: str, _payload: object) -> None:
        for wakeup in self._wakeups[channel]:
            wakeup.set()
