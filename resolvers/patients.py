"""Patients: whether one exists in a brand, and how one comes to be known here."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field
from sqlalchemy import Text, any_, bindparam, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlmodel import col, select

from models import Encounter, Patient
from resolvers import json_text
from resolvers.access import Permission
from resolvers.audit import PATIENT_REGISTERED, append_entry
from resolvers.bounded_rows import BoundedStatement
from resolvers.commands import Command, broken
from resolvers.commands import Text as CommandText
from resolvers.context import Context
from resolvers.sql import Connection, Statement

MAX_ID_CHARACTERS = 200
ID_RULE = f"must have 1 to {MAX_ID_CHARACTERS} printable characters, no slash among them, and be neither . nor .."

FIND_PATIENTS = BoundedStatement(
    select(Patient).where(
        col(Patient.brand_id) == bindparam("brand_id"),
        col(Patient.id) == any_(bindparam("ids", type_=ARRAY(Text))),
    ),
    ["external_ids"],
)
FIND_PATIENT = Statement(
    select(Patient).where(col(Patient.id) == bindparam("patient_id"), col(Patient.brand_id) == bindparam("brand_id"))
)
TIME_AT_PATIENT = Statement(
    select(func.now()).where(col(Patient.id) == bindparam("patient_id"), col(Patient.brand_id) == bindparam("brand_id"))
)
ADD_PATIENTS = Statement(
    insert(Patient)
    .from_select(
        ["brand_id", "id", "external_ids"],
        select(
            bindparam("brand_id", type_=Text),
            func.unnest(bindparam("ids", type_=ARRAY(Text))),
            func.unnest(bindparam("external_ids", type_=ARRAY(JSONB))),
        ),
    )
    .on_conflict_do_nothing()
    .returning(col(Patient.id))
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


async def time_at(connection: Connection, brand_id: str, patient_id: str) -> datetime | None:
    """Give the time of the transaction by the database's clock, or None where the brand has no such patient."""
    row = await connection.fetch_one(TIME_AT_PATIENT, brand_id=brand_id, patient_id=patient_id)
    return None if row is None else row[0]


async def patients_by_ids(context: Context, patient_ids: Sequence[str]) -> list[Patient | None]:
    """Give the patients the caller may see, in the order of `patient_ids`, None where there is none."""
    context.require(Permission.READ_PATIENTS)
    brand_id = context.acting_brand()
    ids = [patient_id for patient_id in patient_ids if can_exist(patient_id)]
    async with context.database.connection(brand_id) as connection:
        rows = await FIND_PATIENTS.fetch(context.answer, connection, len(ids), brand_id=brand_id, ids=ids)
    found = {row["id"]: Patient.model_construct(**row) for row in rows}
    return [found.get(patient_id) for patient_id in patient_ids]


class SeenPatient(NamedTuple):
    """As much of a patient as an encounter says, which is all that is told of one."""

    id: str
    brand_id: str


def patient_of(context: Context, encounter: Encounter) -> SeenPatient:
    """Give whose encounter it is. Nothing is read: an encounter's patient is there, by the database's own rule.

    Raises `InsufficientScope` or `Forbidden`, as reading the patient would.
    """
    context.require(Permission.READ_PATIENTS)
    context.acting_brand()
    return SeenPatient(encounter.patient_id, encounter.brand_id)


def can_be_registered(patient_id: str) -> bool:
    """Say whether a text may become a patient's id: one that can exist, and that a URL can carry in its path."""
    in_a_path = "/" not in patient_id and patient_id not in {".", ".."} and patient_id.isprintable()
    return in_a_path and can_exist(patient_id)


# Source: the platform's convention that a brand is a slug. Another case or a stray blank would be another brand, whose
# patients no token ever reaches.
_SLUG = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")
MAX_BRAND_CHARACTERS = 63


def _registrable(patient_id: str) -> str:
    if not can_be_registered(patient_id):
        raise broken("patient_id", ID_RULE)
    return patient_id


def _slug(brand_id: str) -> str:
    if not (len(brand_id) <= MAX_BRAND_CHARACTERS and _SLUG.fullmatch(brand_id)):
        raise broken(
            "slug",
            "must have 1 to {maximum} lower-case letters and digits, in words joined by - or _",
            maximum=MAX_BRAND_CHARACTERS,
        )
    return brand_id


def _object(external_ids: object) -> object:
    if not isinstance(external_ids, dict):
        raise broken("object", "must be an object")
    return external_ids


class RegisterPatient(Command):
    """What is said of a patient: that there is one, in which brand, and under which names elsewhere."""

    id: Annotated[CommandText, AfterValidator(_registrable)]
    brand_id: Annotated[CommandText, AfterValidator(_slug)]
    external_ids: Annotated[dict[CommandText, CommandText], BeforeValidator(_object)] = Field(default_factory=dict)


async def register_patient(context: Context, members: Mapping[str, Any]) -> tuple[Patient, bool]:
    """Make a patient known; give the patient, and whether the brand knew the id already, and so nothing was changed.

    `members` are those of the `RegisterPatient` command, unchecked. Raises `InsufficientScope`, `Forbidden`,
    `InvalidInput`, `TemporarilyUnavailable` or `OutcomeUnknown`, in this order.
    """
    context.require(Permission.REGISTER_PATIENT)
    brand_id = context.acting_brand(members.get("brand_id"))
    command = RegisterPatient.read(members, context.services.input_limits)

    async with context.database.transaction(brand_id) as connection:
        is_new = await add_patients(connection, brand_id, {command.id: command.external_ids}) == 1
        patient = await find_patient(connection, brand_id, command.id)
        assert patient is not None, "it is there now, and patients are never deleted"
        if is_new:
            await append_entry(connection, context, PATIENT_REGISTERED, patient)
    return patient, not is_new


async def add_patients(connection: Connection, brand_id: str, patients: Mapping[str, Mapping[str, str]]) -> int:
    """Make patients known in one statement, but for those the brand knows already; give how many are new.

    `patients` are external ids by patient id, a few thousand at most. Raises `ValueError` for an id that no URL could
    carry. The caller's right to do this is the caller's business.
    """
    if not all(map(can_be_registered, patients)):
        raise ValueError(ID_RULE)
    # In one order for everybody, so that two at once wait for each other at most in one direction.
    ids = sorted(patients)
    external_ids = [json_text.write(dict(patients[patient_id])) for patient_id in ids]
    return len(await connection.fetch(ADD_PATIENTS, brand_id=brand_id, ids=ids, external_ids=external_ids))
