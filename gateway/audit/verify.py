"""Verify the audit log and its chain, and report every altered entry (`gateway audit verify`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple, Self
from uuid import UUID

import asyncpg
from sqlalchemy import BigInteger, ColumnElement, Text, and_, cast, exists, extract, func, select

from gateway.database.connection import connect
from gateway.database.problems import PROBLEMS, reason_of
from models import EncounterEventKind, Encounters, table_of
from resolvers.audit import encounter_event
from resolvers.audit_chain import BEFORE_THE_FIRST, CHAIN, HASHED, LOG, LOOK_BACK, hash_entry, hash_link
from resolvers.sql import Row, Statement

ENCOUNTERS = table_of(Encounters)

ROWS_AT_ONCE = 1_000
"""Rows in memory at once, whatever the length of the log."""


class VerificationStopped(Exception):
    """The log cannot be verified; the message says why."""


class Kind(StrEnum):
    """The kinds of findings, as they are printed."""

    EDITED = "edited"
    DELETED = "deleted"
    MISSING = "missing from the chain"
    OUT_OF_PLACE = "out of place"
    INSERTED = "inserted"
    NOT_CHAINED = "not chained"
    NOT_AUDITED = "not audited"
    HEAD = "head not found"


MEANING: Mapping[Kind, str] = {
    Kind.EDITED: "the entry was changed after it was chained",
    Kind.DELETED: "the chain contains the entry, but the log does not",
    Kind.MISSING: "the chain has no link at this position",
    Kind.OUT_OF_PLACE: "the link does not follow from its predecessor: it was reordered, inserted or altered",
    Kind.INSERTED: "the entry appeared long after entries with later times",
    Kind.NOT_CHAINED: "the entry should be in the chain by now, but is not",
    Kind.NOT_AUDITED: "the encounter has no entry in the log",
    Kind.HEAD: "the chain does not have this hash at this position: its end was removed, or it was rebuilt",
}


class Finding(NamedTuple):
    """A discrepancy. It names no patient: users with access to the log find the patient by the id."""

    kind: Kind
    brand_id: str
    position: int | None = None
    last_position: int | None = None
    """The last position of a range; None for a single position."""
    id: UUID | None = None
    """Id of the entry, or of the encounter that has no entry."""
    occurred_at: str | None = None

    def __str__(self) -> str:
        what = "encounter" if self.kind is Kind.NOT_AUDITED else "entry"
        places = f"position {self.position}" + (f" to {self.last_position}" if self.last_position else "")
        parts = [
            f"{self.kind}:",
            f"{what} {self.id}" if self.id else "",
            f"brand {self.brand_id or '(none)'}",
            places if self.position is not None else "",
            self.occurred_at or "",
        ]
        return "  ".join(part for part in parts if part)


class Head(NamedTuple):
    """The end of a brand's chain at some time, written as `brand:position:hash`."""

    brand_id: str
    position: int
    chain_hash: bytes

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse a head that was printed earlier. Raises `ValueError`."""
        brand_id, position, chain_hash = text.rsplit(":", 2)
        head = cls(brand_id, int(position), bytes.fromhex(chain_hash))
        if head.position < 1 or len(head.chain_hash) != len(BEFORE_THE_FIRST):
            raise ValueError("no head")
        return head

    def __str__(self) -> str:
        return f"{self.brand_id}:{self.position}:{self.chain_hash.hex()}"


# Statements

LONG_MICROSECONDS = LOOK_BACK // timedelta(microseconds=1)


def _when(column: ColumnElement[Any]) -> ColumnElement[Any]:
    # As text, because a tampered time may be outside the range of Python's `datetime`.
    return func.to_char(func.timezone("UTC", column), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"').label("occurred_text")


_LINKED = and_(CHAIN.c.patient_id == LOG.c.patient_id, CHAIN.c.entry_id == LOG.c.id)

NOW = Statement(select(cast(func.trunc(extract("epoch", func.now()) * 1_000_000), BigInteger)))

LINKS = Statement(
    select(
        CHAIN.c.brand_id,
        CHAIN.c.position,
        CHAIN.c.entry_id,
        CHAIN.c.entry_hash,
        CHAIN.c.chain_hash,
        _when(CHAIN.c.occurred_at),
        LOG.c.id.is_not(None).label("is_there"),
        *HASHED,
    )
    .select_from(CHAIN.outerjoin(LOG, _LINKED))
    .order_by(CHAIN.c.brand_id, CHAIN.c.position, CHAIN.c.patient_id, CHAIN.c.entry_id)
)
UNLINKED = Statement(
    select(LOG.c.brand_id, LOG.c.id, _when(LOG.c.occurred_at), *HASHED).where(~exists().where(_LINKED))
)
UNAUDITED = Statement(
    select(ENCOUNTERS.c.brand_id, ENCOUNTERS.c.id, _when(ENCOUNTERS.c.created_at)).where(
        ~exists().where(
            LOG.c.patient_id == ENCOUNTERS.c.patient_id,
            LOG.c.brand_id == ENCOUNTERS.c.brand_id,
            LOG.c.event_type == encounter_event(EncounterEventKind.RECORDED),
            LOG.c.entity_id == cast(ENCOUNTERS.c.id, Text),
        )
    )
)


# The walk along the chain


class Walk:
    """Walk along the links of one brand after another. The only state is the end of each brand's chain."""

    def __init__(self, key: bytes, expected: Iterable[Head] = ()) -> None:
        self._key = key
        self._expected = set(expected)
        self.heads: dict[str, Head] = {}
        self.links = 0
        self.out_of_place = 0
        self.waiting = 0
        self._newest: dict[str, int] = {}
        """The latest time of a chained entry so far, in microseconds since 1970, by brand."""

    @property
    def every_hash_is_wrong(self) -> bool:
        """Whether every link has a wrong hash, as with the wrong key."""
        return self.links > 0 and self.out_of_place == self.links

    def link(self, row: Row) -> Iterator[Finding]:
        """Check the next link and its entry, and yield the findings."""
        self.links += 1
        brand_id, position = row["brand_id"], row["position"]
        found = partial(Finding, brand_id=brand_id, id=row["entry_id"], occurred_at=row["occurred_text"])
        before = self.heads.get(brand_id, Head(brand_id, 0, BEFORE_THE_FIRST))
        gap = position - before.position - 1
        if gap > 0:
            last = position - 1 if gap > 1 else None
            yield Finding(Kind.MISSING, brand_id, position=before.position + 1, last_position=last)
        # After a gap the previous hash is unknown, so the link cannot be checked.
        follows = hash_link(self._key, before.chain_hash, row["entry_hash"]) == row["chain_hash"]
        if gap < 0 or (gap == 0 and not follows):
            self.out_of_place += 1
            yield found(Kind.OUT_OF_PLACE, position=position)
        if not row["is_there"]:
            yield found(Kind.DELETED, position=position)
        elif hash_entry(row) != row["entry_hash"]:
            yield found(Kind.EDITED, position=position)
        elif self._is_behind(brand_id, at := int(row["hashed_occurred_at"])):
            yield found(Kind.INSERTED, position=position)
        else:
            self._newest[brand_id] = max(at, self._newest.get(brand_id, at))
        head = Head(brand_id, max(position, before.position), row["chain_hash"])
        self.heads[brand_id] = head
        self._expected.discard(head)

    def unlinked(self, row: Row, now: int) -> Iterator[Finding]:
        """Check an entry without a link, after all links are known. `now` is in microseconds since 1970."""
        brand_id, time = row["brand_id"], row["hashed_occurred_at"]
        at = int(time) if time.removeprefix("-").isdecimal() else None  # an infinity has no microseconds
        found = partial(Finding, brand_id=brand_id, id=row["id"], occurred_at=row["occurred_text"])
        if at is not None and self._is_behind(brand_id, at):
            yield found(Kind.INSERTED)
        elif at is None or abs(now - at) > LONG_MICROSECONDS:
            yield found(Kind.NOT_CHAINED)
        else:
            self.waiting += 1

    def end(self) -> Iterator[Finding]:
        """Yield the expected heads that the chain does not contain."""
        for head in sorted(self._expected):
            yield Finding(Kind.HEAD, head.brand_id, position=head.position)

    def _is_behind(self, brand_id: str, at: int) -> bool:
        return at < self._newest.get(brand_id, at) - LONG_MICROSECONDS


