"""How far the relay has come: the one row that says which events may be read."""

from sqlalchemy import BigInteger, CheckConstraint, SmallInteger
from sqlmodel import Field

from models.base import PROCESS_SCHEMA, Table


class Watermark(Table, table=True):
    """Three positions, none of which ever goes back: `pruned` ≤ `position` ≤ `stamped`.

    Positions have no gaps, so the rows between two of them can be counted on.
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
    """The last position that was given to an event."""
    position: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """The watermark itself: every event up to here is committed and seen by everybody."""
    pruned: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """The last position whose event is no longer kept."""
