"""A lease: which gateway does a duty that one at a time must do."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Text
from sqlmodel import Field

from models.base import INSTANT, PROCESS_SCHEMA, Table


class Lease(Table, table=True):
    """One duty, who does it, and until when; whoever finds it expired may take it."""

    __tablename__ = "leases"
    __table_args__ = {"schema": PROCESS_SCHEMA}  # noqa: RUF012 - as SQLAlchemy has it

    name: str = Field(primary_key=True, sa_type=Text)
    holder: UUID
    expires_at: datetime = Field(sa_type=INSTANT)
