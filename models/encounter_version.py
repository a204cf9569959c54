"""A version of an encounter: who made it from the previous one, when, why, and what changed."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field

from models.base import INSTANT, Table, words
from models.encounter import EncounterEventKind


class EncounterVersion(Table, table=True):
    """One version, appended in the transaction of the change; the application's role may read it, but not change it."""

    __tablename__ = "encounter_versions"

    patient_id: str = Field(primary_key=True, sa_type=Text)
    encounter_id: UUID = Field(primary_key=True)
    version: int = Field(primary_key=True)
    brand_id: str = Field(sa_type=Text)
    kind: EncounterEventKind = Field(sa_type=words(EncounterEventKind, "kind"))
    changed_at: datetime = Field(sa_type=INSTANT)
    actor_type: str = Field(sa_type=Text)
    actor_id: str = Field(sa_type=Text)
    request_id: str = Field(sa_type=Text)
    reason: str | None = Field(default=None, sa_type=Text)
    """The reason, in the words of the person who made the change: as clinical as the notes."""
    changes: str = Field(sa_type=JSONB)
    """Each changed column, with its value before and after. Of a first version: status and times, unless scheduled."""
