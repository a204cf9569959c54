"""The position of the primary and of each replica in the write-ahead log, by polls.

A replica is left out while it does not answer, is no standby, follows another timeline than the primary's, or is too
far behind.
"""

import asyncio
import logging
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple

import asyncpg

from gateway.database.database import UNAVAILABLE, Database
from gateway.database.session import RELIED_ON, Session, SessionFactory
from gateway.observability.metrics import REPLICA_IN_USE, REPLICA_LAG_BYTES, REPLICA_LAG_SECONDS
from resolvers.batcher import MicroBatcher
from resolvers.consistency import Marker

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 0.6
"""Seconds that a server may take to answer a poll. Polls are 0.2 seconds apart, so a silent
replica is left out within a second."""

SILENT_SECONDS = 1.0
"""Seconds after its last answer until a replica is left out, whatever the polls do."""

SAMPLE_SECONDS = 0.1
"""Seconds between two recorded positions of the primary, by which the lag of a replica is measured."""

SAMPLES = 1_500
"""Positions of the primary that are kept: of 150 seconds, more than the longest lag that may be configured."""

# The timeline is that of the last restart point, which may be five minutes old after a failover. A login that may read
# pg_stat_wal_receiver (pg_read_all_stats) also sees the timeline that is received now.
REPLICA = """
SELECT
    pg_is_in_recovery() AS is_standby,
    (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint AS position,
    greatest(
        (SELECT timeline_id FROM pg_control_checkpoint()), (SELECT received_tli FROM pg_stat_wal_receiver)
    ) AS timeline,
    (SELECT system_identifier FROM pg_control_system()) AS system
"""

# The name of a file of the log begins with the timeline, in hexadecimal digits. Unlike the control file, it names a new
# timeline from the first moment. The statement fails on a standby.
PRIMARY = """
SELECT
    (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint AS position,
    left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
    (SELECT system_identifier FROM pg_control_system()) AS system
"""

FAILED = (*UNAVAILABLE, asyncpg.PostgresError)
"""Errors of a statement on a replica. Among them is a conflict with the replay of the log (40001)."""


class Problem(StrEnum):
    """Why a replica is left out."""

    STARTING = "not polled yet"
    SILENT = "does not answer"
    NO_STANDBY = "is no standby"
    OTHER_CLUSTER = "is no copy of the primary"
    OTHER_TIMELINE = "does not follow the primary's timeline"
    BEHIND = "is too far behind"


class _Sample(NamedTuple):
    position: int
    at: float


class Primary:
    """The primary's position in the log, read by a connection of its own."""

    def __init__(self, url: str) -> None:
        self._sessions = SessionFactory(url, RELIED_ON)
        self._session: Session | None = None
        # A read that has begun may be older than the change of a later caller, so that caller gets the next one.
        self._positions: MicroBatcher[None, None, Marker] = MicroBatcher(
            self._read_for, ANSWER_SECONDS, max_in_flight=1
        )
        self.timeline = 0
        self.system: int | None = None
        self._answered_at = -math.inf
        self.samples: deque[_Sample] = deque(maxlen=SAMPLES)
        """Positions of the current timeline and when they were read, oldest first."""

    async def position(self) -> Marker:
        """Return the current position, after all changes that were committed before the call.

        Raises one of `FAILED`.
        """
        return await self._positions.do(None, None)

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            self._session.terminate()

    async def _read_for(self, _group: None, callers: Sequence[None], _within_seconds: float) -> list[Marker]:
        try:
            return [await self._read()] * len(callers)
        except asyncpg.PostgresError as error:
            # The batcher would ask again for each caller.
            raise ConnectionError from error

    async def _read(self) -> Marker:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if self._session is None or self._session.is_closed():
                    self._session = await self._sessions.open_anyway()
                row = await self._session.fetchrow(PRIMARY)
        except BaseException:
            if self._session is not None:
                self._session.terminate()
            raise
        assert row is not None, "the statement returns one row"
        marker = Marker(int(row["timeline"], 16), row["position"])
        self._note(marker)
        self.system = row["system"]
        return marker

    def _note(self, marker: Marker) -> None:
        self._answered_at = now = asyncio.get_running_loop().time()
        if marker.timeline != self.timeline:
            self.timeline = marker.timeline
            self.samples.clear()
        if not self.samples or now - self.samples[-1].at >= SAMPLE_SECONDS:
            self.samples.append(_Sample(marker.position, now))

    def lag_seconds(self, position: int) -> float:
        """Return for how long a replica at this position has not had all changes. Infinite if it never had them.

        All times are this process's, so the clocks of the servers need not agree. While the primary does not answer,
        the lag does not grow.
        """
        reached = bisect_right(self.samples, position, key=attrgetter("position"))
        if reached == 0:
            return math.inf
        if reached == len(self.samples):
            return 0.0
        return self._answered_at - self.samples[reached - 1].at

    def lag_bytes(self, position: int) -> int:
        """Return how far the primary was ahead of this position when it last answered."""
        return max(0, self.samples[-1].position - position) if self.samples else 0


