"""FastAPI and SQLModel, as their documentation shows them: async sessions, a model for what comes in and goes out."""

import os
from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID, uuid4

import uvloop
from fastapi import Depends, FastAPI, HTTPException, Query
from listening import listening
from sqlalchemy import Column, DateTime, FetchedValue, Text, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

INSTANT = DateTime(timezone=True)


class EncounterType(StrEnum):
    """What kind of meeting it is."""

    OFFICE_VISIT = "office_visit"
    TELEHEALTH = "telehealth"
    LAB = "lab"
    PHARMACY = "pharmacy"
    OTHER = "other"


class Patient(SQLModel, table=True):
    """One patient."""

    __tablename__ = "patients"
    __table_args__ = {"schema": "patient_graph"}

    id: str = Field(primary_key=True)
    brand_id: str = Field(primary_key=True)


class Encounter(SQLModel, table=True):
    """One encounter."""

    __tablename__ = "encounters"
    __table_args__ = {"schema": "patient_graph"}
    __mapper_args__ = {"eager_defaults": True}

    patient_id: str = Field(primary_key=True)
    id: UUID = Field(primary_key=True, default_factory=uuid4)
    brand_id: str
    provider_id: UUID | None = None
    encounter_type: str = Field(sa_type=Text)
    status: str = "scheduled"
    scheduled_at: datetime | None = Field(default=None, sa_type=INSTANT)
    started_at: datetime | None = Field(default=None, sa_type=INSTANT)
    ended_at: datetime | None = Field(default=None, sa_type=INSTANT)
    chief_complaint: str | None = None
    notes: str | None = None
    metadata_: dict[str, Any] = Field(default_factory=dict, sa_column=Column("metadata", JSONB, nullable=False))
    created_at: datetime | None = Field(default=None, sa_column=Column(INSTANT, server_default=FetchedValue()))
    updated_at: datetime | None = Field(default=None, sa_column=Column(INSTANT, server_default=FetchedValue()))


class EncounterIn(SQLModel):
    """What is sent."""

    brand_id: str = Field(min_length=1)
    encounter_type: EncounterType
    provider_id: UUID | None = None
    scheduled_at: datetime | None = None
    chief_complaint: str | None = None
    notes: str | None = None
    metadata_: dict[str, Any] = Field(default_factory=dict, alias="metadata")


class EncounterOut(SQLModel):
    """What is answered."""

    id: UUID
    patient_id: str
    provider_id: UUID | None
    brand_id: str
    encounter_type: str
    status: str
    scheduled_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    chief_complaint: str | None
    notes: str | None
    metadata_: dict[str, Any] = Field(serialization_alias="metadata")
    created_at: datetime
    updated_at: datetime


class EncountersOut(SQLModel):
    """A page of them."""

    patient_id: str
    encounters: list[EncounterOut]
    total: int


engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"),
    pool_size=10,
    max_overflow=0,
    connect_args={"server_settings": {"TimeZone": "UTC"}},
)
app = FastAPI()


async def session() -> AsyncIterator[AsyncSession]:
    """Yield a session."""
    async with AsyncSession(engine, expire_on_commit=False) as opened:
        yield opened


Session = Annotated[AsyncSession, Depends(session)]


@app.post("/v1/patients/{patient_id}/encounters", status_code=201, response_model=EncounterOut)
async def record(patient_id: str, sent: EncounterIn, lent: Session) -> Encounter:
    """Record an encounter."""
    encounter = Encounter(patient_id=patient_id, **sent.model_dump())
    lent.add(encounter)
    try:
        await lent.commit()
    except IntegrityError:
        raise HTTPException(404, "Patient not found") from None
    return encounter


@app.get("/v1/patients/{patient_id}/encounters", response_model=EncountersOut)
async def latest(
    patient_id: str,
    lent: Session,
    limit: Annotated[int, Query(ge=1, le=500)] = 20,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """List a patient's encounters."""
    of_patient = Encounter.patient_id == patient_id
    newest = select(Encounter).where(of_patient).order_by(Encounter.created_at.desc(), Encounter.id.desc())
    encounters = (await lent.exec(newest.limit(limit).offset(offset))).all()
    total = (await lent.exec(select(func.count()).select_from(Encounter).where(of_patient))).one()
    if not total and not (await lent.exec(select(Patient.id).where(Patient.id == patient_id))).first():
        raise HTTPException(404, "Patient not found")
    return {"patient_id": patient_id, "encounters": encounters, "total": total}


if __name__ == "__main__":
    uvloop.run(listening(app))
