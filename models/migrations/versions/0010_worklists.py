"""The indexes of a brand's lists: one for each order, for a status with an order, and for the audit of lists."""

from sqlalchemy import text

from models.migrations.concurrently import create_index

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

OF_BRAND = text('brand_id COLLATE "C"')
SCHEDULED_FIRST = text("LEAST(scheduled_at, 'infinity'::timestamptz)")
SCHEDULED_LAST = text("GREATEST(scheduled_at, '-infinity'::timestamptz)")
PROVIDER = text("LEAST(provider_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)")


def upgrade() -> None:
    for name, columns in {
        "created_at_id": ["created_at"],
        "updated_at_id": ["updated_at"],
        "scheduled_at_id": [SCHEDULED_FIRST],
        "scheduled_at_id_desc": [SCHEDULED_LAST],
        "provider_id_scheduled_at_id": [PROVIDER, SCHEDULED_FIRST],
        "status_scheduled_at_id": ["status", SCHEDULED_FIRST],
    }.items():
        create_index(f"ix_encounters_brand_id_{name}", "encounters", [OF_BRAND, *columns, "id"])
    create_index(
        "ix_audit_log_patients",
        "audit_log",
        [text("(details -> 'patients')")],
        postgresql_using="gin",
        postgresql_where=text("entity_type = 'worklist'"),
    )
