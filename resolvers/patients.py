"""Patients: whether one exists in a brand, and how one comes to be known here."""

from collections.abc import Sequence

from sqlalchemy import any_, bindparam
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlmodel import Text, col, select

from models import Patient
from resolvers import json_text
from resolvers.access import Operation
from resolvers.context import Context
from resolvers.errors import PatientNotFound
from resolvers.sql import Connection, Statement

MAX_ID_CHARACTERS = 200

FIND_PATIENTS = Statement(
    select(Patient).where(
        col(Patient.brand_id) == bindparam("brand_id"),
        col(Patient.id) == any_(bindparam("ids", type_=ARRAY(Text))),
    )
)
FIND_PATIENT = Statement(
    select(Patient).where(col(Patient.id) == bindparam("patient_id"), col(Patient.brand_id) == bindparam("brand_id"))
)
ADD_PATIENT = Statement(
    insert(Patient)
    .values({name: bindparam(name) for name in ("id", "brand_id", "external_ids")})
    .on_conflict_do_nothing()
)


def can_exist(patient_id: str) -> bool:
    """Say whether a text can be a patient's id at all: everything else is unknown without asking the database."""
    return 0 < len(patient_id) <= MAX_ID_CHARACTERS and json_text.problem_with(patient_id) is None


async def find_patient(connection: Connection, brand_id: str, patient_id: str) -> Patient | None:
    """Find a patient of this brand, or None."""
    if not can_exist(patient_id):
        return None
    row = await connection.fetch_one(FIND_PATIENT, brand_id=brand_id, patient_id=patient_id)
    return row and Patient.model_construct(**row)


async def visible_patient(context: Context, patient_id: str) -> Patient:
    """Give a patient the caller may see. Raises `PatientNotFound`."""
    found = (await patients_by_ids(context, [patient_id]))[0]
    if found is None:
        raise PatientNotFound
    return found


async def patients_by_ids(context: Context, patient_ids: Sequence[str]) -> list[Patient | None]:
    """Give the patients the caller may see, in the order of `patient_ids`, None where there is none."""
    context.require(Operation.READ_PATIENTS)
    brand_id = context.acting_brand()
    ids = [patient_id for patient_id in patient_ids if can_exist(patient_id)]
    async with context.database.reading(brand_id) as connection:
        rows = await connection.fetch(FIND_PATIENTS, brand_id=brand_id, ids=ids)
    found = {row["id"]: Patient.model_construct(**row) for row in rows}
    return [found.get(patient_id) for patient_id in patient_ids]


async def add_patient(
    connection: Connection, brand_id: str, patient_id: str, external_ids: dict[str, str] | None = None
) -> None:
    """Make a patient known, unless the brand knows it already.

    Raises `ValueError` for an id that no URL could carry. The caller's right to do this is the caller's business.
    """
    if not can_exist(patient_id) or "/" in patient_id or not patient_id.isprintable() or patient_id in {".", ".."}:
        raise ValueError(f"a patient id has 1 to {MAX_ID_CHARACTERS} printable characters and no slash")
    await connection.fetch(
        ADD_PATIENT, id=patient_id, brand_id=brand_id, external_ids=json_text.write(external_ids or {})
    )