async def verify(owner_url: str, walk: Walk) -> AsyncIterator[Finding]:
    """Check the log, the chain and the encounters in one snapshot, and yield the findings.

    The URL is the owner's, whose role sees all brands. Raises `VerificationStopped`.
    """
    try:
        async with _snapshot(owner_url) as connection:
            async for row in _rows(connection, LINKS):
                for finding in walk.link(row):
                    yield finding
            for finding in walk.end():
                yield finding
            now = await connection.fetchval(NOW.text, *NOW.arguments({}))
            async for row in _rows(connection, UNLINKED):
                for finding in walk.unlinked(row, now):
                    yield finding
            async for row in _rows(connection, UNAUDITED):
                yield Finding(Kind.NOT_AUDITED, row["brand_id"], id=row["id"], occurred_at=row["occurred_text"])
    except asyncpg.UndefinedTableError as error:
        raise VerificationStopped("the database has no audit chain yet; run `gateway migrate`") from error
    except PROBLEMS as error:
        raise VerificationStopped(reason_of(error)) from error


async def print_verification(owner_url: str, key: bytes, expected: Iterable[Head]) -> bool:
    """Print every finding and the heads of the chains. Return whether there were no findings."""
    walk = Walk(key, expected)
    kinds = Counter[Kind]()
    async for finding in verify(owner_url, walk):
        kinds[finding.kind] += 1
        print(finding)
    if kinds:
        print()
    for kind, number in kinds.items():
        print(f"{number} {kind}: {MEANING[kind]}")
    if walk.every_hash_is_wrong:
        print("No link has a valid hash: check that GATEWAY_AUDIT_KEY is the key of the chain.")
    print(f"{walk.links} entries chained, {walk.waiting} not chained yet. Store these heads elsewhere:")
    for head in walk.heads.values():
        print(head)
    return not kinds


@asynccontextmanager
async def _snapshot(url: str) -> AsyncIterator[asyncpg.Connection[Row]]:
    connection = await connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            yield connection
    finally:
        await connection.close()


def _rows(connection: asyncpg.Connection[Row], statement: Statement) -> AsyncIterator[Row]:
    return aiter(connection.cursor(statement.text, *statement.arguments({}), prefetch=ROWS_AT_ONCE))
