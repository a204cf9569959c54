"""How a Citus cluster distributes each table. A test compares the list with the models.

Clinical rows are distributed by their patient, so that what concerns one patient is on one node, in one shard. Source:
https://docs.citusdata.com/en/stable/develop/reference_ddl.html
"""

from collections.abc import Mapping

from models.base import PROCESS_SCHEMA, SCHEMA

COLUMNS: Mapping[str, str] = {
    f"{SCHEMA}.{table}": column
    for table, column in {
        "patients": "id",
        "encounters": "patient_id",
        "encounter_versions": "patient_id",
        "encounter_external_ids": "patient_id",
        "patient_external_ids": "patient_id",
        "audit_log": "patient_id",
        "audit_chain": "patient_id",
        "outbox": "patient_id",
        "dead_letters": "patient_id",
    }.items()
}
"""The distribution column of each table. Referenced tables stand first, because Citus requires that order."""

MANAGED = frozenset({f"{SCHEMA}.idempotency_keys"})
"""Tables that stay on the coordinator and change together with clinical rows, which Citus then commits in two phases.

The same key sent for another patient must be recognized, so a key is not on the node of its patient. On the
coordinator, no key is lost with a worker.
"""

LOCAL = frozenset(
    f"{PROCESS_SCHEMA}.{table}" for table in ("alembic_version", "feed_key", "leases", "sinks", "watermark")
)
"""Small tables that stay on the coordinator. No transaction changes them together with clinical rows."""


def colocated_with(table: str) -> str:
    """Return the table whose shards are on the same nodes, or `none` for a table with shards of its own."""
    return f"{SCHEMA}.patients" if COLUMNS[table] == "patient_id" else "none"
