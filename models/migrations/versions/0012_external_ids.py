"""External ids of encounters, external ids of both kinds by their values, and the index of the list of patients."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from models.migrations.concurrently import create_index

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

SCHEMA = "patient_graph"
POLICY = "brand_id = current_setting('app.brand_id', true)"

# Earlier versions limited neither the number nor the length of external ids. A longer one cannot be searched for.
PATIENTS = """
INSERT INTO patient_graph.patient_external_ids AS id (patient_id, brand_id, system, value)
SELECT p.id, p.brand_id, each.key, each.value
FROM patient_graph.patients p, jsonb_each_text(p.external_ids) each
WHERE char_length(each.key) BETWEEN 1 AND 200 AND char_length(each.value) BETWEEN 1 AND 200
ON CONFLICT DO NOTHING
"""


def upgrade() -> None:
    # First, because it commits. The rest is one transaction.
    create_index("ix_patients_brand_id_created_at_id", "patients", ["brand_id", "created_at", "id"])
    op.create_table(
        "patient_external_ids",
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("brand_id", sa.Text(), nullable=False),
        sa.Column("system", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("patient_id", "brand_id", "system", name="pk_patient_external_ids"),
        schema=SCHEMA,
    )
    op.create_table(
        "encounter_external_ids",
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("encounter_id", sa.Uuid(), nullable=False),
        sa.Column("system", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("brand_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("patient_id", "encounter_id", "system", name="pk_encounter_external_ids"),
        schema=SCHEMA,
    )
    for kind in ("patient", "encounter"):
        table = f"{kind}_external_ids"
        op.execute(f"ALTER TABLE {SCHEMA}.{table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY gateway_app ON {SCHEMA}.{table} TO gateway_app USING ({POLICY})")
        # A correction replaces the rows of its record.
        op.execute(f"GRANT SELECT, INSERT, DELETE ON {SCHEMA}.{table} TO gateway_app")
    op.execute(PATIENTS)
    for kind in ("patient", "encounter"):
        columns = ["brand_id", "system", "value", f"{kind}_id"]
        name = f"ix_{kind}_external_ids_{'_'.join(columns)}"
        op.create_index(name, f"{kind}_external_ids", columns, schema=SCHEMA)
    # Last, because it locks the table until the commit. A constant default rewrites no row.
    op.add_column(
        "encounters",
        sa.Column("external_ids", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        schema=SCHEMA,
    )
