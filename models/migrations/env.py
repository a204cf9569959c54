"""The entry point of Alembic: `gateway migrate` passes the connection; this module opens none."""

from typing import Any

from alembic import context

from models import Table
from models.base import PROCESS_SCHEMA, SCHEMA
from models.oldest_revision import SCHEMA_REVISION


def only_ours(name: str | None, kind: str, _parents: Any) -> bool:
    """Return whether to compare the object: other schemas of a shared database are ignored."""
    return kind != "schema" or name in {SCHEMA, PROCESS_SCHEMA}


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    include_schemas=True,
    include_name=only_ours,
    version_table=SCHEMA_REVISION,
    version_table_schema=PROCESS_SCHEMA,
    compare_server_default=True,
    # So that locks of one migration are released before the next one needs others.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
