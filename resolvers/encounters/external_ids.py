"""The rows by which encounters are found by their external ids; written in the transaction of the encounter."""

from typing import Any, Final

from sqlalchemy import bindparam, delete, func, insert, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Text, col

from models import Encounter, EncounterExternalId, Patient, table_of
from resolvers import json_text
from resolvers.sql import Connection, Statement

NO_EXTERNAL_IDS: Final = "{}"
"""The external ids of an encounter that has none, as JSON text."""

EXTERNAL_IDS = table_of(EncounterExternalId)

# Selects from the patient: a cluster copies rows that come from parameters alone, which row-level security forbids.
ADD_EXTERNAL_IDS = Statement(
    insert(EXTERNAL_IDS).from_select(
        ["patient_id", "brand_id", "encounter_id", "system", "value"],
        select(
            col(Patient.id),
            col(Patient.brand_id),
            bindparam("encounter_id", type_=EXTERNAL_IDS.c.encounter_id.type),
            *(func.unnest(bindparam(name, type_=ARRAY(Text))) for name in ("systems", "external_values")),
        ).where(col(Patient.id) == bindparam("patient_id"), col(Patient.brand_id) == bindparam("brand_id")),
    )
)
DELETE_EXTERNAL_IDS = Statement(
    delete(EXTERNAL_IDS).where(
        *(
            EXTERNAL_IDS.c[name] == bindparam(name, type_=EXTERNAL_IDS.c[name].type)
            for name in ("patient_id", "encounter_id", "brand_id")
        )
    )
)


async def add_external_ids(connection: Connection, encounter: Encounter) -> None:
    """Insert the rows by which an encounter is found."""
    if encounter.external_ids != NO_EXTERNAL_IDS:
        external_ids = json_text.read(encounter.external_ids)
        values = {"systems": list(external_ids), "external_values": list(external_ids.values())}
        await connection.fetch(ADD_EXTERNAL_IDS, **_key(encounter), **values)


async def replace_external_ids(connection: Connection, encounter: Encounter) -> None:
    """Replace the rows by which an encounter is found."""
    await connection.fetch(DELETE_EXTERNAL_IDS, **_key(encounter))
    await add_external_ids(connection, encounter)


def _key(encounter: Encounter) -> dict[str, Any]:
    return {"patient_id": encounter.patient_id, "encounter_id": encounter.id, "brand_id": encounter.brand_id}
