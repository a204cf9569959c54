"""The tamper-evident hash chain of the audit log: what an entry's hash covers, and how a brand's entries are linked.

The writer of an entry only appends it and waits for no lock. One gateway at a time links the entries afterwards, in the
order of `(occurred_at, id)` as far as they are visible. An entry may become visible after later entries were linked,
because its transaction ended later. Each search therefore begins before the last link, and periodically by `LOOK_BACK`,
which exceeds the lifetime of any transaction. An entry that appears further back was not written by a gateway: it is
never linked, and `gateway audit verify` reports it.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Text,
    bindparam,
    cast,
    exists,
    extract,
    func,
    literal_column,
    select,
    text,
)

from models import AuditEntry, ChainLink, table_of
from resolvers import json_text
from resolvers.sql import Connection, Statement

LOG = table_of(AuditEntry)
CHAIN = table_of(ChainLink)

LOOK_BACK = timedelta(minutes=10)
"""How far before the last link an entry may still appear; a statement lasts at most 10 s, and so does a pause between
two.
"""

GLANCE = timedelta(seconds=15)
"""How far before the last link most late entries appear; searching this far costs a fortieth of `LOOK_BACK`."""

CHAIN_AT_MOST = 2_000
"""Maximum number of entries that are linked in one transaction."""

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
BEFORE_THE_FIRST = bytes(32)
"""Takes the place of the previous hash in the first link."""


# What a hash covers


def _as_text(column: ColumnElement[Any]) -> ColumnElement[Any]:
    if column.key == "occurred_at":
        # Whole microseconds since 1970: independent of the session's time zone and date style.
        return cast(func.trunc(extract("epoch", column) * 1_000_000), Text)
    return cast(column, Text)


HASHED = tuple(_as_text(column).label(f"hashed_{name}") for name, column in LOG.c.items())
"""Every column of an entry as PostgreSQL writes it, so that the hash covers each value without loss."""
_LABELS = [(name, f"hashed_{name}") for name in LOG.c.keys()]  # noqa: SIM118 - not a dict


def hash_entry(row: Mapping[str, Any]) -> bytes:
    """Return the SHA-256 of an entry read with the columns `HASHED`, as a JSON object of all its columns.

    Members are sorted, without white space, and every value is a string. A null column is omitted, so that a column
    added to the log later changes no hash.
    """
    present = {name: value for name, label in _LABELS if (value := row[label]) is not None}
    return hashlib.sha256(json_text.write(present).encode()).digest()


def hash_link(key: bytes, previous: bytes, entry_hash: bytes) -> bytes:
    """Return the hash of a link: HMAC-SHA256 over the previous hash and the entry's hash; without a key, SHA-256."""
    linked = previous + entry_hash
    return hmac.digest(key, linked, "sha256") if key else hashlib.sha256(linked).digest()


def _member(column: ColumnElement[Any]) -> ColumnElement[str]:
    return literal_column(f"""',"{column.key}":'""", Text) + cast(func.to_json(_as_text(column)), Text)


# A member whose column is null is null, and `concat` omits it.
_MEMBERS = func.concat(*(_member(LOG.c[name]) for name in sorted(LOG.c.keys())))
_OBJECT = literal_column("'{'", Text) + func.substr(_MEMBERS, literal_column("2")) + literal_column("'}'", Text)
ENTRY_HASH = func.sha256(func.convert_to(_OBJECT, literal_column("'UTF8'"))).label("entry_hash")
"""The result of `hash_entry`, computed by PostgreSQL. A verifier computes it from the columns instead."""


# Linking

NEXT_BRAND = Statement(select(func.min(LOG.c.brand_id).label("brand_id")).where(LOG.c.brand_id > bindparam("after")))

HEAD = Statement(
    select(CHAIN.c.position, CHAIN.c.chain_hash, CHAIN.c.occurred_at, func.now().label("now"))
    .where(CHAIN.c.brand_id == bindparam("brand_id"))
    .order_by(CHAIN.c.position.desc())
    .limit(1)
)

