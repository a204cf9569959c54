"""A sink: somebody outside who is told of events, and how far along they are."""

from datetime import datetime

from sqlalchemy import BigInteger, Text, text
from sqlmodel import Field

from models.base import INSTANT, PROCESS_SCHEMA, Table

_NOW = {"server_default": text("now()")}


class Sink(Table, table=True):
    """One sink: everything up to `position` was delivered to it, or laid aside as a dead letter."""

    __tablename__ = "sinks"
    __table_args__ = ({"schema": PROCESS_SCHEMA},)

    name: str = Field(primary_key=True, sa_type=Text)
    position: int = Field(sa_type=BigInteger)
    since: datetime = Field(sa_type=INSTANT, sa_column_kwargs=_NOW)
    """When it was last put to a position by hand, or first seen: no event's time to be delivered begins earlier."""
    failures: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    """How often in a row delivery has failed."""
    next_attempt_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs=_NOW)
    last_error: str | None = Field(default=None, sa_type=Text)
    """Why it failed last, in a word of ours; never what the receiver said."""
    disabled_at: datetime | None = Field(default=None, sa_type=INSTANT)
    updated_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs=_NOW)
