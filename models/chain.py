"""The hash chain of the audit log: each entry's position in its brand, and a hash that detects any later change."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Index, LargeBinary, Text, text
from sqlmodel import Field

from models.base import INSTANT, Table


class ChainLink(Table, table=True):
    """One audit entry, linked to the previous one. Inserted after the entry, and never changed.

    No unique index on the position: a cluster could not enforce one without the patient. The linking job
    (`gateway/audit/chain_job.py`) ensures that a position is used once, and `gateway audit verify` checks it.
    """

    __tablename__ = "audit_chain"
    # Serves the query of the head of a brand's chain, and the traversal of the chain.
    __table_args__ = (Index("ix_audit_chain_brand_id_position", "brand_id", "position"),)

    patient_id: str = Field(primary_key=True, sa_type=Text)
    entry_id: UUID = Field(primary_key=True)
    brand_id: str = Field(sa_type=Text)
    position: int = Field(sa_type=BigInteger)
    """The entry's position in its brand, from 1, without gaps."""
    occurred_at: datetime = Field(sa_type=INSTANT)
    """The entry's own time, so that a deleted entry can be identified by more than its id."""
    entry_hash: bytes = Field(sa_type=LargeBinary)
    chain_hash: bytes = Field(sa_type=LargeBinary)
    chained_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("now()")})
