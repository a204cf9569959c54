"""Patients: whether a brand has one, how one is registered, and how its external ids are replaced."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import orjson
from pydantic import AfterValidator, Field
from sqlalchemy import Text, any_, bindparam, column, delete, func, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlmodel import col, select

from models import AuditEntry, Encounter, Patient, PatientExternalId, table_of
from resolvers import json_text
from resolvers.access import Permission
from resolvers.audit import EXTERNAL_IDS_SET, PATIENT_ERASED, PATIENT_REGISTERED, append_entry
from resolvers.bounded_rows import BoundedStatement
from resolvers.commands import Command, ExternalIds, FindByExternalId, broken
from resolvers.commands import Text as CommandText
from resolvers.context import Context
from resolvers.errors import (
    InvalidInput,
    KeyErased,
    OutcomeUnknown,
    PatientNotFound,
    TemporarilyUnavailable,
    Violation,
)
from resolvers.idempotency import HALF_VISIBLE, Claim, KeyTaken, claim_change, claim_of_change, taken_key
from resolvers.sql import Connection, Statement

MAX_FOUND = 20
"""Maximum number of patients, or of encounters, that are found by one external id."""

MAX_ID_CHARACTERS = 200
ID_RULE = f"must have 1 to {MAX_ID_CHARACTERS} printable characters without a slash, and be neither . nor .."

EXTERNAL_IDS = table_of(PatientExternalId)

FIND_PATIENTS = BoundedStatement(
    select(Patient).where(
        col(Patient.brand_id) == bindparam("brand_id"),
        col(Patient.id) == any_(bindparam("ids", type_=ARRAY(Text))),
    ),
    ["external_ids"],
)
PATIENTS_WITH_EXTERNAL_ID = Statement(
    select(EXTERNAL_IDS.c.patient_id)
    .where(*(EXTERNAL_IDS.c[name] == bindparam(name) for name in ("brand_id", "system", "value")))
    .order_by(EXTERNAL_IDS.c.patient_id)
    .limit(MAX_FOUND)
)
FIND_PATIENT = Statement(
    select(Patient).where(col(Patient.id) == bindparam("patient_id"), col(Patient.brand_id) == bindparam("brand_id"))
)
# For a cluster: waits for the second phase of a change under a key, as `ENCOUNTER_OF_KEY` does.
PATIENT_OF_KEY = Statement(
    select(Patient)
    .where(col(Patient.id) == bindparam("patient_id"), col(Patient.brand_id) == bindparam("brand_id"))
    .with_for_update(read=True)
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
SET_EXTERNAL_IDS = Statement(
    update(Patient)
    .where(
        col(Patient.id) == bindparam("patient_id"),
        col(Patient.brand_id) == bindparam("brand"),
        col(Patient.external_ids).is_distinct_from(bindparam("new_ids", type_=JSONB)),
    )
    .values(external_ids=bindparam("new_ids", type_=JSONB))
    .returning(col(Patient.id))
)

_GIVEN = (
    func.unnest(*(bindparam(name, type_=ARRAY(Text)) for name in ("patient_ids", "systems", "external_values")))
    .table_valued(column("patient_id", Text), column("system", Text), column("value", Text), name="given")
    .render_derived()
)
# Selects from the patients: a cluster copies rows that come from parameters alone, which row-level security forbids.
ADD_EXTERNAL_IDS = Statement(
    insert(EXTERNAL_IDS).from_select(
        ["brand_id", "patient_id", "system", "value"],
        select(col(Patient.brand_id), col(Patient.id), _GIVEN.c.system, _GIVEN.c.value)
        .join_from(Patient, _GIVEN, col(Patient.id) == _GIVEN.c.patient_id)
        .where(
            col(Patient.id) == any_(bindparam("patient_ids", type_=ARRAY(Text))),
            col(Patient.brand_id) == bindparam("brand_id"),
        ),
    )
)
DELETE_EXTERNAL_IDS = Statement(
    delete(EXTERNAL_IDS).where(
        EXTERNAL_IDS.c.patient_id == bindparam("patient_id"), EXTERNAL_IDS.c.brand_id == bindparam("brand_id")
    )
)


# The log is never pruned, so it also serves as the list of erased ids.
ERASED_PATIENTS = Statement(
    select(col(AuditEntry.patient_id)).where(
        col(AuditEntry.patient_id) == any_(bindparam("ids", type_=ARRAY(Text))),
        col(AuditEntry.brand_id) == bindparam("brand_id"),
        col(AuditEntry.event_type) == bindparam("event_type", PATIENT_ERASED),
    )
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
    if not ids:
        return [None for _ in patient_ids]
    async with context.database.connection(brand_id) as connection:
        rows = await FIND_PATIENTS.fetch(context.answer, connection, len(ids), brand_id=brand_id, ids=ids)
    found = {row["id"]: Patient.model_construct(**row) for row in rows}
    return [found.get(patient_id) for patient_id in patient_ids]


async def patients_by_external_id(context: Context, members: Mapping[str, Any]) -> list[Patient]:
    """Return the patients with an external id, in the order of their ids, at most `MAX_FOUND`.

    `members` are those of the `FindByExternalId` command, unvalidated. Raises `InsufficientScope`, `Forbidden`,
    `InvalidInput` or `TemporarilyUnavailable`, in this order.
    """
    context.require(Permission.READ_PATIENTS)
    brand_id = context.acting_brand()
    external_id = FindByExternalId.read(members, context.services.input_limits)
    async with context.database.connection(brand_id) as connection:
        rows = await connection.fetch(PATIENTS_WITH_EXTERNAL_ID, brand_id=brand_id, **external_id.given())
    found = await patients_by_ids(context, [row["patient_id"] for row in rows])
    patients = [patient for patient in found if patient]
    context.note_patients([(brand_id, patient.id) for patient in patients])
    return patients


class SeenPatient(NamedTuple):
    """The attributes of a patient that an encounter carries."""

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


class RegisterPatient(Command):
    """The data of a patient to register: its id, its brand, and its ids in other systems."""

    id: Annotated[CommandText, AfterValidator(_registrable)]
    brand_id: Annotated[CommandText, AfterValidator(_slug)]
    external_ids: ExternalIds = Field(default_factory=dict)


class Registration(NamedTuple):
    """A registered patient."""

    patient: Patient
    already_known: bool
    """Whether the brand had the id before; of a replay, before the first request."""
    replayed: bool = False


async def register_patient(context: Context, members: Mapping[str, Any], key: str | None = None) -> Registration:
    """Register a patient, unless the brand has the id already.

    `members` are those of the `RegisterPatient` command, unvalidated. Raises `InsufficientScope`, `Forbidden`,
    `InvalidInput`, `IdempotencyKeyReused`, `TemporarilyUnavailable` or `OutcomeUnknown`, in this order.
    """
    context.require(Permission.REGISTER_PATIENT)
    brand_id = context.acting_brand(members.get("brand_id"))
    command = RegisterPatient.read(members, context.services.input_limits)
    claim = claim_of_change(key, context, brand_id, "register_patient", command.given())

    try:
        async with context.database.transaction(brand_id) as connection:
            is_new = await add_patients(connection, brand_id, {command.id: command.external_ids}) == 1
            patient = await find_patient(connection, brand_id, command.id)
            if patient is None:
                # Erased after the insertion had found it.
                raise TemporarilyUnavailable
            await claim_change(context, connection, claim, patient_id=command.id, answer=orjson.dumps(not is_new))
            if is_new:
                await append_entry(connection, context, PATIENT_REGISTERED, patient)
    except IdErased as erased:
        raise erased.refusal from None
    except KeyTaken as taken:
        patient, answer = await _replay(context, taken.claim, command.id)
        return Registration(patient, orjson.loads(answer), replayed=True)
    return Registration(patient, not is_new)


class SetExternalIds(Command):
    """The ids of a patient in other systems, which replace all earlier ones."""

    external_ids: ExternalIds


async def set_external_ids(
    context: Context, patient_id: str, members: Mapping[str, Any], key: str | None = None
) -> tuple[Patient, bool]:
    """Replace a patient's external ids; return the patient, and whether this was done earlier under the same key.

    `members` are those of the `SetExternalIds` command, unvalidated. Raises `InsufficientScope`, `Forbidden`,
    `InvalidInput`, `IdempotencyKeyReused`, `PatientNotFound`, `TemporarilyUnavailable` or `OutcomeUnknown`, in this
    order.
    """
    context.require(Permission.REGISTER_PATIENT)
    brand_id = context.acting_brand()
    command = SetExternalIds.read(members, context.services.input_limits)
    if not can_exist(patient_id):
        raise PatientNotFound
    request = {"id": patient_id, **command.given()}
    claim = claim_of_change(key, context, brand_id, "set_external_ids", request)

    try:
        async with context.database.transaction(brand_id) as connection:
            await claim_change(context, connection, claim, patient_id=patient_id)
            of = {"patient_id": patient_id, "brand": brand_id, "new_ids": json_text.write(dict(command.external_ids))}
            changed = await connection.fetch(SET_EXTERNAL_IDS, **of)
            if changed:
                await connection.fetch(DELETE_EXTERNAL_IDS, brand_id=brand_id, patient_id=patient_id)
                await add_external_ids(connection, brand_id, {patient_id: command.external_ids})
            patient = await find_patient(connection, brand_id, patient_id)
            if patient is None:
                raise PatientNotFound
            if changed:
                # Their number only: a system's name may tell where the patient is treated.
                details = {"external_ids": len(command.external_ids)}
                await append_entry(connection, context, EXTERNAL_IDS_SET, patient, details)
    except KeyTaken as taken:
        patient, _ = await _replay(context, taken.claim, patient_id)
        return patient, True
    return patient, False


async def _replay(context: Context, claim: Claim, patient_id: str) -> tuple[Patient, bytes]:
    """Return the current state of the patient that was changed under the key, and the key's answer."""
    try:
        async with taken_key(context, claim) as (connection, earlier):
            if earlier is None:
                # The key existed a moment ago and has just expired: the caller's next attempt will claim it.
                raise TemporarilyUnavailable
            statement = FIND_PATIENT if context.services.batcher else PATIENT_OF_KEY
            row = await connection.fetch_one(statement, brand_id=claim.brand_id, patient_id=patient_id)
    except KeyErased:
        async with context.database.connection(claim.brand_id) as connection:
            if await find_patient(connection, claim.brand_id, patient_id) is None:
                raise PatientNotFound from None
        raise
    if row is None:
        # As in `encounter_of_key`.
        raise OutcomeUnknown(HALF_VISIBLE)
    return Patient.model_construct(**row), earlier.answer


