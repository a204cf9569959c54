"""What filters of the feed compare: the actor of an event, and the encounter's providers and types."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

COLUMNS = {
    "actor_id": sa.Text(),
    "provider_ids": postgresql.ARRAY(sa.Uuid()),
    "encounter_types": postgresql.ARRAY(sa.Text()),
}


def upgrade() -> None:
    # Nullable and without a default: PostgreSQL then rewrites no row.
    for name, kind in COLUMNS.items():
        op.add_column("outbox", sa.Column(name, kind, nullable=True), schema="patient_graph")
