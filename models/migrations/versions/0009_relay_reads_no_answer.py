"""The relay's role reads of idempotency keys what pruning needs, and not the answers, which hold clinical text."""

from alembic import op

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None

TABLE = "patient_graph.idempotency_keys"


def upgrade() -> None:
    # Both commit together, so pruning by the previous version goes on. Revoked first: it takes column rights along.
    op.execute(f"REVOKE SELECT ON {TABLE} FROM gateway_relay")
    op.execute(f"GRANT SELECT (key, expires_at) ON {TABLE} TO gateway_relay")
