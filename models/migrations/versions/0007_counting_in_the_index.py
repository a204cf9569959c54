"""The index of a patient's list includes the brand: counting a list, for REST's `total`, reads no encounter."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NAME = "ix_encounters_patient_id_created_at_id"


def upgrade() -> None:
    # Not CONCURRENTLY: that waits for all transactions, including those that wait for this migration.
    op.drop_index(NAME, "encounters", schema="patient_graph")
    op.create_index(
        NAME,
        "encounters",
        ["patient_id", "created_at", "id"],
        schema="patient_graph",
        postgresql_include=["brand_id"],
    )
