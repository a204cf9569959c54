"""Tables of the relay: the watermark, the position of each sink, dead letters."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = "patient_graph"
PROCESS_SCHEMA = "gateway"

GRANTS = {
    "gateway_app": {"gateway.watermark": "SELECT"},
    "gateway_relay": {
        "gateway.watermark": "SELECT, UPDATE",
        "gateway.sinks": "SELECT, INSERT, UPDATE",
        "patient_graph.dead_letters": "SELECT, INSERT, DELETE",
        "patient_graph.outbox": "DELETE",
    },
}


def upgrade() -> None:
    _process_tables()
    _dead_letters()
    _outbox()
    op.execute(f"GRANT USAGE ON SCHEMA {PROCESS_SCHEMA} TO gateway_app")
    for role, grants in GRANTS.items():
        for table, rights in grants.items():
            op.execute(f"GRANT {rights} ON {table} TO {role}")


def _process_tables() -> None:
    zero = {"server_default": "0", "nullable": False}
    now = {"server_default": sa.text("now()"), "nullable": False}
    op.create_table(
        "watermark",
        sa.Column("id", sa.SmallInteger(), server_default="1", autoincrement=False, nullable=False),
        sa.Column("stamped", sa.BigInteger(), **zero),
        sa.Column("position", sa.BigInteger(), **zero),
        sa.Column("pruned", sa.BigInteger(), **zero),
        sa.PrimaryKeyConstraint("id", name="pk_watermark"),
        sa.CheckConstraint("id = 1", name=op.f("ck_watermark_one_row")),
        schema=PROCESS_SCHEMA,
    )
    op.execute(f"INSERT INTO {PROCESS_SCHEMA}.watermark DEFAULT VALUES")
    op.create_table(
        "sinks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), **now),
        sa.Column("failures", sa.Integer(), **zero),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), **now),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), **now),
        sa.PrimaryKeyConstraint("name", name="pk_sinks"),
        schema=PROCESS_SCHEMA,
    )


def _dead_letters() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("sink", sa.Text(), nullable=False),
        sa.Column("brand_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("died_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("patient_id", "id", "sink", name="pk_dead_letters"),
        schema=SCHEMA,
    )
    op.execute(f"ALTER TABLE {SCHEMA}.dead_letters ENABLE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY gateway_relay ON {SCHEMA}.dead_letters TO gateway_relay USING (true)")


def _outbox() -> None:
    op.alter_column("outbox", "created_at", server_default=sa.text("clock_timestamp()"), schema=SCHEMA)
    op.create_index(
        "ix_outbox_brand_id_position",
        "outbox",
        ["brand_id", "position"],
        schema=SCHEMA,
        postgresql_where=sa.text("position IS NOT NULL"),
    )