# Entries dated in the future are linked later: the next search would begin at their time.
UNCHAINED = Statement(
    select(LOG.c.patient_id, LOG.c.id, LOG.c.occurred_at, ENTRY_HASH)
    .where(
        LOG.c.brand_id == bindparam("brand_id"),
        LOG.c.occurred_at >= bindparam("since"),
        LOG.c.occurred_at <= func.now(),
        ~exists().where(CHAIN.c.patient_id == LOG.c.patient_id, CHAIN.c.entry_id == LOG.c.id),
    )
    .order_by(LOG.c.occurred_at, LOG.c.id)
    .limit(bindparam("limit", type_=BigInteger))
)

# With RETURNING, a cluster inserts the rows; without it, the cluster copies them, which row-level security forbids.
APPEND_LINKS = Statement(
    text("""
INSERT INTO patient_graph.audit_chain AS link (
    patient_id, entry_id, brand_id, position, occurred_at, entry_hash, chain_hash
)
SELECT
    linked.patient_id, linked.entry_id, CAST(:brand_id AS text), CAST(:position AS bigint) + linked.place,
    linked.occurred_at,
    substring(CAST(:entry_hashes AS bytea) FROM CAST(linked.place * 32 - 31 AS int) FOR 32),
    substring(CAST(:chain_hashes AS bytea) FROM CAST(linked.place * 32 - 31 AS int) FOR 32)
FROM unnest(
    CAST(:patient_id AS text[]), CAST(:entry_id AS uuid[]), CAST(:occurred_at AS timestamptz[])
) WITH ORDINALITY AS linked (patient_id, entry_id, occurred_at, place)
RETURNING link.position
""")
)


async def next_brand(connection: Connection, after: str) -> str | None:
    """Return the brand after `after` among those with entries in the log, or None."""
    row = await connection.fetch_one(NEXT_BRAND, after=after)
    brand_id: str | None = row["brand_id"] if row else None
    return brand_id


class Linked(NamedTuple):
    """The number of a brand's entries that were linked, and when they were searched for, by PostgreSQL's clock."""

    entries: int
    at: datetime | None


async def link_entries(
    connection: Connection,
    brand_id: str,
    key: bytes,
    look_back: timedelta = LOOK_BACK,
    looked_at: datetime | None = None,
) -> Linked:
    """Link the next entries of a brand, at most `CHAIN_AT_MOST` of them.

    The transaction must ensure that no other gateway links entries of this brand until it has ended.

    Args:
        connection: A connection in a transaction.
        brand_id: The brand.
        key: The key of the HMAC; empty for none.
        look_back: How far before the last link to search for entries.
        looked_at: When that was last done; entries that were that far behind it then are linked already. None if it
            never was.
    """
    head = await connection.fetch_one(HEAD, brand_id=brand_id)
    if head:
        position, previous, last = head["position"], head["chain_hash"], head["occurred_at"]
        since = min(last, max(last, looked_at or last) - look_back)
    else:
        position, previous, since = 0, BEFORE_THE_FIRST, BEGINNING
    linked = Linked(0, head["now"] if head else None)
    entries = await connection.fetch(UNCHAINED, brand_id=brand_id, since=since, limit=CHAIN_AT_MOST)
    if not entries:
        return linked
    chain_hashes: list[bytes] = []
    for entry in entries:
        previous = hash_link(key, previous, entry["entry_hash"])
        chain_hashes.append(previous)
    await connection.fetch(
        APPEND_LINKS,
        brand_id=brand_id,
        position=position,
        patient_id=[entry["patient_id"] for entry in entries],
        entry_id=[entry["id"] for entry in entries],
        occurred_at=[entry["occurred_at"] for entry in entries],
        # Concatenated, 32 bytes each.
        entry_hashes=b"".join([entry["entry_hash"] for entry in entries]),
        chain_hashes=b"".join(chain_hashes),
    )
    return linked._replace(entries=len(entries))
