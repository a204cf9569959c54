"""The span that appended an event: deliveries continue its trace."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: PostgreSQL then rewrites no row.
    op.add_column("outbox", sa.Column("traceparent", sa.Text(), nullable=True), schema="patient_graph")
