"""The leased job that chains the audit log, and the row lock that keeps two gateways from forking the chain."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import bindparam, select

from gateway.database.database import Database
from gateway.jobs import LEASES
from gateway.observability.metrics import AUDIT_CHAINED
from resolvers.audit_chain import CHAIN_AT_MOST, GLANCE, LOOK_BACK, link_entries, next_brand
from resolvers.audit_notes import UNKNOWN
from resolvers.sql import Statement

CHAIN_AUDIT = "chain audit"

# The row lock is held until the transaction ends. A second linker blocks here until the first commits, and reads the
# chain's end only then. So the lock prevents a fork. The lease's expiry is not relied on, since a paused holder may
# outlive it.
LOCK_LEASE = Statement(select(LEASES.c.holder).where(LEASES.c.name == bindparam("name")).with_for_update())


LOOKS: Mapping[timedelta, float] = {LOOK_BACK: 60.0, GLANCE: 5.0}
"""How far behind the last link to search, and the seconds between such searches."""

PAUSES = 20
"""The pause after a search, as a multiple of its duration: in a busy log nearly all entries it sees are linked
already."""

LONGEST_PAUSE_SECONDS = LOOK_BACK.total_seconds() / 2


def chaining(key: bytes, clock: Callable[[], float] = time.monotonic) -> Callable[[Database], Awaitable[bool]]:
    """Return the job's function: it links some entries of every brand and returns whether more are waiting.

    The first call searches back by the longest interval of `LOOKS`.

    Args:
        key: Key of the HMAC.
        clock: Returns seconds of a monotonic clock.
    """
    AUDIT_CHAINED.set_to_current_time()
    due_at = dict.fromkeys(LOOKS, -math.inf)
    looked_at: Mapping[timedelta, dict[str, datetime | None]] = {look: {} for look in LOOKS}

    async def chain_some(database: Database) -> bool:
        now = clock()
        due = [look for look in LOOKS if due_at[look] <= now]
        far = max(due, default=timedelta())
        more = await _chain_brands(database, key, far, looked_at.get(far, {}))
        AUDIT_CHAINED.set_to_current_time()
        # The oldest entries are linked first. The remaining ones follow the last link, so no search behind it is
        # needed.
        due_at.update({look: now + LOOKS[look] for look in due})
        if due:
            due_at[far] = max(due_at[far], now + min(PAUSES * (clock() - now), LONGEST_PAUSE_SECONDS))
        return more

    return chain_some


async def _chain_brands(
    database: Database, key: bytes, look_back: timedelta, looked_at: dict[str, datetime | None]
) -> bool:
    more = False
    # Entries of no known brand have a chain as well. Its brand sorts first.
    brand_id: str | None = UNKNOWN
    while brand_id is not None:
        async with database.transaction(brand_id) as connection:
            # Without a row, the lease was never taken, and there is no lock to wait for.
            if await connection.fetch_one(LOCK_LEASE, name=CHAIN_AUDIT) is None:
                return False
            linked = await link_entries(connection, brand_id, key, look_back, looked_at.get(brand_id))
        more |= linked.entries == CHAIN_AT_MOST
        looked_at[brand_id] = linked.at
        async with database.unscoped() as connection:
            brand_id = await next_brand(connection, brand_id)
    return more
