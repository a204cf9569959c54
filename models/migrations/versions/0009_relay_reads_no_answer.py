"""The relay's role may read only the columns of idempotency keys that pruning needs, not the clinical answers."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Both commit together, so pruning by the previous version continues. REVOKE is first: it removes column rights too.
    op.execute("REVOKE SELECT ON patient_graph.idempotency_keys FROM gateway_relay")
    op.execute("GRANT SELECT (key, expires_at) ON patient_graph.idempotency_keys TO gateway_relay")
