"""A sink: an external receiver of events, and its position in the feed."""

from datetime import datetime

from sqlalchemy import BigInteger, Text, text
from sqlmodel import Field

from models.base import INSTANT, PROCESS_SCHEMA, Table

_NOW = {"server_default": text("now()")}


class Sink(Table, table=True):
    """One sink: every event up to `position` was delivered to it, or is a dead letter."""

    __tablename__ = "sinks"
    __table_args__ = ({"schema": PROCESS_SCHEMA},)

    name: str = Field(primary_key=True, sa_type=Text)
    position: int = Field(sa_type=BigInteger)
    since: datetime = Field(sa_type=INSTANT, sa_column_kwargs=_NOW)
    """When an operator last set the position, or the sink was first seen: no event's delivery period begins earlier."""
    failures: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    """Number of consecutive failed deliveries."""
    next_attempt_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs=_NOW)
    last_error: str | None = Field(default=None, sa_type=Text)
    """The cause of the last failure, as a code of this project; never text of the receiver."""
    disabled_at: datetime | None = Field(default=None, sa_type=INSTANT)
    updated_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs=_NOW)
