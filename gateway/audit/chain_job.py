"""The duty that chains the audit log, and what keeps two gateways from making two chains of it."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import bindparam, select

from gateway.database.database import Database
from gateway.jobs import LEASES
from resolvers.audit_chain import CHAIN_AT_MOST, GLANCE, LOOK_BACK, link_entries, next_brand
from resolvers.audit_notes import UNKNOWN
from resolvers.sql import Statement

CHAIN_AUDIT = "chain audit"

# Held until the transaction ends. Who comes second waits here, and reads the chain's end only afterwards: so it is the
# row that forbids a fork, and not the time on it, which may run out for a holder that is paused in the middle.
LOCK_LEASE = Statement(select(LEASES.c.holder).where(LEASES.c.name == bindparam("name")).with_for_update())


LOOKS: Mapping[timedelta, float] = {LOOK_BACK: 60.0, GLANCE: 5.0}
"""How far behind the last link to look, and every how many seconds."""

PAUSES = 20
"""A look is followed by a pause so many times as long: in a busy log nearly all that it sees is linked already."""

LONGEST_PAUSE_SECONDS = LOOK_BACK.total_seconds() / 2


def chaining(key: bytes, clock: Callable[[], float] = time.monotonic) -> Callable[[Database], Awaitable[bool]]:
    """Give the round of the duty: links some entries of every brand, and says whether more are waiting.

    The first round looks all the way back.
    """
    due_at = dict.fromkeys(LOOKS, -math.inf)
    looked_at: Mapping[timedelta, dict[str, datetime | None]] = {look: {} for look in LOOKS}

    async def chain_some(database: Database) -> bool:
        now = clock()
        due = [look for look in LOOKS if due_at[look] <= now]
        far = max(due, default=timedelta())
        more = await _chain_brands(database, key, far, looked_at.get(far, {}))
        # The oldest are linked first: what is left follows the last link, and needs no look behind it.
        due_at.update({look: now + LOOKS[look] for look in due})
        if due:
            due_at[far] = max(due_at[far], now + min(PAUSES * (clock() - now), LONGEST_PAUSE_SECONDS))
        return more

    return chain_some


async def _chain_brands(
    database: Database, key: bytes, look_back: timedelta, looked_at: dict[str, datetime | None]
) -> bool:
    more = False
    # Those of no known brand have a chain as well; no other brand comes before it.
    brand_id: str | None = UNKNOWN
    while brand_id is not None:
        async with database.transaction(brand_id) as connection:
            # No row means that nobody ever took the lease: then there is no line to wait in.
            if await connection.fetch_one(LOCK_LEASE, name=CHAIN_AUDIT) is None:
                return False
            linked = await link_entries(connection, brand_id, key, look_back, looked_at.get(brand_id))
        more |= linked.entries == CHAIN_AT_MOST
        looked_at[brand_id] = linked.at
        async with database.unscoped() as connection:
            brand_id = await next_brand(connection, brand_id)
    return more
