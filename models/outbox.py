"""An event of the outbox: inserted with the change that it reports, delivered afterwards."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Index, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import Field

from models.base import INSTANT, Table


class OutboxEvent(Table, table=True):
    """One event. The relay assigns its `position`; before that it is not in the feed."""

    __tablename__ = "outbox"
    __table_args__ = (
        # Serves the relay: events without a position, oldest first.
        Index("ix_outbox_created_at_id", "created_at", "id", postgresql_where=text("position IS NULL")),
        # Serves the feed and the sinks: events after a position.
        Index("ix_outbox_position", "position", postgresql_where=text("position IS NOT NULL")),
        # Serves a resuming subscriber: the later events of one brand, among those of all brands.
        Index("ix_outbox_brand_id_position", "brand_id", "position", postgresql_where=text("position IS NOT NULL")),
    )

    patient_id: str = Field(primary_key=True, sa_type=Text)
    id: UUID = Field(primary_key=True)
    brand_id: str = Field(sa_type=Text)
    event_type: str = Field(sa_type=Text)
    payload: str = Field(sa_type=JSONB)
    # Not the transaction's time: of two changes of one record, the one that waits for the other may have begun first.
    created_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("clock_timestamp()")})
    position: int | None = Field(default=None, sa_type=BigInteger)
    published_at: datetime | None = Field(default=None, sa_type=INSTANT)
    """When the position was assigned; the retention period begins here."""
    # Null in events that a version without these columns has appended.
    actor_id: str | None = Field(default=None, sa_type=Text)
    """The actor of the change."""
    provider_ids: list[UUID] | None = Field(default=None, sa_type=ARRAY(Uuid))
    """The encounter's provider before the change and after it: empty without one, two items if the change replaced it.
    """
    encounter_types: list[str] | None = Field(default=None, sa_type=ARRAY(Text))
    """The encounter's type before the change and after it: two items if the change replaced it."""
    traceparent: str | None = Field(default=None, sa_type=Text)
    """The span that made the change (W3C Trace Context); null without traces."""
