"""Idempotency keys: the same key with the same request is one change, however often and through any door it is sent.

A key is claimed by inserting its row in the transaction of the change: of the recording, in most cases. A second
request with the key waits until the first one's transaction ends. It then finds the row, and with it the encounter or
patient, or claims the key itself. A key therefore exists exactly if its change was made, and a refused request never
uses up its key.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import orjson
from sqlalchemy import Interval, Text, any_, bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import ARRAY, insert

from models import IdempotencyKey, table_of
from resolvers import json_text
from resolvers.commands import Command
from resolvers.context import Context
from resolvers.errors import (
    IdempotencyKeyReused,
    InvalidInput,
    KeyErased,
    Locked,
    OutcomeUnknown,
    TemporarilyUnavailable,
    Violation,
)
from resolvers.sql import Connection, RelayDatabase, Statement

TABLE = table_of(IdempotencyKey)

# Visible characters only, so that every header, log and screen shows a key unchanged.
_KEY = re.compile(r"[\x21-\x7e]{1,128}")

ERASED: Final = b""
"""Replaces the hash of a request whose patient was erased. The key stays, so that its repetition records nothing."""

CLAIMED_AT = func.coalesce(bindparam("claimed_at", type_=TABLE.c.created_at.type), func.now())
CLAIM_KEY = Statement(
    insert(TABLE)
    .values(
        {name: bindparam(name, type_=column.type) for name, column in TABLE.c.items() if not name.endswith("_at")}
        | {"created_at": CLAIMED_AT, "expires_at": CLAIMED_AT + bindparam("kept_for", type_=Interval)}
    )
    .on_conflict_do_nothing()
    .returning(TABLE.c.key)
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
    """A key, its brand and client, and a hash of the request."""

    brand_id: str
    client_id: str
    key: str
    request_hash: bytes


def require_key(key: str) -> None:
    """Return if a text can be a key. Raises `InvalidInput`."""
    if not _KEY.fullmatch(key):
        message, received = "must be 1 to 128 visible characters", json_text.shape_of(key)
        raise InvalidInput(
            [Violation("/idempotency_key", "idempotency_key", message, minimum=1, maximum=128, received=received)]
        )


def claim_of(key: str, context: Context, brand_id: str, patient_id: str, command: Command) -> Claim:
    """Return the caller's claim of a key. Raises `InvalidInput` for a text that is not a key.

    The hash covers the command's meaning, not its spelling: instants in UTC, UUIDs in lower case, members sorted.
    Members left out are omitted, so that a member added to the command later changes no hash.
    """
    require_key(key)
    members = {name: value for name, value in command.given().items() if value is not None}
    meaning = orjson.dumps(members, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)
    asked = patient_id.encode("utf-8", "surrogatepass") + b"\n" + meaning
    return Claim(brand_id, context.caller.client_id, key, hashlib.sha256(asked).digest())


def claim_of_change(
    key: str | None, context: Context, brand_id: str, operation: str, request: Mapping[str, object]
) -> Claim | None:
    """Return the caller's claim of a key for a change other than a recording; None without a key.

    `request` has the record's id and the command's members; None is the same as left out. The hashed text has no line
    break, and that of a recording has one, so the two never have the same hash. Raises `InvalidInput` for a text that
    is not a key.
    """
    if key is None:
        return None
    require_key(key)
    meaning = {"operation": operation} | {name: value for name, value in request.items() if value is not None}
    asked = orjson.dumps(meaning, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)
    return Claim(brand_id, context.caller.client_id, key, hashlib.sha256(asked).digest())


KEY_HELD = "An earlier request with the key has not ended; check its outcome before you send the request again."
HALF_VISIBLE = "The change of the key is not visible yet; send the request again with the same key."


async def claim_key(
    connection: Connection,
    claim: Claim,
    kept_for: timedelta,
    *,
    patient_id: str,
    encounter_id: UUID | None = None,
    answer: bytes = b"",
    claimed_at: datetime | None = None,
) -> bool:
    """Claim the key for a change; return False if it is claimed already. Waits for a claim in progress.

    `claimed_at` is the time of the change; None: the transaction's. On a cluster, each node has a clock of its own.
    Raises `OutcomeUnknown` if the wait exceeds the connection's lock timeout.
    """
    try:
        return await _claim(
            connection,
            claim,
            kept_for,
            patient_id=patient_id,
            encounter_id=encounter_id,
            answer=answer,
            claimed_at=claimed_at,
        )
    except Locked as error:
        # A transaction of this key is in progress.
        raise OutcomeUnknown(KEY_HELD) from error


async def _claim(connection: Connection, claim: Claim, kept_for: timedelta, **columns: object) -> bool:
    """Insert the row of a key; return False if it exists. Raises `Locked`."""
    key = {"brand_id": claim.brand_id, "client_id": claim.client_id, "key": claim.key}
    values = {**key, "request_hash": claim.request_hash, "kept_for": kept_for, **columns}
    return await connection.fetch_one(CLAIM_KEY, **values) is not None


class KeyTaken(Exception):
    """Rolls back a change whose key is claimed already."""

    def __init__(self, claim: Claim) -> None:
        super().__init__()
        self.claim = claim


async def claim_change(
    context: Context,
    connection: Connection,
    claim: Claim | None,
    *,
    patient_id: str,
    encounter_id: UUID | None = None,
    answer: bytes = b"",
) -> None:
    """Claim the key of a change, if it has one. Raises `KeyTaken`."""
    if claim is None:
        return
    kept_for = context.services.keys_kept_for
    if not await claim_key(
        connection, claim, kept_for, patient_id=patient_id, encounter_id=encounter_id, answer=answer
    ):
        raise KeyTaken(claim)


async def try_key(connection: Connection, brand_id: str, client_id: str, key: str) -> bool:
    """Return whether the key is free, by claiming it on trial: the caller must roll back the transaction.

    Waits for a claim in progress, and raises `Locked` if that outlasts the connection's lock timeout.
    """
    on_trial = {"patient_id": "", "encounter_id": None, "answer": b"", "claimed_at": None}
    return await _claim(connection, Claim(brand_id, client_id, key, b""), timedelta(0), **on_trial)


async def find_key(connection: Connection, brand_id: str, client_id: str, key: str) -> IdempotencyKey | None:
    """Return the key's row, or None."""
    row = await connection.fetch_one(FIND_KEY, brand_id=brand_id, client_id=client_id, key=key)
    return None if row is None else IdempotencyKey.model_construct(**row)


