"""The audit log of changes: each entry is appended in the transaction of its change.

`resolvers/audit_notes.py` composes the entries of reads and refusals.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, insert

from models import AuditEntry, Encounter, EncounterEventKind, Patient, table_of
from resolvers import json_text
from resolvers.context import Context
from resolvers.ids import new_id
from resolvers.sql import Connection, Statement

TABLE = table_of(AuditEntry)

APPEND_ENTRY = Statement(
    insert(TABLE).values(
        {name: bindparam(name, type_=column.type) for name, column in TABLE.c.items() if name != "occurred_at"}
    )
)

PATIENT_REGISTERED = "patient_graph.patient.registered"
EXTERNAL_IDS_SET = "patient_graph.patient.external_ids_set"
PATIENT_ERASED = "patient_graph.patient.erased"


def encounter_event(kind: EncounterEventKind) -> str:
    """Return the event type of the audit log for this kind of change to an encounter."""
    return f"patient_graph.encounter.{kind}"


async def append_entry(
    connection: Connection,
    context: Context,
    event_type: str,
    record: Encounter | Patient,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append an entry for the caller's action on a record. `details` never hold text that a person wrote."""
    await connection.fetch(
        APPEND_ENTRY,
        patient_id=record.id if isinstance(record, Patient) else record.patient_id,
        id=new_id(),
        actor_type=context.caller.actor_type,
        actor_id=context.caller.actor_id,
        actor_brand_id=context.caller.brand_id,
        event_type=event_type,
        entity_type=type(record).__name__.lower(),
        entity_id=str(record.id),
        brand_id=record.brand_id,
        request_id=context.request_id,
        details=json_text.write(dict(details or {})),
    )
