"""Idempotency keys, events and the audit log; row-level security for roles that own no table."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "patient_graph"

# The rights of each role. PostgreSQL refuses every other statement of the role.
GRANTS = {
    "gateway_app": {
        "patients": "SELECT, INSERT",
        "encounters": "SELECT, INSERT, UPDATE",
        "idempotency_keys": "SELECT, INSERT",
        "outbox": "SELECT, INSERT",
        "audit_log": "SELECT, INSERT",
    },
    "gateway_relay": {
        "idempotency_keys": "SELECT, DELETE",
        "outbox": "SELECT, UPDATE (position, published_at)",
        "audit_log": "SELECT",
    },
}

# Only a comparison of a column with a setting: a subquery in a policy does not distribute.
POLICIES = {"gateway_app": "brand_id = current_setting('app.brand_id', true)", "gateway_relay": "true"}


def upgrade() -> None:
    _tables()
    for role in GRANTS:
        _role(role)
    for table in sorted({table for grants in GRANTS.values() for table in grants}):
        op.execute(f"ALTER TABLE {SCHEMA}.{table} ENABLE ROW LEVEL SECURITY")
    for role, grants in GRANTS.items():
        op.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role}")
        for table, rights in grants.items():
            op.execute(f"GRANT {rights} ON {SCHEMA}.{table} TO {role}")
            op.execute(f"CREATE POLICY {role} ON {SCHEMA}.{table} TO {role} USING ({POLICIES[role]})")


def _role(name: str) -> None:
    # Roles belong to the whole server: the gateway of another database may have created them, or do so concurrently.
    exists = op.get_bind().execute(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": name}).scalar()
    if not exists:
        op.execute(
            f"DO $$ BEGIN CREATE ROLE {name} NOLOGIN NOSUPERUSER NOBYPASSRLS; GRANT {name} TO CURRENT_USER;"
            " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )


def _tables() -> None:
    now = {"server_default": sa.text("now()"), "nullable": False}
    op.create_table(
        "idempotency_keys",
        sa.Column("brand_id", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("encounter_id", sa.Uuid(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), **now),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("brand_id", "client_id", "key", name="pk_idempotency_keys"),
        schema=SCHEMA,
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"], schema=SCHEMA)
    op.create_table(
        "outbox",
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("brand_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), **now),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("patient_id", "id", name="pk_outbox"),
        schema=SCHEMA,
    )
    op.create_index(
        "ix_outbox_created_at_id",
        "outbox",
        ["created_at", "id"],
        schema=SCHEMA,
        postgresql_where=sa.text("position IS NULL"),
    )
    op.create_index(
        "ix_outbox_position",
        "outbox",
        ["position"],
        schema=SCHEMA,
        postgresql_where=sa.text("position IS NOT NULL"),
    )
    op.create_table(
        "audit_log",
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), **now),
        sa.Column("actor_type", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Text(), nullable=False),
        sa.Column("actor_brand_id", sa.Text(), nullable=True),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("entity_id", sa.Text(), nullable=True),
        sa.Column("brand_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("details", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.PrimaryKeyConstraint("patient_id", "id", name="pk_audit_log"),
        schema=SCHEMA,
    )
    op.create_index(
        "ix_audit_log_brand_id_occurred_at_id", "audit_log", ["brand_id", "occurred_at", "id"], schema=SCHEMA
    )
