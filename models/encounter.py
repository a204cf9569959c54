"""An encounter: one visit of a patient, as a client reported it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import create_model
from sqlalchemy import ForeignKeyConstraint, Index, PrimaryKeyConstraint, text
from sqlmodel import Field

from models.base import Table
from models.members import Kind, Member, members_of


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
    UNDO_START = "undo_start"


class EncounterOrder(StrEnum):
    """An order of a list of encounters. Null comes last, and the id decides between equals, in the same direction."""

    CREATED_AT_ASC = "created_at_asc"
    CREATED_AT_DESC = "created_at_desc"
    SCHEDULED_AT_ASC = "scheduled_at_asc"
    SCHEDULED_AT_DESC = "scheduled_at_desc"
    UPDATED_AT_DESC = "updated_at_desc"
    PROVIDER_THEN_SCHEDULED_AT_ASC = "provider_then_scheduled_at_asc"


LAST_INSTANT, FIRST_INSTANT = "'infinity'::timestamptz", "'-infinity'::timestamptz"
LAST_PROVIDER = "'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid"
"""SQL of the values that replace null in the orders of lists, and so in the indexes that serve them."""


def or_else(column: str, value: str) -> str:
    """Return SQL for a column, with the least or the greatest value of its type in place of null.

    LEAST and GREATEST ignore null. `coalesce` would say the same, but PostgreSQL does not know that it leaks nothing,
    and row-level security then keeps the condition from an index.
    """
    return f"{'GREATEST' if value == FIRST_INSTANT else 'LEAST'}({column}, {value})"


OF_BRAND = 'brand_id COLLATE "C"'
"""SQL of the brand in these indexes, and in the statements that use them."""


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
    START_UNDONE = "start_undone"


@dataclass(slots=True)
class Encounter:
    """One encounter. Its annotations are the only description of its members, in the published order.

    The table, the statements, the REST object, the OpenAPI schema and the leak check derive from them. The input rules
    (`resolvers/commands.py`) and the GraphQL types (`schema/`) are written out, and a test compares them.

    A plain object: an instance of a class mapped by SQLAlchemy would cost as much as a statement.
    """

    id: Annotated[
        UUID,
        Member(
            Kind.UUID,
            "The encounter's id, a UUIDv7 that the gateway generates.",
            "01936b2e-5f0c-7b4a-8a3e-6f1d2c9b7a10",
        ),
    ]
    patient_id: Annotated[str, Member(Kind.STRING, "The patient's id.", "demo-patient")]
    provider_id: Annotated[
        UUID | None,
        Member(
            Kind.UUID,
            "The provider directory's id of the provider who saw the patient.",
            "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        ),
    ]
    brand_id: Annotated[str, Member(Kind.STRING, "The patient's brand.", "loop")]
    encounter_type: Annotated[EncounterType, Member(Kind.ENUM, "The type of the encounter.", "telehealth")]
    status: Annotated[
        EncounterStatus,
        Member(Kind.ENUM, "The status of the encounter in its lifecycle.", "scheduled", server_default="'scheduled'"),
    ]
    scheduled_at: Annotated[
        datetime | None,
        Member(Kind.INSTANT, "The scheduled time, in UTC.", "2026-12-01T09:30:00Z", clinical=True),
    ]
    started_at: Annotated[datetime | None, Member(Kind.INSTANT, "The time of the start.")]
    ended_at: Annotated[
        datetime | None, Member(Kind.INSTANT, "The time of the completion, or of the cancellation after a start.")
    ]
    chief_complaint: Annotated[
        str | None,
        Member(Kind.TEXT, "The reason for the visit, in the patient's words.", "Sore throat", clinical=True),
    ]
    notes: Annotated[str | None, Member(Kind.TEXT, "The clinician's notes.", "Slept well.", clinical=True)]
    metadata: Annotated[
        str,
        # JSON text from the request to the disk and back: no number is rounded by a Python float.
        Member(
            Kind.JSON,
            "Additional data of the recording system.",
            {"room": 7},
            clinical=True,
            server_default="'{}'::jsonb",
        ),
    ]
    # The senders' own numbers, by the name of the sender's system. `encounter_external_ids` finds them.
    external_ids: Annotated[str, Member(Kind.JSON, published=False, clinical=True, server_default="'{}'::jsonb")]
    created_at: Annotated[
        datetime,
        Member(
            Kind.INSTANT,
            "The time at which the gateway recorded it.",
            "2026-11-24T08:00:00.123456Z",
            server_default="now()",
        ),
    ]
    updated_at: Annotated[
        datetime,
        Member(
            Kind.INSTANT,
            "The time at which the gateway last changed it.",
            "2026-11-24T08:00:00.123456Z",
            server_default="now()",
        ),
    ]
    # The number of the current version, which guards changes: in REST, the entity tag.
    version: Annotated[int, Member(Kind.INTEGER, published=False, server_default="1")]


MEMBERS = members_of(Encounter)
"""The members of an encounter by name, in the published order."""


_SCHEDULED_FIRST = or_else("scheduled_at", LAST_INSTANT)
_SCHEDULED_LAST = or_else("scheduled_at", FIRST_INSTANT)


class _Encounters(Table):
    __tablename__ = "encounters"
    __table_args__ = (
        # `id` is a UUIDv7 made by the gateway; `patient_id` comes first because a cluster distributes by it.
        PrimaryKeyConstraint("patient_id", "id"),
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
        # Each of these serves a list of a brand's encounters: an order of `EncounterOrder`, or a status with an order.
        # The migration gives the brand the collation of `OF_BRAND`, which Alembic does not compare. It keeps them from
        # other statements: PostgreSQL, before it has statistics, would prefer them to the index of an id.
        Index("ix_encounters_brand_id_created_at_id", "brand_id", "created_at", "id"),
        Index("ix_encounters_brand_id_updated_at_id", "brand_id", "updated_at", "id"),
        Index("ix_encounters_brand_id_scheduled_at_id", "brand_id", text(_SCHEDULED_FIRST), "id"),
        Index("ix_encounters_brand_id_scheduled_at_id_desc", "brand_id", text(_SCHEDULED_LAST), "id"),
        Index(
            "ix_encounters_brand_id_provider_id_scheduled_at_id",
            "brand_id",
            text(or_else("provider_id", LAST_PROVIDER)),
            text(_SCHEDULED_FIRST),
            "id",
        ),
        Index("ix_encounters_brand_id_status_scheduled_at_id", "brand_id", "status", text(_SCHEDULED_FIRST), "id"),
        # Serves `encounter(id)`, which has no patient. Not unique: UUIDv7 is the guarantee, and a unique index without
        # `patient_id` cannot be distributed.
        Index("ix_encounters_id", "id"),
    )


# `metadata` is a reserved attribute of SQLModel; the column has the name.
_columns: dict[str, Any] = {
    {"metadata": "metadata_"}.get(name, name): (Any, Field(sa_column=member.column()))
    for name, member in MEMBERS.items()
}
Encounters = create_model(
    "Encounters", __base__=_Encounters, __module__=__name__, __cls_kwargs__={"table": True}, **_columns
)
"""The table of encounters: a column for each member."""
