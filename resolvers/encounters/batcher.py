"""Batch the encounters that a brand records at the same time into one statement and one commit.

A statement with several encounters waits only briefly for a lock. If another transaction holds an encounter's key, the
encounter is sent again alone, or with others under the same key. It then waits on one of a few connections.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import NamedTuple
from uuid import UUID

from resolvers.batcher import MicroBatcher
from resolvers.encounters.insert import NO_LOCK_TIMEOUT, insert_at_once
from resolvers.errors import Locked, PatientErased, TemporarilyUnavailable
from resolvers.services import Insertion, NewEncounter
from resolvers.sql import Database

MAX_IN_FLIGHT = 2
"""Statements of a brand in flight; while one waits for the disk, the next is prepared."""

SHARED_LOCK_TIMEOUT, LOCK_TIMEOUT = "50ms", "10ms"
"""Lock timeouts of a statement with several encounters, and with one. The first exceeds the duration of most commits,
so that a duplicate in flight does not split a statement. The second is short, because the encounters of a split
statement are sent one after the other."""

LOCK_WAITERS = 2
"""Connections of a process on which statements wait longer for locks; the rest of the pool stays free."""


class _Lock(NamedTuple):
    """The lock an encounter waits for: its idempotency key, or its own id if it has no key."""

    brand_id: str
    client_id: str
    key: str | UUID


class EncounterBatcher:
    """Insert encounters of all brands (`resolvers.services.EncounterBatcher`).

    Args:
        database: Acts as the application's role.
        kept_for: How long idempotency keys are stored.
        queue_timeout: Seconds that an encounter may wait for a connection.
    """

    def __init__(self, database: Database, kept_for: timedelta, queue_timeout: float) -> None:
        self._database = database
        self._kept_for = kept_for
        self._together: MicroBatcher[str, NewEncounter, Insertion] = MicroBatcher(
            self._insert, queue_timeout, max_in_flight=MAX_IN_FLIGHT
        )
        self._locked: MicroBatcher[_Lock, NewEncounter, Insertion] = MicroBatcher(
            self._insert_locked, queue_timeout, max_in_flight=1
        )
        self._lock_waiters = asyncio.Semaphore(LOCK_WAITERS)

    async def insert(self, brand_id: str, new: NewEncounter) -> Insertion:
        """Insert an encounter, batched with those submitted at the same time.

        Raises `TemporarilyUnavailable` or `OutcomeUnknown`. A cancelled caller stops waiting, but an encounter that was
        already sent is still inserted.
        """
        lock = _lock_of(brand_id, new)
        try:
            # While an encounter waits for its key, another one under the same key would only delay a shared statement.
            if lock not in self._locked:
                with suppress(Locked):
                    return await self._together.do(brand_id, new)
            return await self._locked.do(lock, new)
        except TimeoutError:
            raise TemporarilyUnavailable from None

    async def _insert(self, brand_id: str, news: Sequence[NewEncounter], within_seconds: float) -> list[Insertion]:
        if len(news) > 1:
            return await self._send(brand_id, news, within_seconds, SHARED_LOCK_TIMEOUT)
        if _lock_of(brand_id, news[0]) in self._locked:
            raise Locked
        return await self._send(brand_id, news, within_seconds, LOCK_TIMEOUT)

    async def _insert_locked(self, lock: _Lock, news: Sequence[NewEncounter], within_seconds: float) -> list[Insertion]:
        async with asyncio.timeout(within_seconds):
            await self._lock_waiters.acquire()
        try:
            return await self._send(lock.brand_id, news, within_seconds, NO_LOCK_TIMEOUT)
        finally:
            self._lock_waiters.release()

    async def _send(
        self, brand_id: str, news: Sequence[NewEncounter], within_seconds: float, lock_timeout: str
    ) -> list[Insertion]:
        send = partial(
            insert_at_once,
            self._database,
            brand_id,
            news,
            kept_for=self._kept_for,
            within_seconds=within_seconds,
            lock_timeout=lock_timeout,
        )
        try:
            return await send()
        except PatientErased:
            # No row of the statement was inserted. The next one no longer finds the patient.
            return await send()


def _lock_of(brand_id: str, new: NewEncounter) -> _Lock:
    return _Lock(brand_id, new.client_id, new.key or new.columns["id"])
