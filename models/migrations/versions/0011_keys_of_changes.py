"""Undoing a start, idempotency keys of changes that concern no encounter, and external ids that can be replaced."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

SCHEMA = "patient_graph"
CHECK = "ck_encounter_versions_kind"
KINDS = (
    "recorded", "started", "completed", "cancelled", "no_show", "entered_in_error", "rescheduled", "amended",
    "start_undone",
)  # fmt: skip


def upgrade() -> None:
    op.execute(f"ALTER TABLE {SCHEMA}.encounter_versions DROP CONSTRAINT {CHECK}")
    kinds = ", ".join(repr(kind) for kind in KINDS)
    op.execute(f"ALTER TABLE {SCHEMA}.encounter_versions ADD CONSTRAINT {CHECK} CHECK (kind IN ({kinds})) NOT VALID")
    op.alter_column("idempotency_keys", "encounter_id", nullable=True, schema=SCHEMA)
    op.execute(f"GRANT UPDATE (external_ids) ON {SCHEMA}.patients TO gateway_app")
    with op.get_context().autocommit_block():
        # Reads the whole table, under a lock that blocks no write.
        op.execute(f"ALTER TABLE {SCHEMA}.encounter_versions VALIDATE CONSTRAINT {CHECK}")
