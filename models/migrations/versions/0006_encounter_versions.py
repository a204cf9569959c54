"""The versions of an encounter: the actor, the time and the reason of each change, and the changed members."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = "patient_graph"
TABLE = f"{SCHEMA}.encounter_versions"

KINDS = ("recorded", "started", "completed", "cancelled", "no_show", "entered_in_error", "rescheduled", "amended")

# First versions of the encounters recorded before; the audit log has their actors.
FIRST_VERSIONS = """
INSERT INTO patient_graph.encounter_versions AS version (
    patient_id, encounter_id, version, brand_id, kind, changed_at, actor_type, actor_id, request_id, changes
)
SELECT
    e.patient_id, e.id, 1, e.brand_id, 'recorded', e.created_at,
    coalesce(a.actor_type, 'system'), coalesce(a.actor_id, 'unknown'), coalesce(a.request_id, 'unknown'), '{}'
FROM patient_graph.encounters e
LEFT JOIN patient_graph.audit_log a
    ON a.patient_id = e.patient_id AND a.entity_id = e.id::text
    AND a.event_type = 'patient_graph.encounter.recorded'
"""


def upgrade() -> None:
    op.create_table(
        "encounter_versions",
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("encounter_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("brand_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor_type", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("changes", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("patient_id", "encounter_id", "version", name="pk_encounter_versions"),
        sa.CheckConstraint(
            f"kind IN ({', '.join(repr(kind) for kind in KINDS)})", name=op.f("ck_encounter_versions_kind")
        ),
        schema=SCHEMA,
    )
    op.execute(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY gateway_app ON {TABLE} TO gateway_app USING (brand_id = current_setting('app.brand_id', true))"
    )
    op.execute(f"GRANT SELECT, INSERT ON {TABLE} TO gateway_app")
    op.execute(FIRST_VERSIONS)