class Replica:
    """One replica: its pools, and what the last poll found."""

    def __init__(self, name: str, url: str, requests: Database, worklists: Database) -> None:
        self.name = name
        self.requests = requests
        self.worklists = worklists
        self.position = 0
        self.timeline = 0
        self.problem: Problem | None = Problem.STARTING
        self.hurry = asyncio.Event()
        """Set to poll now."""
        # As the login, which may be allowed more statistics than the role that serves.
        self._sessions = SessionFactory(url, RELIED_ON, may_be_standby=True)
        self._session: Session | None = None
        self._answered_at = -math.inf
        self._failures = 0
        # So that a replica that never answers has all its metrics.
        for gauge in (REPLICA_IN_USE, REPLICA_LAG_BYTES, REPLICA_LAG_SECONDS):
            gauge.labels(name).set(0)

    def is_in_use(self, timeline: int) -> bool:
        """Whether reads may be sent to the replica, if the primary is on this timeline."""
        if self.problem is not None or self.timeline != timeline:
            return False
        # A server that restarts ends this connection, and may come back at an earlier position.
        is_connected = self._session is not None and not self._session.is_closed()
        return is_connected and asyncio.get_running_loop().time() - self._answered_at <= SILENT_SECONDS

    async def poll(self, primary: Primary, max_lag_seconds: float) -> None:
        """Ask the replica for its position, and decide whether it is left out."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if self._session is None or self._session.is_closed():
                    self._session = await self._sessions.open_anyway()
                row = await self._session.fetchrow(REPLICA)
        except (*FAILED, ValueError) as error:  # the second: the URL names no user
            if self._session is not None:
                self._session.terminate()
            self._failures += 1
            if self._failures > 1 or not isinstance(error, TimeoutError):
                # One late answer may be this process's own delay. Otherwise the statements in flight are repeated on
                # the primary now, not when they time out.
                self.requests.terminate()
                self.worklists.terminate()
            self._decide(Problem.SILENT)
            return
        assert row is not None, "the statement returns one row"
        self._failures = 0
        self._answered_at = asyncio.get_running_loop().time()
        self.position, self.timeline = row["position"] or 0, row["timeline"]
        lag_seconds = primary.lag_seconds(self.position)
        if not row["is_standby"]:
            self._decide(Problem.NO_STANDBY)
        elif primary.system is None:
            self._decide(Problem.STARTING)
        elif row["system"] != primary.system:
            self._decide(Problem.OTHER_CLUSTER)
        elif self.timeline != primary.timeline:
            self._decide(Problem.OTHER_TIMELINE)
        else:
            REPLICA_LAG_BYTES.labels(self.name).set(primary.lag_bytes(self.position))
            REPLICA_LAG_SECONDS.labels(self.name).set(lag_seconds)
            self._decide(Problem.BEHIND if lag_seconds > max_lag_seconds else None)

    def fail(self) -> None:
        """Leave the replica out until the next poll: a connection to it was lost."""
        self._decide(Problem.SILENT)
        self.hurry.set()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            self._session.terminate()
        await asyncio.gather(self.requests.close(), self.worklists.close())

    def _decide(self, problem: Problem | None) -> None:
        REPLICA_IN_USE.labels(self.name).set(problem is None)
        if problem is not self.problem:
            self.problem = problem
            level = logging.INFO if problem is None else logging.WARNING
            logger.log(level, "replica", extra={"replica": self.name, "reason": problem or "in use"})
