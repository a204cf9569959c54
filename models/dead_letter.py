"""A dead letter: an event that a sink did not accept within the retry period."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field

from models.base import INSTANT, Table


class DeadLetter(Table, table=True):
    """One event that one sink did not receive, in full: the outbox may have pruned the event since."""

    __tablename__ = "dead_letters"

    patient_id: str = Field(primary_key=True, sa_type=Text)
    id: UUID = Field(primary_key=True)
    """The event's."""
    sink: str = Field(primary_key=True, sa_type=Text)
    brand_id: str = Field(sa_type=Text)
    event_type: str = Field(sa_type=Text)
    payload: str = Field(sa_type=JSONB)
    created_at: datetime = Field(sa_type=INSTANT)
    """The event's."""
    position: int = Field(sa_type=BigInteger)
    reason: str = Field(sa_type=Text)
    died_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("now()")})
