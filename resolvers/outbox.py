"""The outbox: events that others are told of, kept in the transaction of the change they tell of."""

from sqlalchemy import Table, bindparam, insert

from models import Encounter, OutboxEvent
from resolvers import json_text
from resolvers.ids import new_id
from resolvers.sql import Connection, Statement

TABLE: Table = OutboxEvent.__table__  # type: ignore[attr-defined]

APPEND_EVENT = Statement(
    insert(TABLE).values(
        {
            name: bindparam(name, type_=TABLE.c[name].type)
            for name in ("patient_id", "id", "brand_id", "event_type", "payload")
        }
    )
)

ENCOUNTER_RECORDED = "patient_graph.encounter.recorded.v1"


async def append_recorded(connection: Connection, encounter: Encounter) -> None:
    """Append that an encounter was recorded: which one, whose, of what kind and when. Nothing clinical."""
    payload = {
        "encounter_id": str(encounter.id),
        "patient_id": encounter.patient_id,
        "brand_id": encounter.brand_id,
        "encounter_type": str(encounter.encounter_type),
        "recorded_at": encounter.created_at.isoformat().replace("+00:00", "Z"),
    }
    await connection.fetch(
        APPEND_EVENT,
        patient_id=encounter.patient_id,
        id=new_id(),
        brand_id=encounter.brand_id,
        event_type=ENCOUNTER_RECORDED,
        payload=json_text.write(payload),
    )
