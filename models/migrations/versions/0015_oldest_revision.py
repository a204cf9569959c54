"""The oldest revision whose gateway may serve, the right to read the revisions, and the keys of retired cursors."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# The revision of gateway 0.1.0. It reads `alembic_version`, and serves if the revision there is its own.
OLDEST = "0009"


def upgrade() -> None:
    # `gateway.database.migrate` has copied the revision of the schema into `schema_revision`.
    op.execute(
        "CREATE TABLE IF NOT EXISTS gateway.alembic_version"
        " (version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    op.execute("DELETE FROM gateway.alembic_version")
    op.execute(f"INSERT INTO gateway.alembic_version VALUES ('{OLDEST}')")  # noqa: S608 - a constant
    op.execute("GRANT SELECT ON gateway.alembic_version, gateway.schema_revision TO gateway_app")
    op.add_column(
        "feed_key",
        sa.Column("retired", postgresql.ARRAY(sa.LargeBinary()), server_default=sa.text("'{}'"), nullable=False),
        schema="gateway",
    )