class IdErased(Exception):
    """Rolls back an insertion of patients, of which some were erased."""

    def __init__(self, ids: frozenset[str]) -> None:
        super().__init__()
        self.ids = ids

    @property
    def refusal(self) -> InvalidInput:
        """The error for the caller."""
        return InvalidInput([Violation("/id", "erased", "must not be the id of a patient that was erased")])


async def add_patients(connection: Connection, brand_id: str, patients: Mapping[str, Mapping[str, str]]) -> int:
    """Insert patients in one statement, except those the brand has already; return the number inserted.

    `patients` maps patient ids to external ids, a few thousand at most. Raises `ValueError` for an id that a URL cannot
    contain, and `IdErased`. Checking permissions is up to the caller of this function.
    """
    if not all(map(can_be_registered, patients)):
        raise ValueError(ID_RULE)
    # Inserted in one global order, so that two concurrent statements cannot deadlock.
    ids = sorted(patients)
    external_ids = [json_text.write(dict(patients[patient_id])) for patient_id in ids]
    rows = await connection.fetch(ADD_PATIENTS, brand_id=brand_id, ids=ids, external_ids=external_ids)
    # Checked afterwards: the insertion waited for an erasure in progress, which only a later statement sees.
    new = [row["id"] for row in rows]
    if new and (erased := await connection.fetch(ERASED_PATIENTS, brand_id=brand_id, ids=new)):
        raise IdErased(frozenset(row["patient_id"] for row in erased))
    await add_external_ids(connection, brand_id, {row["id"]: patients[row["id"]] for row in rows})
    return len(rows)


async def add_external_ids(connection: Connection, brand_id: str, patients: Mapping[str, Mapping[str, str]]) -> None:
    """Insert the rows by which patients are found; `patients` maps the ids of patients to their external ids."""
    rows = [(patient_id, *each) for patient_id, external_ids in patients.items() for each in external_ids.items()]
    if rows:
        patient_ids, systems, values = zip(*rows, strict=True)
        named = {"patient_ids": patient_ids, "systems": systems, "external_values": values}
        await connection.fetch(ADD_EXTERNAL_IDS, brand_id=brand_id, **named)
