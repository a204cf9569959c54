"""Possible duplicates of an encounter: a warning to the caller that has just recorded it, never a merge.

An idempotency key identifies repeated requests with certainty. Possible duplicates are a guess: two systems may each
have recorded the same visit, or a person may have entered it twice.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import BigInteger, Interval, any_, bindparam, select, true, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Text

from models import Encounter, Encounters, EncounterStatus, table_of
from resolvers.access import Permission
from resolvers.bounded_rows import LONG, BoundedStatement
from resolvers.context import Context

RECORDED = table_of(Encounters).alias("recorded")
EARLIER = table_of(Encounters).alias("earlier")

MOST = 10
"""Maximum number of duplicates named for an encounter: more would not change the warning, and the cost is bounded."""

# Served by `ix_encounters_patient_id_created_at_id`, which has the list's own order: of two encounters recorded at one
# instant, the one with the lesser id is the earlier.
ALIKE = (
    select(EARLIER)
    .where(
        EARLIER.c.patient_id == RECORDED.c.patient_id,
        # This says nothing new: a cluster infers the shards from it.
        EARLIER.c.patient_id == any_(bindparam("patient_ids", type_=ARRAY(Text))),
        EARLIER.c.brand_id == RECORDED.c.brand_id,
        EARLIER.c.encounter_type == RECORDED.c.encounter_type,
        EARLIER.c.provider_id.is_not_distinct_from(RECORDED.c.provider_id),
        EARLIER.c.created_at >= RECORDED.c.created_at - bindparam("window", type_=Interval),
        tuple_(EARLIER.c.created_at, EARLIER.c.id) < tuple_(RECORDED.c.created_at, RECORDED.c.id),
        EARLIER.c.status != EncounterStatus.ENTERED_IN_ERROR,
    )
    .order_by(EARLIER.c.created_at.desc(), EARLIER.c.id.desc())
    .limit(bindparam("most", type_=BigInteger))
    .lateral("alike")
)
POSSIBLE_DUPLICATES = BoundedStatement(
    select(RECORDED.c.id.label("of_id"), ALIKE)
    .select_from(RECORDED.join(ALIKE, true()))
    .where(
        RECORDED.c.patient_id == any_(bindparam("patient_ids", type_=ARRAY(Text))),
        RECORDED.c.id == any_(bindparam("ids", type_=ARRAY(RECORDED.c.id.type))),
        RECORDED.c.brand_id == bindparam("brand_id"),
    )
    .order_by(ALIKE.c.created_at.desc(), ALIKE.c.id.desc()),
    LONG,
)


async def possible_duplicates_of(context: Context, encounters: Sequence[tuple[str, UUID]]) -> list[list[Encounter]]:
    """Return, for each encounter (its patient and id), similar encounters recorded shortly before it, newest first.

    Similar encounters have the same patient, type and provider (or none) and are not entered in error. Raises
    `InsufficientScope`: a caller that may only record must not learn of other encounters.
    """
    context.require(Permission.READ_ENCOUNTERS)
    window = context.services.duplicate_window
    if window == timedelta(0):
        return [[] for _ in encounters]
    brand_id = context.acting_brand()
    async with context.database.connection(brand_id) as connection:
        rows = await POSSIBLE_DUPLICATES.fetch(
            context.answer,
            connection,
            len(encounters) * MOST,
            brand_id=brand_id,
            patient_ids=[patient_id for patient_id, _ in encounters],
            ids=[encounter_id for _, encounter_id in encounters],
            window=window,
            most=MOST,
        )
    found: dict[UUID, list[Encounter]] = {}
    for row in rows:
        columns = {name: value for name, value in row.items() if name not in {"of_id", "bytes"}}
        found.setdefault(row["of_id"], []).append(Encounter(**columns))
    context.note_read(each for alike in found.values() for each in alike)
    return [found.get(encounter_id, []) for _, encounter_id in encounters]
