"""A lease: the gateway that runs a job which only one gateway at a time may run."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Text
from sqlmodel import Field

from models.base import INSTANT, PROCESS_SCHEMA, Table


class Lease(Table, table=True):
    """One job, the gateway that runs it, and the lease's expiry; any gateway may take an expired lease."""

    __tablename__ = "leases"
    __table_args__ = {"schema": PROCESS_SCHEMA}  # noqa: RUF012 - the form that SQLAlchemy documents

    name: str = Field(primary_key=True, sa_type=Text)
    holder: UUID
    expires_at: datetime = Field(sa_type=INSTANT)
