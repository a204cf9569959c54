"""An idempotency key: that a caller asked for something, and what was answered."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, LargeBinary, Text, text
from sqlmodel import Field

from models.base import INSTANT, Table


class IdempotencyKey(Table, table=True):
    """One key of one client of one brand; committed with the encounter it stands for, so that key means kept.

    The key does not hold the patient in its own key: the same key sent for another patient must be seen to be the
    same key. A cluster distributes this table by `key`.
    """

    __tablename__ = "idempotency_keys"
    # Serves the pruning of expired keys.
    __table_args__ = (Index("ix_idempotency_keys_expires_at", "expires_at"),)

    brand_id: str = Field(primary_key=True, sa_type=Text)
    client_id: str = Field(primary_key=True, sa_type=Text)
    key: str = Field(primary_key=True, sa_type=Text)
    request_hash: bytes = Field(sa_type=LargeBinary)
    """SHA-256 of what was asked for, in a form that is the same through either door."""
    patient_id: str = Field(sa_type=Text)
    encounter_id: UUID
    answer: bytes = Field(sa_type=LargeBinary)
    """The first answer as REST gave it, byte for byte."""
    created_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("now()")})
    expires_at: datetime = Field(sa_type=INSTANT)
