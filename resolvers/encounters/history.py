"""The versions of an encounter: appended with each change, returned as its history."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, any_, bindparam, insert, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Text

from models import MEMBERS, Encounter, EncounterEventKind, EncounterVersion, Kind, table_of
from resolvers import json_text
from resolvers.access import Permission
from resolvers.bounded_rows import BoundedStatement
from resolvers.context import Context
from resolvers.sql import Connection, Row, Statement

TABLE = table_of(EncounterVersion)

APPEND_VERSION = Statement(
    insert(TABLE).values({column.name: bindparam(column.name, type_=column.type) for column in TABLE.c})
)
MOST_VERSIONS: Final = 100
"""Maximum versions of an encounter in one answer; a history is unbounded, and its cost is computed from this number."""

VERSIONS_OF_ENCOUNTERS = BoundedStatement(
    select(TABLE)
    .where(
        TABLE.c.patient_id == any_(bindparam("patient_ids", type_=ARRAY(Text))),
        TABLE.c.encounter_id == any_(bindparam("encounter_ids", type_=ARRAY(TABLE.c.encounter_id.type))),
        TABLE.c.brand_id == bindparam("brand_id"),
        # Versions are numbered without gaps, so numbers are positions.
        TABLE.c.version > bindparam("after", type_=BigInteger),
        TABLE.c.version <= bindparam("until", type_=BigInteger),
    )
    .order_by(TABLE.c.version),
    ["changes", "reason"],
)


class Change(NamedTuple):
    """One member of an encounter before and after, as JSON text."""

    member: str
    before: str
    after: str


class Version(NamedTuple):
    """One version of an encounter: the kind of change that made it, and the changed members."""

    version: int
    kind: EncounterEventKind
    changed_at: datetime
    changed_by: str
    reason: str | None
    changes: Sequence[Change]


async def append_version(
    connection: Connection,
    context: Context,
    encounter: Encounter,
    kind: EncounterEventKind,
    *,
    changes: Mapping[str, tuple[Any, Any]],
    reason: str | None = None,
) -> None:
    """Append the current version of an encounter; `changes` maps columns to their values before and after."""
    await connection.fetch(
        APPEND_VERSION,
        patient_id=encounter.patient_id,
        encounter_id=encounter.id,
        version=encounter.version,
        brand_id=encounter.brand_id,
        kind=kind,
        changed_at=encounter.updated_at,
        actor_type=context.caller.actor_type,
        actor_id=context.caller.actor_id,
        request_id=context.request_id,
        reason=reason,
        changes=json_of(changes),
    )


def json_of(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the changes of a version as JSON text; they map columns to their values before and after."""
    shown = {
        name: {"before": _json_value(name, before), "after": _json_value(name, after)}
        for name, (before, after) in changes.items()
    }
    return json_text.write(shown)


def _json_value(column: str, value: Any) -> Any:
    if MEMBERS[column].kind is Kind.JSON:
        return json_text.read(value)
    if isinstance(value, datetime):
        return json_text.instant(value)
    return None if value is None else str(value)


async def histories_of(
    context: Context, encounters: Sequence[tuple[str, UUID]], first: int = MOST_VERSIONS, after: int = 0
) -> list[list[Version]]:
    """Return the versions of each encounter (its patient and id), oldest first, in the order of `encounters`.

    At most `first` versions after the version `after`. Raises `AnswerTooLarge` or `AnswerMemoryFull`.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    async with context.database.connection(brand_id) as connection:
        rows = await VERSIONS_OF_ENCOUNTERS.fetch(
            context.answer,
            connection,
            len(encounters) * first,
            brand_id=brand_id,
            patient_ids=[patient_id for patient_id, _ in encounters],
            encounter_ids=[encounter_id for _, encounter_id in encounters],
            after=after,
            until=after + first,
        )
    histories: dict[UUID, list[Version]] = {}
    for row in rows:
        histories.setdefault(row["encounter_id"], []).append(_version(row))
    # The changes contain the encounter's members, so a read of the encounter is audited.
    context.note_given(Counter((brand_id, patient_id) for patient_id, each in encounters if each in histories))
    return [histories.get(encounter_id, []) for _, encounter_id in encounters]


def _version(row: Row) -> Version:
    changes = [
        Change(member, json_text.write(value["before"]), json_text.write(value["after"]))
        for member, value in json_text.read(row["changes"]).items()
    ]
    return Version(
        row["version"], EncounterEventKind(row["kind"]), row["changed_at"], row["actor_id"], row["reason"], changes
    )
