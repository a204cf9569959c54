"""Idempotency keys: the same key and the same request are one encounter, however often and through whichever door.

A key is claimed by inserting its row in the encounter's own transaction. Whoever comes second waits for the first to
end, and then either finds the row, and with it the encounter, or claims the key itself: so that "the key is there" and
"the encounter is there" are one fact, and a refused request never burns its key.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import orjson
from sqlalchemy import Table, Text, any_, bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import ARRAY, insert

from models import Encounter, IdempotencyKey
from resolvers import json_text
from resolvers.commands import Command
from resolvers.context import Context
from resolvers.errors import IdempotencyKeyReused, InvalidInput, Violation
from resolvers.sql import Connection, RelayDatabase, Statement

TABLE: Table = IdempotencyKey.__table__  # type: ignore[attr-defined]

NIL = UUID(int=0)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

# Visible characters only, so that a key survives every header, log and screen it passes through.
_KEY = re.compile(r"[\x21-\x7e]{1,128}")

CLAIM_KEY = Statement(
    insert(TABLE)
    .values({name: bindparam(name, type_=column.type) for name, column in TABLE.c.items() if name != "created_at"})
    .on_conflict_do_nothing()
    .returning(TABLE.c.encounter_id)
)
FIND_KEY = Statement(
    select(TABLE).where(
        TABLE.c.brand_id == bindparam("brand_id"),
        TABLE.c.client_id == bindparam("client_id"),
        TABLE.c.key == bindparam("key"),
    )
)
KEPT_KEYS = Statement(
    select(TABLE.c.key).where(
        TABLE.c.brand_id == bindparam("brand_id"),
        TABLE.c.client_id == bindparam("client_id"),
        TABLE.c.key == any_(bindparam("keys", type_=ARRAY(Text))),
    )
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A key, whose it is, and a hash of what is asked for under it."""

    brand_id: str
    client_id: str
    key: str
    request_hash: bytes


def require_key(key: str) -> None:
    """Return if a text can be a key. Raises `InvalidInput`."""
    if not _KEY.fullmatch(key):
        told, received = "must be 1 to 128 visible characters", json_text.shape_of(key)
        raise InvalidInput(
            [Violation("/idempotency_key", "idempotency_key", told, minimum=1, maximum=128, received=received)]
        )


def claim_of(key: str, context: Context, brand_id: str, patient_id: str, command: Command) -> Claim:
    """Say what a caller claims with a key. Raises `InvalidInput` for a text that is no key.

    The hash covers the command's meaning, not its spelling: instants in UTC, UUIDs in lower case, members in order,
    and none that was left out, so that a member added to the command one day changes no hash.
    """
    require_key(key)
    members = {name: value for name, value in command.given().items() if value is not None}
    meaning = orjson.dumps(members, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)
    asked = patient_id.encode("utf-8", "surrogatepass") + b"\n" + meaning
    return Claim(brand_id, context.caller.client_id, key, hashlib.sha256(asked).digest())


async def claim_key(
    connection: Connection, claim: Claim, encounter: Encounter, answer: bytes, kept_until: datetime
) -> bool:
    """Claim the key for an encounter; False where it is claimed already. Waits for a claim that is under way."""
    claimed = await connection.fetch_one(
        CLAIM_KEY,
        brand_id=claim.brand_id,
        client_id=claim.client_id,
        key=claim.key,
        request_hash=claim.request_hash,
        patient_id=encounter.patient_id,
        encounter_id=encounter.id,
        answer=answer,
        expires_at=kept_until,
    )
    return claimed is not None


async def try_key(connection: Connection, brand_id: str, client_id: str, key: str) -> bool:
    """Say whether the key is free, by claiming it for nothing: the transaction must be rolled back.

    Waits for a claim that is under way, and raises `Locked` where the connection waits for no lock that long.
    """
    nothing = {"request_hash": b"", "patient_id": "", "encounter_id": NIL, "answer": b"", "expires_at": _LONG_AGO}
    tried = await connection.fetch_one(CLAIM_KEY, brand_id=brand_id, client_id=client_id, key=key, **nothing)
    return tried is not None


async def find_key(connection: Connection, brand_id: str, client_id: str, key: str) -> IdempotencyKey | None:
    """Find what a key stands for, or None."""
    row = await connection.fetch_one(FIND_KEY, brand_id=brand_id, client_id=client_id, key=key)
    return None if row is None else IdempotencyKey.model_construct(**row)


async def kept_keys(connection: Connection, brand_id: str, client_id: str, keys: Sequence[str]) -> set[str]:
    """Give those of the keys that stand for something already."""
    rows = await connection.fetch(KEPT_KEYS, brand_id=brand_id, client_id=client_id, keys=keys)
    return {row["key"] for row in rows}


async def find_claimed(connection: Connection, claim: Claim) -> IdempotencyKey | None:
    """Find what the key stands for already, or None. Raises `IdempotencyKeyReused` for another request's key."""
    earlier = await find_key(connection, claim.brand_id, claim.client_id, claim.key)
    if earlier is not None and earlier.request_hash != claim.request_hash:
        raise IdempotencyKeyReused
    return earlier


KEYS: Table = IdempotencyKey.__table__  # type: ignore[attr-defined]


PRUNE_AT_MOST = 1_000


EXPIRED_KEYS = Statement(select(KEYS.c.key).where(KEYS.c.expires_at < func.now()).limit(PRUNE_AT_MOST))


PRUNE_KEYS = Statement(
    delete(KEYS)
    .where(KEYS.c.key == any_(bindparam("keys", type_=ARRAY(Text))), KEYS.c.expires_at < func.now())
    .returning(KEYS.c.key)
)


async def prune_keys(database: RelayDatabase) -> bool:
    """Delete some expired keys: few enough that nobody waits for the locks."""
    async with database.unscoped() as connection:
        expired = [row["key"] for row in await connection.fetch(EXPIRED_KEYS)]
        await connection.fetch(PRUNE_KEYS, keys=expired)
    return len(expired) == PRUNE_AT_MOST
