"""External ids by their values: the index by which patients and encounters are found.

The columns `external_ids` of patients and encounters hold what is shown. These rows are written with them.
They are rows of their own because row-level security keeps PostgreSQL from using an index of the columns (decision 81).
"""

from uuid import UUID

from sqlalchemy import Index, Text
from sqlmodel import Field

from models.base import Table


class PatientExternalId(Table, table=True):
    """The id that another system has for a patient."""

    __tablename__ = "patient_external_ids"
    # Serves `patientsByExternalId`: equality on the first three, then the patients in order.
    __table_args__ = (
        Index("ix_patient_external_ids_brand_id_system_value_patient_id", "brand_id", "system", "value", "patient_id"),
    )

    patient_id: str = Field(primary_key=True, sa_type=Text)
    brand_id: str = Field(primary_key=True, sa_type=Text)
    system: str = Field(primary_key=True, sa_type=Text)
    value: str = Field(sa_type=Text)


class EncounterExternalId(Table, table=True):
    """The id that another system has for an encounter."""

    __tablename__ = "encounter_external_ids"
    # Serves `encountersByExternalId`: equality on the first three, then the newest encounter first.
    __table_args__ = (
        Index(
            "ix_encounter_external_ids_brand_id_system_value_encounter_id",
            "brand_id",
            "system",
            "value",
            "encounter_id",
        ),
    )

    patient_id: str = Field(primary_key=True, sa_type=Text)
    encounter_id: UUID = Field(primary_key=True)
    system: str = Field(primary_key=True, sa_type=Text)
    value: str = Field(sa_type=Text)
    brand_id: str = Field(sa_type=Text)
