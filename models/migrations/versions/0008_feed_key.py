"""The key that encrypts the cursors of the feed, so that they do not reveal the number of events."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

PROCESS_SCHEMA = "gateway"
TABLE = f"{PROCESS_SCHEMA}.feed_key"
KEY_BYTES = 32


def upgrade() -> None:
    table = op.create_table(
        "feed_key",
        sa.Column("id", sa.SmallInteger(), server_default="1", autoincrement=False, nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_feed_key"),
        sa.CheckConstraint("id = 1", name=op.f("ck_feed_key_one_row")),
        schema=PROCESS_SCHEMA,
    )
    op.bulk_insert(table, [{"key": secrets.token_bytes(KEY_BYTES)}])
    for role in ("gateway_app", "gateway_relay"):
        op.execute(f"GRANT SELECT ON {TABLE} TO {role}")
