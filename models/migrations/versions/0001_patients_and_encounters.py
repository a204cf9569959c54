"""Patients and encounters."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "patient_graph"


def upgrade() -> None:
    op.create_table(
        "patients",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("brand_id", sa.Text(), nullable=False),
        sa.Column("external_ids", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", "brand_id", name="pk_patients"),
        schema=SCHEMA,
    )
    op.create_table(
        "encounters",
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("brand_id", sa.Text(), nullable=False),
        sa.Column("provider_id", sa.Uuid(), nullable=True),
        sa.Column("encounter_type", sa.String(32), nullable=False),
        sa.Column("status", sa.String(32), server_default="scheduled", nullable=False),
        sa.Column("scheduled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("chief_complaint", sa.Text(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("patient_id", "id", name="pk_encounters"),
        sa.ForeignKeyConstraint(
            ["patient_id", "brand_id"],
            [f"{SCHEMA}.patients.id", f"{SCHEMA}.patients.brand_id"],
            name="fk_encounters_patient_id_brand_id_patients",
        ),
        sa.CheckConstraint(
            "encounter_type IN ('office_visit', 'telehealth', 'lab', 'pharmacy', 'other')",
            name=op.f("ck_encounters_encounter_type"),
        ),
        sa.CheckConstraint(
            "status IN ('scheduled', 'in_progress', 'completed', 'cancelled', 'no_show', 'entered_in_error')",
            name=op.f("ck_encounters_status"),
        ),
        schema=SCHEMA,
    )
    op.create_index(
        "ix_encounters_patient_id_created_at_id",
        "encounters",
        ["patient_id", "created_at", "id"],
        schema=SCHEMA,
    )
    op.create_index("ix_encounters_id", "encounters", ["id"], schema=SCHEMA)
