"""Indexes that a migration creates without blocking writes."""

from typing import Any

import sqlalchemy as sa
from alembic import op


def create_index(name: str, table: str, columns: list[str | sa.TextClause], **options: Any) -> None:
    """Create an index while the table is written to.

    The statement runs outside a transaction. If it is interrupted, the next `gateway migrate` drops the invalid index
    that it leaves, and creates it again; an index that was completed stays.
    """
    with op.get_context().autocommit_block():
        # It waits for running transactions, and blocks none.
        limit = op.get_bind().scalar(sa.text("SHOW lock_timeout"))
        op.execute("SET lock_timeout = 0")
        found = op.get_bind().scalar(
            sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"),
            {"name": f"patient_graph.{name}"},
        )
        if not found:
            if found is not None:
                op.execute(f"DROP INDEX CONCURRENTLY patient_graph.{name}")
            op.create_index(name, table, columns, schema="patient_graph", postgresql_concurrently=True, **options)
        op.execute(f"SET lock_timeout = '{limit}'")
