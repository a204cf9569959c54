"""The chain of the audit log: each entry's place in its brand, and a hash that no later change of the entry fits."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Index, LargeBinary, Text, text
from sqlmodel import Field

from models.base import INSTANT, Table


class ChainLink(Table, table=True):
    """One audit entry, linked to the one before it. Made after the entry, and never changed.

    No unique index on the position: a cluster could not keep one without the patient. That a place is taken once is
    the business of whoever chains (`gateway/audit/chain_job.py`), and `gateway audit verify` sees that it was.
    """

    __tablename__ = "audit_chain"
    # Serves the head of a brand's chain, and whoever walks along it.
    __table_args__ = (Index("ix_audit_chain_brand_id_position", "brand_id", "position"),)

    patient_id: str = Field(primary_key=True, sa_type=Text)
    entry_id: UUID = Field(primary_key=True)
    brand_id: str = Field(sa_type=Text)
    position: int = Field(sa_type=BigInteger)
    """The entry's place in its brand, from 1, without a gap."""
    occurred_at: datetime = Field(sa_type=INSTANT)
    """The entry's own time, so that one that was deleted can be told by more than its id."""
    entry_hash: bytes = Field(sa_type=LargeBinary)
    chain_hash: bytes = Field(sa_type=LargeBinary)
    chained_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("now()")})
