"""The key of the feed's cursors: one row, which all gateways share."""

from sqlalchemy import CheckConstraint, LargeBinary, SmallInteger
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Field

from models.base import PROCESS_SCHEMA, Table


class FeedKey(Table, table=True):
    """The AES key of the feed's cursors. The migration generated it; `gateway events restored` replaces it."""

    __tablename__ = "feed_key"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"), {"schema": PROCESS_SCHEMA})

    id: int = Field(
        default=1,
        primary_key=True,
        sa_type=SmallInteger,
        sa_column_kwargs={"server_default": "1", "autoincrement": False},
    )
    key: bytes = Field(sa_type=LargeBinary)
    """32 bytes."""
    retired: list[bytes] = Field(
        default_factory=list, sa_type=ARRAY(LargeBinary), sa_column_kwargs={"server_default": "{}"}
    )
    """The keys before restores of the database. A cursor under one of them is refused as expired."""