async def kept_keys(connection: Connection, brand_id: str, client_id: str, keys: Sequence[str]) -> set[str]:
    """Return those of the keys that are claimed already."""
    rows = await connection.fetch(KEPT_KEYS, brand_id=brand_id, client_id=client_id, keys=keys)
    return {row["key"] for row in rows}


async def find_claimed(connection: Connection, claim: Claim) -> IdempotencyKey | None:
    """Return the earlier claim of the key, or None.

    Raises `KeyErased` if its patient was erased, and `IdempotencyKeyReused` if it was for another request.
    """
    earlier = await find_key(connection, claim.brand_id, claim.client_id, claim.key)
    if earlier is not None and earlier.request_hash == ERASED:
        raise KeyErased
    if earlier is not None and earlier.request_hash != claim.request_hash:
        raise IdempotencyKeyReused
    return earlier


KEY_UNREAD = (
    "The database connection was lost while the key was read; check the outcome before you send the request again."
)


@asynccontextmanager
async def taken_key(context: Context, claim: Claim) -> AsyncIterator[tuple[Connection, IdempotencyKey | None]]:
    """Return a connection, and the earlier claim of a key that was taken; None if the key has expired since.

    Raises `KeyErased` or `IdempotencyKeyReused` as `find_claimed` does, or `OutcomeUnknown`.
    """
    try:
        async with context.database.connection(claim.brand_id) as connection:
            yield connection, await find_claimed(connection, claim)
    except TemporarilyUnavailable as error:
        # The key is taken, and perhaps by this very request: `recorded` cannot be "no".
        raise OutcomeUnknown(KEY_UNREAD) from error


PRUNE_AT_MOST = 1_000
EXPIRED = TABLE.c.expires_at < func.now()
PRUNE_KEYS = Statement(
    delete(TABLE)
    .where(TABLE.c.key.in_(select(TABLE.c.key).where(EXPIRED).limit(PRUNE_AT_MOST)), EXPIRED)
    .returning(TABLE.c.key)
)


async def prune_keys(database: RelayDatabase) -> bool:
    """Delete a batch of expired keys, small enough that its locks delay no request. Return whether more may remain."""
    async with database.unscoped() as connection:
        return len(await connection.fetch(PRUNE_KEYS)) >= PRUNE_AT_MOST
