"""The hash chain of the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = "patient_graph"

GRANTS = {"gateway_app": "SELECT", "gateway_relay": "SELECT, INSERT"}
POLICIES = {"gateway_app": "brand_id = current_setting('app.brand_id', true)", "gateway_relay": "true"}


def upgrade() -> None:
    op.create_table(
        "audit_chain",
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("entry_id", sa.Uuid(), nullable=False),
        sa.Column("brand_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("entry_hash", sa.LargeBinary(), nullable=False),
        sa.Column("chain_hash", sa.LargeBinary(), nullable=False),
        sa.Column("chained_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("patient_id", "entry_id", name="pk_audit_chain"),
        schema=SCHEMA,
    )
    op.create_index("ix_audit_chain_brand_id_position", "audit_chain", ["brand_id", "position"], schema=SCHEMA)
    op.execute(f"ALTER TABLE {SCHEMA}.audit_chain ENABLE ROW LEVEL SECURITY")
    for role, rights in GRANTS.items():
        op.execute(f"GRANT {rights} ON {SCHEMA}.audit_chain TO {role}")
        op.execute(f"CREATE POLICY {role} ON {SCHEMA}.audit_chain TO {role} USING ({POLICIES[role]})")
