"""Interfaces of the services that the process supplies to the resolvers, and `Services`, which holds one of each.

The implementations are in `gateway/`: database, feed, audit buffer, metrics, rate limits and verifier.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from resolvers.access import DEFAULT_SCOPES, ActorType, Scopes, Verify
from resolvers.answer_bytes import AnswerMemory
from resolvers.client_semaphores import Turns
from resolvers.commands import DEFAULT_LIMITS, EventFilter, InputLimits
from resolvers.consistency import Replicas
from resolvers.feed_cursors import FeedCursors
from resolvers.origins import AllowedOrigins
from resolvers.outbox import Event, Reads
from resolvers.paging import PageLimits
from resolvers.rate_limits import Rates, Unlimited
from resolvers.sql import Connection, Database


class Live(Protocol):
    """The live events that match a filter."""

    start: int
    """The position after which they begin."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events as they are published. Raises `TemporarilyUnavailable` if the subscriber is too slow."""


class Feed(Protocol):
    """The live end of the outbox: one reader for all subscribers of this process."""

    def notify(self) -> None:
        """Announce an appended and committed event, so that its delivery does not wait for the next poll."""

    async def head(self) -> int:
        """Return the position up to which this process has read. Raises `TemporarilyUnavailable`."""

    def follow(self, brand_id: str, filters: EventFilter) -> AbstractContextManager[Live]:
        """Subscribe to the events of a brand that match a filter, within the block."""

    async def cursors(self) -> FeedCursors:
        """Return the codec for the cursors of this database. Raises `TemporarilyUnavailable`."""

    def connection(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection reserved for subscribers, waiting without a timeout for a free one.

        Raises `TemporarilyUnavailable`.
        """

    def reads(self, position: int) -> Reads:
        """Return where to read the records of events up to a position, whose event must be readable already."""


class NewEncounter(NamedTuple):
    """One validated recording, ready for insertion."""

    columns: Mapping[str, Any]
    """The row of the encounter, without the times of recording unless it is restored."""
    entry_id: UUID
    event_id: UUID
    actor_type: str
    actor_id: str
    actor_brand_id: str | None
    request_id: str
    client_id: str
    key: str | None
    request_hash: bytes | None
    changes: str = "{}"
    """The changes of the first version, as JSON text (see `resolvers.encounters.history`)."""
    traceparent: str | None = None
    """The running span, which the event's deliveries continue; None without traces."""


class Insertion(NamedTuple):
    """The outcome of an insertion."""

    patient_is_known: bool
    created_at: datetime | None
    """The time of recording; None if nothing was recorded, because the patient is unknown or the key is taken."""


class EncounterBatcher(Protocol):
    """Inserts recordings in batches: concurrent ones share a statement."""

    async def insert(self, brand_id: str, new: NewEncounter) -> Insertion:
        """Insert one recording. Raises `TemporarilyUnavailable` or `OutcomeUnknown`."""


class AuditRecord(NamedTuple):
    """An audit entry that is not yet inserted. `details` contain no text of a caller or a person."""

    event_type: str
    actor_type: ActorType
    actor_id: str
    actor_brand_id: str | None
    entity_type: str
    entity_id: str | None
    patient_id: str
    brand_id: str
    request_id: str
    details: Mapping[str, Any]


class AuditSink(Protocol):
    """Accepts audit records for later insertion."""

    def record(self, note: AuditRecord) -> None:
        """Queue a record. Never waits and never raises; if the queue is full, the record is dropped and counted."""


class Metrics(Protocol):
    """Metrics interface; its methods never wait and never raise."""

    def refused(self, code: str) -> None:
        """Count a refusal."""

    def recorded(self, *, replayed: bool) -> None:
        """Count a recording, or the replay of an earlier one."""


class NullMetrics:
    """Metrics that count nothing."""

    def refused(self, code: str) -> None:
        """Do nothing."""

    def recorded(self, *, replayed: bool) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Worklists:
    """The connections for statements about all patients of a brand, and the limits of their use."""

    database: Database
    """Its statements are planned for their arguments. Raises `TooBroad` for a statement that takes too long."""
    client_turns: Turns
    caller_turns: Turns
    wait_seconds: float
    """Seconds that a statement waits for its turn before it is refused."""
    time_zones: set[str] = field(default_factory=set)
    """The names of the database server's time zones, once they were read."""


@dataclass(frozen=True, slots=True)
class Services:
    """The services of the process, which all requests share."""

    verify: Verify
    database: Database
    """The primary."""
    audit_sink: AuditSink
    feed: Feed
    worklists: Worklists | None = None
    """None in a process without doors, such as an import."""
    replicas: Replicas | None = None
    """Where requests read that change nothing; None if the primary serves every read."""
    batcher: EncounterBatcher | None = None
    """Batches concurrent recordings into one statement; None if the database is a cluster."""
    rates: Rates = field(default_factory=Unlimited)
    metrics: Metrics = field(default_factory=NullMetrics)
    traceparent: Callable[[], str | None] | None = None
    """Returns the running span, in the form of W3C Trace Context; None if traces are off."""
    origins: AllowedOrigins = AllowedOrigins()
    scopes: Scopes = field(default_factory=lambda: DEFAULT_SCOPES)
    input_limits: InputLimits = DEFAULT_LIMITS
    page_limits: PageLimits = PageLimits()
    max_cost: int = 25_000
    """Maximum number of objects that one GraphQL operation may return."""
    answers: AnswerMemory = field(default_factory=AnswerMemory)
    """The limit of one answer's bytes, and the budget of all answers in flight."""
    keys_kept_for: timedelta = timedelta(days=7)
    duplicate_window: timedelta = timedelta(hours=1)
    """Maximum age difference of possible duplicates; 0 disables the check."""
