"""The relay: assigns each event its position, and publishes events by moving the watermark.

Transactions become visible out of order, so a reader that polls "since the last time" misses the rows of slow
transactions. The relay therefore assigns the order after the commit. It reads events without a position, oldest first,
and stamps them. Then it moves the watermark, up to which all readers read. The order of the feed is the relay's.

A lease (`gateway/jobs.py`) selects the gateway that relays, but correctness does not depend on it. The stamping
transaction locks the watermark's row until its commit, and continues from the position stored there. Two concurrent
relays take turns.
"""

import logging
from collections.abc import Collection
from datetime import timedelta
from itertools import takewhile

from sqlalchemy import (
    BigInteger,
    Interval,
    Text,
    Uuid,
    any_,
    bindparam,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from models import OutboxEvent, Sink, Watermark, table_of
from resolvers.errors import TemporarilyUnavailable
from resolvers.outbox import MOVED
from resolvers.sql import RelayDatabase, Statement

logger = logging.getLogger(__name__)

OUTBOX = table_of(OutboxEvent)
WATERMARK = table_of(Watermark)
SINKS = table_of(Sink)


# Stamping

STAMP_AT_MOST = 500

# Waits for another relay that is stamping. Later statements of the transaction see what that one committed.
LOCK_WATERMARK = Statement(select(WATERMARK.c.stamped, WATERMARK.c.position).with_for_update())
# None on one server. On a cluster, a coordinator that crashed between the shard's commit and its own has stored an
# older position than the shard.
LAST_STAMPED = Statement(
    select(OUTBOX.c.position)
    .where(OUTBOX.c.position > bindparam("stamped"))
    .order_by(OUTBOX.c.position.desc())
    .limit(1)
)
UNSTAMPED = Statement(
    select(OUTBOX.c.patient_id, OUTBOX.c.id)
    .where(OUTBOX.c.position.is_(None))
    .order_by(OUTBOX.c.created_at, OUTBOX.c.id)
    .limit(bindparam("limit", type_=BigInteger))
)
_event = OUTBOX.alias("o")
_given = (
    func.unnest(
        bindparam("patient_ids", type_=ARRAY(Text)),
        bindparam("ids", type_=ARRAY(Uuid)),
        bindparam("positions", type_=ARRAY(BigInteger)),
    )
    .table_valued("patient_id", "id", "position")
    .render_derived("given")
)
STAMP = Statement(
    update(_event)  # type: ignore[arg-type]
    .values(position=_given.c.position, published_at=func.now())
    .where(_event.c.patient_id == _given.c.patient_id, _event.c.id == _given.c.id, _event.c.position.is_(None))
    .returning(_event.c.id)
)
KEEP_STAMPED = Statement(update(WATERMARK).values(stamped=bindparam("last", type_=BigInteger)))


async def relay(database: RelayDatabase) -> bool:
    """Stamp a batch of events and move the watermark; return whether more may be waiting."""
    stamped = await stamp_events(database)
    await move_watermark(database)
    return stamped == STAMP_AT_MOST


async def stamp_events(database: RelayDatabase) -> int:
    """Assign the next positions, without a gap, to the oldest events without one; return their number.

    Raises `TemporarilyUnavailable` if another relay stamped the same events, which is possible only on a cluster.
    """
    async with database.transaction(None) as connection:
        mark = await connection.fetch_one(LOCK_WATERMARK)
        assert mark is not None, "the migration inserted it"
        later = await connection.fetch_one(LAST_STAMPED, stamped=mark["stamped"])
        before = later["position"] if later else mark["stamped"]
        rows = await connection.fetch(UNSTAMPED, limit=STAMP_AT_MOST)
        last = before + len(rows)
        if last != mark["stamped"]:
            stamped = await connection.fetch(
                STAMP,
                patient_ids=[row["patient_id"] for row in rows],
                ids=[row["id"] for row in rows],
                positions=list(range(before + 1, last + 1)),
            )
            if len(stamped) != len(rows):
                raise TemporarilyUnavailable
            await connection.fetch(KEEP_STAMPED, last=last)
    return len(rows)


# Moving the watermark

FIND_WATERMARK = Statement(select(WATERMARK.c.stamped, WATERMARK.c.position))
COUNT_STAMPED = Statement(
    select(func.count())
    .select_from(OUTBOX)
    .where(OUTBOX.c.position > bindparam("position"), OUTBOX.c.position <= bindparam("stamped"))
)
MOVE_WATERMARK = Statement(
    update(WATERMARK)
    .values(position=bindparam("stamped", type_=BigInteger))
    .where(WATERMARK.c.position < bindparam("stamped", type_=BigInteger))
    .returning(WATERMARK.c.position)
)
NOTIFY_MOVED = Statement(select(func.pg_notify(MOVED, "")))


async def move_watermark(database: RelayDatabase) -> None:
    """Move the watermark to the last stamped event, once all events up to it are visible.

    Crash-safe: the next relay continues from `stamped` of the watermark's row.
    """
    async with database.unscoped() as connection:
        mark = await connection.fetch_one(FIND_WATERMARK)
        assert mark is not None
        if mark["stamped"] == mark["position"]:
            return
        count = await connection.fetch_one(COUNT_STAMPED, **mark)
        assert count is not None
        if count[0] != mark["stamped"] - mark["position"]:
            # On a cluster the second phase of a commit may be late. A row that was deleted by hand never appears.
            fields = {"stamped": mark["stamped"], "position": mark["position"], "found": count[0]}
            logger.warning("watermark waits", extra=fields)
            return
        if await connection.fetch_one(MOVE_WATERMARK, stamped=mark["stamped"]):
            await connection.fetch(NOTIFY_MOVED)


# Pruning

PRUNE_AT_MOST = 1_000

HELD_BACK = Statement(
    select(func.min(SINKS.c.position)).where(
        SINKS.c.disabled_at.is_(None),
        or_(
            SINKS.c.name == any_(bindparam("sinks", type_=ARRAY(Text))),
            SINKS.c.updated_at > func.now() - bindparam("keep", type_=Interval),
        ),
    )
)
FIND_PRUNED = Statement(select(WATERMARK.c.pruned, WATERMARK.c.position))
OLDEST_KEPT = Statement(
    select(OUTBOX.c.position, (OUTBOX.c.published_at < func.now() - bindparam("keep", type_=Interval)).label("old"))
    .where(OUTBOX.c.position > bindparam("pruned"), OUTBOX.c.position <= bindparam("until"))
    .order_by(OUTBOX.c.position)
    .limit(bindparam("limit", type_=BigInteger))
)
KEEP_PRUNED = Statement(
    update(WATERMARK)
    .values(pruned=bindparam("pruned", type_=BigInteger))
    .where(WATERMARK.c.pruned < bindparam("pruned", type_=BigInteger))
)
PRUNE = Statement(delete(OUTBOX).where(OUTBOX.c.position <= bindparam("pruned")))


async def prune_events(database: RelayDatabase, keep: timedelta, sinks: Collection[str]) -> bool:
    """Delete a batch of events published longer ago than `keep`; return whether more may be waiting.

    Events that an enabled sink has not received are retained. This applies to the sinks named in `sinks`, and to those
    that a gateway has served within `keep`. `pruned` is stored before the deletion, so that a reader can check
    afterwards whether it read everything.
    """
    async with database.unscoped() as connection:
        held_back = await connection.fetch_one(HELD_BACK, sinks=list(sinks), keep=keep)
        mark = await connection.fetch_one(FIND_PRUNED)
        assert mark is not None
        assert held_back is not None
        until = mark["position"] if held_back[0] is None else min(mark["position"], held_back[0])
        oldest = await connection.fetch(OLDEST_KEPT, pruned=mark["pruned"], until=until, keep=keep, limit=PRUNE_AT_MOST)
        old = [row["position"] for row in takewhile(lambda row: row["old"], oldest)]
        pruned = old[-1] if old else mark["pruned"]
        await connection.fetch(KEEP_PRUNED, pruned=pruned)
        await connection.fetch(PRUNE, pruned=pruned)
    return len(old) == PRUNE_AT_MOST
