"""An offset page of a patient's encounters, newest first, as JSON that PostgreSQL writes: the list of the REST door."""

from functools import cache
from typing import NamedTuple

from resolvers.access import Permission
from resolvers.bounded_rows import LONG, LONG_BYTES, are_counted
from resolvers.context import Context
from resolvers.encounters.json_sql import ENCOUNTERS, bytes_of, items_of, published_json
from resolvers.errors import PatientNotFound
from resolvers.patients import can_exist
from resolvers.sql import Statement


class Slice(NamedTuple):
    """An offset page: its encounters as JSON joined by commas, and the total number of encounters."""

    encounters: bytes
    total: int


async def list_encounters_by_offset(context: Context, patient_id: str, limit: int, offset: int) -> Slice:
    """Return an offset page of a patient's encounters in the published form.

    Raises `PatientNotFound`, `AnswerTooLarge` or `AnswerMemoryFull`. A long list is better read by cursor: an offset
    scans the index entries that it skips.
    """
    context.require(Permission.READ_ENCOUNTERS)
    brand_id = context.acting_brand()
    if not can_exist(patient_id):
        raise PatientNotFound
    row = await context.database.fetch_one_batched(
        brand_id,
        _slice(counted=are_counted(limit * len(LONG) * LONG_BYTES, context.answer.maximum)),
        "ids",
        patient_id,
        rows=limit,
        most_bytes=context.answer.maximum,
        limit=limit,
        offset=offset,
    )
    if row is None:
        raise PatientNotFound
    # If the list is too large, `items` holds only a part of it.
    context.answer.add(max(row["bytes"], len(row["items"])))
    if row["given"]:
        context.note_given({(brand_id, patient_id): row["given"]})
    return Slice(row["items"], row["total"])


@cache
def _slice(*, counted: bool) -> Statement:
    """Return the statement of an offset page. If `counted`, it stops after `most_bytes`."""
    item = published_json("e")
    # The second condition says nothing new: a cluster infers the shards from it.
    of_patient = "e.patient_id = p.id AND e.patient_id = ANY($1::text[]) AND e.brand_id = p.brand_id"
    rows = f"""
        {ENCOUNTERS}
        WHERE {of_patient}
            AND (e.created_at, e.id) <= (start.created_at, start.id)
        ORDER BY e.created_at DESC, e.id DESC LIMIT $3::bigint"""
    bytes_, only = "0", ""
    if counted:
        rows = f"SELECT e.*, sum({bytes_of(item)}) OVER (ROWS UNBOUNDED PRECEDING) AS bytes FROM ({rows}) e"
        bytes_, only = "coalesce(max(e.bytes), 0)", "e.bytes <= $5::bigint"
    return Statement(
        f"""
SELECT p.id AS key, slice.items, slice.given, slice.bytes,
    (SELECT count(*) FROM patient_graph.encounters e WHERE {of_patient}) AS total
FROM patient_graph.patients p
LEFT JOIN LATERAL (
    SELECT e.created_at, e.id FROM patient_graph.encounters e
    WHERE {of_patient}
    ORDER BY e.created_at DESC, e.id DESC LIMIT 1 OFFSET $4::bigint
) start ON true
CROSS JOIN LATERAL (
    SELECT {items_of(item, only=only)}::bpchar AS items, count(*) AS given, {bytes_} AS bytes FROM ({rows}) e
) slice
WHERE p.id = ANY($1::text[]) AND p.brand_id = $2::text
""",
        ("ids", "brand_id", "limit", "offset", *(["most_bytes"] if counted else [])),
    )
