"""The list of a brand's patients, newest first by `(created_at, id)`, in pages with keyset cursors."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import NamedTuple

from sqlalchemy import BigInteger, bindparam, select, tuple_

from models import Patient, table_of
from resolvers.access import Permission
from resolvers.bounded_rows import BoundedStatement
from resolvers.commands import PatientFilter
from resolvers.context import Context
from resolvers.errors import InvalidInput, Violation
from resolvers.paging import (
    ListOf,
    decode_cursor,
    digest_of,
    encode_cursor,
    instant_of_micros,
    micros_of,
    window_of,
)
from resolvers.patients import can_exist

TABLE = table_of(Patient)


class PatientPosition(NamedTuple):
    """A position in the list: that of the patient with this creation time and id."""

    created_at: datetime
    id: str


@dataclass(frozen=True, slots=True)
class PatientPage:
    """Adjacent patients, newest first, whether the list continues at either end, and the list of the cursors."""

    items: Sequence[Patient]
    has_next: bool
    has_previous: bool
    cursor_scope: str

    def cursor(self, patient: Patient) -> str:
        """Return the opaque cursor of a patient on this page."""
        return write_cursor(PatientPosition(patient.created_at, patient.id), self.cursor_scope)


async def list_patients(
    context: Context, filters: PatientFilter, *, first: int | None = None, after: str | None = None
) -> PatientPage:
    """Return a page of the patients of the caller's brand.

    Args:
        context: The caller's context.
        filters: The filter of the list.
        first: Number of patients, from the newest. None: the default of `PageLimits`.
        after: Cursor after which the page begins. None: the newest patient.

    Raises `InsufficientScope`, `Forbidden`, `InvalidInput`, `AnswerTooLarge` or `TemporarilyUnavailable`.
    """
    context.require(Permission.LIST_PATIENTS)
    brand_id = context.acting_brand()
    cursor_scope = f"{brand_id}\npatients\n{filters.model_dump_json()}"
    size = window_of(context.services.page_limits, ListOf(brand_id, None), first=first).size
    position = None if after is None else read_cursor(after, cursor_scope)
    places = {} if position is None else {"after_created_at": position.created_at, "after_id": position.id}
    parts = filters.criteria()
    statement = _page(frozenset(parts), position is not None)
    async with context.database.connection(brand_id) as connection:
        # One row more than requested shows whether the list continues.
        values = {"limit": size + 1, **parts, **places}
        rows = await statement.fetch(context.answer, connection, size + 1, brand_id=brand_id, **values)
    patients = [Patient.model_construct(**{name: row[name] for name in Patient.model_fields}) for row in rows[:size]]
    context.note_patients([(brand_id, patient.id) for patient in patients])
    return PatientPage(patients, len(rows) > size, position is not None, cursor_scope)


@cache
def _page(parts: frozenset[str], after: bool) -> BoundedStatement:
    every = {
        "created_from": TABLE.c.created_at >= bindparam("created_from"),
        "created_until": TABLE.c.created_at < bindparam("created_until"),
    }
    conditions = [every[part] for part in sorted(parts)]
    place = (TABLE.c.created_at, TABLE.c.id)
    if after:
        position = (bindparam(f"after_{column.name}", type_=column.type) for column in place)
        conditions.append(tuple_(*place) < tuple_(*position))
    return BoundedStatement(
        select(TABLE)
        .where(TABLE.c.brand_id == bindparam("brand_id"), *conditions)
        .order_by(*(column.desc() for column in place))
        .limit(bindparam("limit", type_=BigInteger)),
        ["external_ids"],
    )


# Version, microseconds since the epoch, and the first 8 bytes of the digest of the list; the id follows.
_CURSOR = struct.Struct(">Bq8s")
_CURSOR_VERSION = 1


def write_cursor(position: PatientPosition, cursor_scope: str) -> str:
    """Return the opaque cursor of a position in the list that `cursor_scope` describes (brand and filter)."""
    head = _CURSOR.pack(_CURSOR_VERSION, micros_of(position.created_at), digest_of(cursor_scope))
    return encode_cursor(head + position.id.encode())


def read_cursor(cursor: str, cursor_scope: str) -> PatientPosition:
    """Return the position of a cursor. Raises `InvalidInput` for any other text and for a cursor of another list."""
    try:
        packed = decode_cursor(cursor)
        version, micros, digest = _CURSOR.unpack_from(packed)
        patient_id = packed[_CURSOR.size :].decode()
        if (version, digest) == (_CURSOR_VERSION, digest_of(cursor_scope)) and can_exist(patient_id):
            return PatientPosition(instant_of_micros(micros), patient_id)
    except (ValueError, struct.error, OverflowError):
        pass
    raise InvalidInput([Violation("/after", "cursor", "must be a cursor of this list")])
