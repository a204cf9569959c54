"""The relay's role reads of idempotency keys what pruning needs, and not the answers, which hold clinical text."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Both commit together, so pruning by the previous version goes on. Revoked first: it takes column rights along.
    op.execute("REVOKE SELECT ON patient_graph.idempotency_keys FROM gateway_relay")
    op.execute("GRANT SELECT (key, expires_at) ON patient_graph.idempotency_keys TO gateway_relay")
