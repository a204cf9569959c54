"""A patient: that one exists, and in which brand. Nothing else about a person is kept here."""

from datetime import datetime

from sqlalchemy import Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field

from models.base import INSTANT, Table


class Patient(Table, table=True):
    """One patient of one brand.

    The brand is part of the key, so that the same id in two brands is two patients, and registering an id says
    nothing about the other brand. `id` comes first: a cluster distributes by it.
    """

    __tablename__ = "patients"

    id: str = Field(primary_key=True, sa_type=Text)
    brand_id: str = Field(primary_key=True, sa_type=Text)
    external_ids: str = Field(default="{}", sa_type=JSONB, sa_column_kwargs={"server_default": text("'{}'::jsonb")})
    created_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("now()")})
