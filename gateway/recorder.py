"""Recordings that come at the same time are kept together: one statement, one commit, one wait for the disk.

Nobody waits on a timer. What comes in one turn of the loop goes out at its end, as long as fewer than `UNDER_WAY`
statements of the brand are under way; what comes meanwhile goes out with the next. So a lone recording goes alone and
at once, and the busier the gateway is, the more share a commit. Who waits longer than for a free connection is refused.
"""

import asyncio
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import asyncpg

from resolvers.errors import TemporarilyUnavailable
from resolvers.recording import Kept, NewEncounter, keep_at_once
from resolvers.sql import Database

UNDER_WAY = 2
"""Statements of a brand at once: while one waits for the disk the next is made."""

LEAST_SECONDS = 0.1
"""How long recordings that have waited long may still wait for a connection: a free one is taken by then."""

TOGETHER_AT_MOST = 64
"""Recordings in one statement: enough that the commit is cheap, few enough that nobody waits for many."""


class _Waiting(NamedTuple):
    new: NewEncounter
    kept: asyncio.Future[Kept]
    since: float


class Recorder:
    """Keeps recordings of all brands (`resolvers.recording.Recorder`)."""

    def __init__(self, database: Database, kept_for: timedelta, patience_seconds: float) -> None:
        self._database = database
        self._kept_for = kept_for
        self._patience_seconds = patience_seconds
        self._waiting: dict[str, list[_Waiting]] = {}
        self._under_way: dict[str, set[asyncio.Task[None]]] = {}
        self._watched: set[str] = set()
        """The brands at whose waiting somebody will look again."""

    async def keep(self, brand_id: str, new: NewEncounter) -> Kept:
        """Keep one, with those that come at the same time. Raises `TemporarilyUnavailable` or `OutcomeUnknown`.

        Whoever is cancelled waits no longer; what was sent is kept all the same.
        """
        loop = asyncio.get_running_loop()
        waiting = self._waiting.setdefault(brand_id, [])
        waiting.append(one := _Waiting(new, loop.create_future(), loop.time()))
        if len(waiting) == 1:
            if len(self._under_way.get(brand_id, ())) < UNDER_WAY:
                loop.call_soon(self._send, brand_id)
            else:
                self._watch(brand_id)
        return await one.kept

    def _send(self, brand_id: str) -> None:
        under_way = self._under_way.setdefault(brand_id, set())
        while len(under_way) < UNDER_WAY and (waiting := self._waiting.pop(brand_id, None)):
            # Whoever has gone meanwhile was not sent, and is not.
            together = [one for one in waiting[:TOGETHER_AT_MOST] if not one.kept.done()]
            if rest := waiting[TOGETHER_AT_MOST:]:
                self._waiting[brand_id] = rest
            if together:
                task = asyncio.create_task(self._keep(brand_id, together))
                under_way.add(task)
                task.add_done_callback(partial(self._sent, brand_id))
        if not under_way:
            del self._under_way[brand_id]
        if brand_id in self._waiting:
            # More came at once than are sent at once.
            self._watch(brand_id)

    def _sent(self, brand_id: str, task: asyncio.Task[None]) -> None:
        self._under_way[brand_id].discard(task)
        self._send(brand_id)

    def _watch(self, brand_id: str) -> None:
        """Look again when the first of those who wait has waited too long."""
        if brand_id not in self._watched:
            self._watched.add(brand_id)
            too_long_at = self._waiting[brand_id][0].since + self._patience_seconds
            asyncio.get_running_loop().call_at(too_long_at, self._lose_patience, brand_id)

    def _lose_patience(self, brand_id: str) -> None:
        """Refuse who has waited too long, of whom nothing was sent; look again when the next one has."""
        loop = asyncio.get_running_loop()
        self._watched.discard(brand_id)
        waiting = self._waiting.get(brand_id, [])
        patient = [one for one in waiting if loop.time() < one.since + self._patience_seconds]
        _refuse(waiting[: len(waiting) - len(patient)], TemporarilyUnavailable())
        if patient:
            self._waiting[brand_id] = patient
            self._watch(brand_id)
        else:
            self._waiting.pop(brand_id, None)

    async def _keep(self, brand_id: str, together: list[_Waiting]) -> None:
        waited_seconds = asyncio.get_running_loop().time() - together[0].since
        try:
            kept = await keep_at_once(
                self._database,
                brand_id,
                [one.new for one in together],
                kept_for=self._kept_for,
                within_seconds=max(self._patience_seconds - waited_seconds, LEAST_SECONDS),
            )
        except asyncpg.PostgresError as error:
            if len(together) == 1:
                _refuse(together, error)
                return
            # One row breaks a rule of the database's, and so none was kept. Alone, each is judged for itself.
            for one in together:
                await self._keep(brand_id, [one])
        except Exception as error:  # noqa: BLE001 - whoever waits must be told, whatever it is
            _refuse(together, error)
        else:
            for one, each in zip(together, kept, strict=True):
                if not one.kept.done():
                    one.kept.set_result(each)


def _refuse(together: list[_Waiting], error: Exception) -> None:
    for one in together:
        if not one.kept.done():
            one.kept.set_exception(error)
