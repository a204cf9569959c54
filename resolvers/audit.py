"""The audit log: who did what to which record, appended in the transaction of the change itself."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table, bindparam, insert

from models import AuditEntry, Encounter
from resolvers import json_text
from resolvers.context import Context
from resolvers.ids import new_id
from resolvers.sql import Connection, Statement

TABLE: Table = AuditEntry.__table__  # type: ignore[attr-defined]

APPEND_ENTRY = Statement(
    insert(TABLE).values(
        {name: bindparam(name, type_=column.type) for name, column in TABLE.c.items() if name != "occurred_at"}
    )
)

ENCOUNTER_RECORDED = "patient_graph.encounter.recorded"


async def append_entry(
    connection: Connection,
    context: Context,
    event_type: str,
    encounter: Encounter,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append that the caller did something to an encounter. `details` never hold what a person wrote."""
    await connection.fetch(
        APPEND_ENTRY,
        patient_id=encounter.patient_id,
        id=new_id(),
        actor_type=context.caller.actor_type,
        actor_id=context.caller.actor_id,
        actor_brand_id=context.caller.brand_id,
        event_type=event_type,
        entity_type="encounter",
        entity_id=str(encounter.id),
        brand_id=encounter.brand_id,
        request_id=context.request_id,
        details=json_text.write(dict(details or {})),
    )
