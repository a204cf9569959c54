"""An idempotency key: the hash of a request, and its first answer."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, LargeBinary, Text, text
from sqlmodel import Field

from models.base import INSTANT, Table


class IdempotencyKey(Table, table=True):
    """One key of one client of one brand, committed with the change that it stands for: both exist, or neither.

    The primary key does not contain the patient: the same key sent for another patient must be recognized as the same.
    A cluster distributes this table by `key`.
    """

    __tablename__ = "idempotency_keys"
    # Serves the pruning of expired keys.
    __table_args__ = (Index("ix_idempotency_keys_expires_at", "expires_at"),)

    brand_id: str = Field(primary_key=True, sa_type=Text)
    client_id: str = Field(primary_key=True, sa_type=Text)
    key: str = Field(primary_key=True, sa_type=Text)
    request_hash: bytes = Field(sa_type=LargeBinary)
    """SHA-256 of the request, in a form that is the same for REST and GraphQL. Empty if the patient was erased: the
    patient and the answer are empty too, and the encounter is None.
    """
    patient_id: str = Field(sa_type=Text)
    encounter_id: UUID | None = Field(default=None)
    """None for a change of a patient."""
    answer: bytes = Field(sa_type=LargeBinary)
    """Of a recording, the first answer over REST, byte for byte. Of a registration, `alreadyKnown` as JSON. Else empty.
    """
    created_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("now()")})
    expires_at: datetime = Field(sa_type=INSTANT)
