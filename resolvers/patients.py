"""Patients: whether a brand has one, and how one is registered."""

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
ID_RULE = f"must have 1 to {MAX_ID_CHARACTERS} printable characters without a slash, and be neither . nor .."

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
    """Return whether a text can be a patient's id; any other text is unknown without a query."""
    return 0 < len(patient_id) <= MAX_ID_CHARACTERS and json_text.problem_with(patient_id) is None


async def find_patient(connection: Connection, brand_id: str, patient_id: str) -> Patient | None:
    """Return a patient of this brand, or None."""
    if not can_exist(patient_id):
        return None
    row = await connection.fetch_one(FIND_PATIENT, brand_id=brand_id, patient_id=patient_id)
    return row and Patient.model_construct(**row)


async def time_at(connection: Connection, brand_id: str, patient_id: str) -> datetime | None:
    """Return the transaction's time by the database's clock, or None if the brand has no such patient."""
    row = await connection.fetch_one(TIME_AT_PATIENT, brand_id=brand_id, patient_id=patient_id)
    return None if row is None else row[0]


async def patients_by_ids(context: Context, patient_ids: Sequence[str]) -> list[Patient | None]:
    """Return the patients that the caller may see, in the order of `patient_ids`; None for an id that is not found."""
    context.require(Permission.READ_PATIENTS)
    brand_id = context.acting_brand()
    ids = [patient_id for patient_id in patient_ids if can_exist(patient_id)]
    async with context.database.connection(brand_id) as connection:
        rows = await FIND_PATIENTS.fetch(context.answer, connection, len(ids), brand_id=brand_id, ids=ids)
    found = {row["id"]: Patient.model_construct(**row) for row in rows}
    return [found.get(patient_id) for patient_id in patient_ids]


class SeenPatient(NamedTuple):
    """The attributes of a patient that an encounter carries, which are all that is shown of a patient."""

    id: str
    brand_id: str


def patient_of(context: Context, encounter: Encounter) -> SeenPatient:
    """Return the patient of an encounter. Nothing is read: a foreign key guarantees that the patient exists.

    Raises `InsufficientScope` or `Forbidden`, as reading the patient would.
    """
    context.require(Permission.READ_PATIENTS)
    context.acting_brand()
    return SeenPatient(encounter.patient_id, encounter.brand_id)


def can_be_registered(patient_id: str) -> bool:
    """Return whether a text may become a patient's id: a possible id that a URL path can contain."""
    in_a_path = "/" not in patient_id and patient_id not in {".", ".."} and patient_id.isprintable()
    return in_a_path and can_exist(patient_id)


# Source: the platform's convention that a brand is a slug. Another case or a stray blank would be another brand, whose
# patients no token could access.
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
    """The data of a patient to register: its id, its brand, and its ids in other systems."""

    id: Annotated[CommandText, AfterValidator(_registrable)]
    brand_id: Annotated[CommandText, AfterValidator(_slug)]
    external_ids: Annotated[dict[CommandText, CommandText], BeforeValidator(_object)] = Field(default_factory=dict)


async def register_patient(context: Context, members: Mapping[str, Any]) -> tuple[Patient, bool]:
    """Register a patient; return the patient, and whether the brand had the id already, so that nothing changed.

    `members` are those of the `RegisterPatient` command, unvalidated. Raises `InsufficientScope`, `Forbidden`,
    `InvalidInput`, `TemporarilyUnavailable` or `OutcomeUnknown`, in this order.
    """
    context.require(Permission.REGISTER_PATIENT)
    brand_id = context.acting_brand(members.get("brand_id"))
    command = RegisterPatient.read(members, context.services.input_limits)

    async with context.database.transaction(brand_id) as connection:
        is_new = await add_patients(connection, brand_id, {command.id: command.external_ids}) == 1
        patient = await find_patient(connection, brand_id, command.id)
        assert patient is not None, "the insertion found or made it, and patients are never deleted"
        if is_new:
            await append_entry(connection, context, PATIENT_REGISTERED, patient)
    return patient, not is_new


async def add_patients(connection: Connection, brand_id: str, patients: Mapping[str, Mapping[str, str]]) -> int:
    """Insert patients in one statement, except those the brand has already; return the number inserted.

    `patients` maps patient ids to external ids, a few thousand at most. Raises `ValueError` for an id that a URL cannot
    contain. Checking permissions is up to the caller of this function.
    """
    if not all(map(can_be_registered, patients)):
        raise ValueError(ID_RULE)
    # Inserted in one global order, so that two concurrent statements cannot deadlock.
    ids = sorted(patients)
    external_ids = [json_text.write(dict(patients[patient_id])) for patient_id in ids]
    return len(await connection.fetch(ADD_PATIENTS, brand_id=brand_id, ids=ids, external_ids=external_ids))
