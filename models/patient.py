"""A patient: its id, its brand and its ids elsewhere. No other data of a person is stored here."""

from datetime import datetime

from sqlalchemy import Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field

from models.base import INSTANT, Table


class Patient(Table, table=True):
    """One patient of one brand.

    The brand is part of the key: the same id in two brands is two patients, and registering an id reveals nothing about
    other brands. `id` comes first, because a cluster distributes by it.
    """

    __tablename__ = "patients"
    # Serves `patientList`: a brand's patients, newest first, and its keyset cursors.
    __table_args__ = (Index("ix_patients_brand_id_created_at_id", "brand_id", "created_at", "id"),)

    id: str = Field(primary_key=True, sa_type=Text)
    brand_id: str = Field(primary_key=True, sa_type=Text)
    external_ids: str = Field(default="{}", sa_type=JSONB, sa_column_kwargs={"server_default": text("'{}'::jsonb")})
    created_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("now()")})
