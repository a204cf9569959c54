"""The key of the feed's cursors: one row, which all gateways share."""

from sqlalchemy import CheckConstraint, LargeBinary, SmallInteger
from sqlmodel import Field

from models.base import PROCESS_SCHEMA, Table


class FeedKey(Table, table=True):
    """The AES key of the feed's cursors. The migration generated it; nothing changes it."""

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
