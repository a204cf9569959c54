"""Leases: the gateway that runs a job which only one gateway at a time may run."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Uuid(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
        schema="gateway",
    )
    op.execute("GRANT USAGE ON SCHEMA gateway TO gateway_relay")
    op.execute("GRANT SELECT, INSERT, UPDATE ON gateway.leases TO gateway_relay")
