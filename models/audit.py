"""The audit log: who did what, when, to which record; append-only."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field

from models.base import INSTANT, Table


class AuditEntry(Table, table=True):
    """One entry. The application's database role may insert and read, but not update or delete."""

    __tablename__ = "audit_log"
    # Serves queries of a brand's entries in a span of time, and the linking of entries in their order.
    __table_args__ = (
        Index("ix_audit_log_brand_id_occurred_at_id", "brand_id", "occurred_at", "id"),
        # Serves the question who read a patient in a worklist, whose entries name several patients.
        Index(
            "ix_audit_log_patients",
            text("(details -> 'patients')"),
            postgresql_using="gin",
            postgresql_where=text("entity_type = 'worklist'"),
        ),
    )

    patient_id: str = Field(primary_key=True, sa_type=Text)
    """The patient of the record; empty if there are several, or the caller was refused before one was known."""
    id: UUID = Field(primary_key=True)
    occurred_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("now()")})
    actor_type: str = Field(sa_type=Text)
    actor_id: str = Field(sa_type=Text)
    actor_brand_id: str | None = Field(default=None, sa_type=Text)
    event_type: str = Field(sa_type=Text)
    entity_type: str = Field(sa_type=Text)
    entity_id: str | None = Field(default=None, sa_type=Text)
    brand_id: str = Field(sa_type=Text)
    request_id: str = Field(sa_type=Text)
    details: str = Field(default="{}", sa_type=JSONB, sa_column_kwargs={"server_default": text("'{}'::jsonb")})
