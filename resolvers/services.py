"""Interfaces of what the process supplies to the resolvers, and `Services`, which carries one of each.

The implementations live in `gateway/`: database, batcher, feed, audit buffer, metrics, rate limits and verifier.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from models import Encounter, EncounterType
from resolvers.access import DEFAULT_SCOPES, ActorType, Scopes, Verify
from resolvers.answer_bytes import AnswerMemory
from resolvers.commands import DEFAULT_LIMITS, InputLimits
from resolvers.feed_cursors import FeedCursors
from resolvers.outbox import Event, Reads
from resolvers.paging import PageLimits
from resolvers.rate_limits import Rates, Unlimited
from resolvers.sql import Connection, Database


class Live(Protocol):
    """The events of one brand or patient from now on."""

    start: int
    """The position they begin after."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Give them as they come. Raises `TemporarilyUnavailable` when they are not taken as fast."""


class Feed(Protocol):
    """The live end of the outbox: one reader for all who follow in this process."""

    def notify(self) -> None:
        """Say that an event was appended and committed, so that nobody has to wait for it."""

    async def head(self) -> int:
        """Give the position up to which this process has read. Raises `TemporarilyUnavailable`."""

    def follow(self, brand_id: str, patient_id: str | None) -> AbstractContextManager[Live]:
        """Follow the events of a brand, or of one of its patients, for as long as the block lasts."""

    async def cursors(self) -> FeedCursors:
        """Return what writes and reads the cursors of this database. Raises `TemporarilyUnavailable`."""

    def connection(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Borrow a connection of those that only subscribers use, waiting for a turn as long as it takes.

        Raises `TemporarilyUnavailable`.
        """

    def reads(self, position: int) -> Reads:
        """Return where to read what the events up to a position tell of. Such an event must be readable by now."""


class NewEncounter(NamedTuple):
    """One recording, checked and ready to be kept. The members are in the order of `COLUMNS`."""

    patient_id: str
    id: UUID
    provider_id: UUID | None
    encounter_type: EncounterType
    scheduled_at: datetime | None
    chief_complaint: str | None
    notes: str | None
    metadata: str
    entry_id: UUID
    event_id: UUID
    actor_type: str
    actor_id: str
    actor_brand_id: str | None
    request_id: str
    client_id: str
    key: str | None
    request_hash: bytes | None
    answer_head: str | None
    """The first answer in three parts, between which goes the time that only the database knows; None with no key."""
    answer_middle: str | None
    answer_tail: str | None


class Kept(NamedTuple):
    """What came of it."""

    patient_is_known: bool
    created_at: datetime | None
    """When it was recorded; None where it was not: the patient is unknown, or the key is taken."""


class EncounterBatcher(Protocol):
    """Keeps recordings, those that come at the same time together."""

    async def keep(self, brand_id: str, new: NewEncounter) -> Kept:
        """Keep one. Raises `TemporarilyUnavailable` or `OutcomeUnknown`."""


class AuditRecord(NamedTuple):
    """An audit entry that is still to be written. `details` hold nothing that a caller or a person wrote."""

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
    """Where notes are left."""

    def record(self, note: AuditRecord) -> None:
        """Leave a note. Never waits and never raises; when there is no room, the note is counted instead of kept."""


class Metrics(Protocol):
    """Counts; never waits and never raises."""

    def refused(self, code: str) -> None:
        """Count that a caller was refused."""

    def recorded(self, *, replayed: bool) -> None:
        """Count that an encounter was recorded, or found to be recorded already."""


class NullMetrics:
    """Counts nothing."""

    def refused(self, code: str) -> None:
        """Let it pass."""

    def recorded(self, *, replayed: bool) -> None:
        """Let it pass."""


@dataclass(frozen=True, slots=True)
class Services:
    """What exists once per process and is lent to every request."""

    verify: Verify
    database: Database
    published: Callable[[Encounter], bytes]
    """How the published page shows an encounter: what a replay must repeat byte for byte."""
    audit_sink: AuditSink
    feed: Feed
    batcher: EncounterBatcher | None = None
    """Puts recordings that come at the same time into one statement; None where the database is a cluster."""
    rates: Rates = field(default_factory=Unlimited)
    metrics: Metrics = field(default_factory=NullMetrics)
    origins: Mapping[str, Collection[str]] = field(default_factory=dict)
    """From which pages a client may call out of a browser, by client id."""
    scopes: Scopes = field(default_factory=lambda: DEFAULT_SCOPES)
    input_limits: InputLimits = DEFAULT_LIMITS
    page_limits: PageLimits = PageLimits()
    max_cost: int = 25_000
    """How many objects one GraphQL operation may give at most."""
    answers: AnswerMemory = field(default_factory=AnswerMemory)
    """What an answer may take, and all that are under way together."""
    keys_kept_for: timedelta = timedelta(days=7)
    duplicate_window: timedelta = timedelta(hours=1)
    """How long before another an encounter may lie to be called its possible duplicate; 0 is never."""
