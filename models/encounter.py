"""An encounter: one visit of a patient, as a client reported it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Column, ForeignKeyConstraint, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field

from models.base import INSTANT, Table, words


class EncounterType(StrEnum):
    """The type of an encounter."""

    OFFICE_VISIT = "office_visit"
    TELEHEALTH = "telehealth"
    LAB = "lab"
    PHARMACY = "pharmacy"
    OTHER = "other"


class EncounterStatus(StrEnum):
    """The status of an encounter in its lifecycle."""

    SCHEDULED = "scheduled"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    NO_SHOW = "no_show"
    ENTERED_IN_ERROR = "entered_in_error"


class EncounterAction(StrEnum):
    """An action on a recorded encounter."""

    START = "start"
    COMPLETE = "complete"
    CANCEL = "cancel"
    MARK_NO_SHOW = "mark_no_show"
    MARK_ENTERED_IN_ERROR = "mark_entered_in_error"
    RESCHEDULE = "reschedule"
    AMEND = "amend"


class EncounterEventKind(StrEnum):
    """The kind of change to an encounter."""

    RECORDED = "recorded"
    STARTED = "started"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    NO_SHOW = "no_show"
    ENTERED_IN_ERROR = "entered_in_error"
    RESCHEDULED = "rescheduled"
    AMENDED = "amended"


@dataclass(slots=True)
class Encounter:
    """One encounter: the fourteen published members, when it was held, and the version that guards changes.

    A plain object with the columns of `Encounters`: an instance of a class mapped by SQLAlchemy would cost as much as a
    statement.
    """

    patient_id: str
    id: UUID
    brand_id: str
    provider_id: UUID | None
    encounter_type: EncounterType
    status: EncounterStatus
    scheduled_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    chief_complaint: str | None
    notes: str | None
    metadata: str
    """A JSON object, as text."""
    version: int
    created_at: datetime
    updated_at: datetime


class Encounters(Table, table=True):
    """The table of encounters.

    `id` is a UUIDv7 made by the gateway; `patient_id` comes first in the key because a cluster distributes by it.
    """

    __tablename__ = "encounters"
    __table_args__ = (
        # The row's brand is the patient's brand, enforced by the database.
        ForeignKeyConstraint(
            ["patient_id", "brand_id"],
            ["patient_graph.patients.id", "patient_graph.patients.brand_id"],
            name="fk_encounters_patient_id_brand_id_patients",
        ),
        # Serves `patient.encounters` and its REST equivalent: a patient's page, newest first, and its keyset cursors.
        # It includes the brand, which every statement filters by, so that a count is an index-only scan.
        Index(
            "ix_encounters_patient_id_created_at_id",
            "patient_id",
            "created_at",
            "id",
            postgresql_include=["brand_id"],
        ),
        # Serves `encounter(id)`, which has no patient. Not unique: UUIDv7 is the guarantee, and a unique index without
        # `patient_id` cannot be distributed.
        Index("ix_encounters_id", "id"),
    )

    patient_id: str = Field(primary_key=True, sa_type=Text)
    id: UUID = Field(primary_key=True)
    brand_id: str = Field(sa_type=Text)
    provider_id: UUID | None = None
    encounter_type: EncounterType = Field(sa_type=words(EncounterType, "encounter_type"))
    status: EncounterStatus = Field(
        default=EncounterStatus.SCHEDULED,
        sa_type=words(EncounterStatus, "status"),
        sa_column_kwargs={"server_default": EncounterStatus.SCHEDULED.value},
    )
    scheduled_at: datetime | None = Field(default=None, sa_type=INSTANT)
    started_at: datetime | None = Field(default=None, sa_type=INSTANT)
    ended_at: datetime | None = Field(default=None, sa_type=INSTANT)
    chief_complaint: str | None = Field(default=None, sa_type=Text)
    notes: str | None = Field(default=None, sa_type=Text)
    # JSON text from the request to the disk and back: no number is rounded by a Python float.
    metadata_: str = Field(
        default="{}",
        alias="metadata",
        sa_column=Column("metadata", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    )
    version: int = Field(default=1, sa_column_kwargs={"server_default": "1"})
    created_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("now()")})
    updated_at: datetime = Field(sa_type=INSTANT, sa_column_kwargs={"server_default": text("now()")})
