"""Recordings of a brand that come at the same time are kept by one statement, and one commit."""

from collections.abc import Sequence
from datetime import timedelta

from gateway.together import Together
from resolvers.errors import TemporarilyUnavailable
from resolvers.recording import Kept, NewEncounter, keep_at_once
from resolvers.sql import Database

UNDER_WAY = 2
"""Statements of a brand at once: while one waits for the disk the next is made."""


class Recorder:
    """Keeps recordings of all brands (`resolvers.recording.Recorder`)."""

    def __init__(self, database: Database, kept_for: timedelta, patience_seconds: float) -> None:
        self._database = database
        self._kept_for = kept_for
        self._together = Together(self._keep, patience_seconds, under_way=UNDER_WAY)

    async def keep(self, brand_id: str, new: NewEncounter) -> Kept:
        """Keep one, with those that come at the same time. Raises `TemporarilyUnavailable` or `OutcomeUnknown`.

        Whoever is cancelled waits no longer; what was sent is kept all the same.
        """
        try:
            return await self._together.do(brand_id, new)
        except TimeoutError:
            raise TemporarilyUnavailable from None

    async def _keep(self, brand_id: str, news: Sequence[NewEncounter], within_seconds: float) -> list[Kept]:
        return await keep_at_once(
            self._database, brand_id, news, kept_for=self._kept_for, within_seconds=within_seconds
        )
