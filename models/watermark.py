"""The progress of the relay: one row that limits which events may be read."""

from sqlalchemy import BigInteger, CheckConstraint, SmallInteger
from sqlmodel import Field

from models.base import PROCESS_SCHEMA, Table


class Watermark(Table, table=True):
    """Three positions, none of which ever decreases: `pruned` ≤ `position` ≤ `stamped`.

    Positions are assigned without gaps. So the number of rows between `position` and `stamped` is their difference.
    Before `position`, an erasure of a patient leaves gaps.
    """

    __tablename__ = "watermark"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"), {"schema": PROCESS_SCHEMA})

    id: int = Field(
        default=1,
        primary_key=True,
        sa_type=SmallInteger,
        sa_column_kwargs={"server_default": "1", "autoincrement": False},
    )
    stamped: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """The last position that was assigned to an event."""
    position: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """The watermark itself: every event up to here is committed and visible to all readers."""
    pruned: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """The position of the last event that was deleted."""
