"""What must be done now and then by one gateway at a time: each duty is held by a lease.

Every gateway tries every duty. One gets the lease and renews it at each round and during a long one; when it dies, the
lease runs out and another takes over within seconds. A round is made of short transactions, so that a holder who was
paused past its lease can do no harm that the next one's transactions would not see.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import Interval, Table, bindparam, func, update
from sqlalchemy.dialects.postgresql import insert

from gateway.database.database import Database
from gateway.observability.logs import describe, log
from models import Lease
from resolvers.errors import GatewayError
from resolvers.sql import Statement

LEASES: Table = Lease.__table__  # type: ignore[attr-defined]

LEASE_TIME = timedelta(seconds=5)

_taken = insert(LEASES).values(
    name=bindparam("name"),
    holder=bindparam("holder"),
    expires_at=func.now() + bindparam("lease_time", type_=Interval),
)
TAKE_LEASE = Statement(
    _taken.on_conflict_do_update(
        index_elements=[LEASES.c.name],
        set_={"holder": _taken.excluded.holder, "expires_at": _taken.excluded.expires_at},
        where=(LEASES.c.holder == _taken.excluded.holder) | (LEASES.c.expires_at < func.now()),
    ).returning(LEASES.c.name)
)
GIVE_UP_LEASES = Statement(
    update(LEASES)
    .values(expires_at=func.now())
    .where(LEASES.c.holder == bindparam("holder", type_=LEASES.c.holder.type))
)


@dataclass
class LeasedJob:
    """Something one gateway at a time does: `round` does a bounded piece of it and says whether more is waiting."""

    name: str
    round: Callable[[Database], Awaitable[bool]]
    pause_seconds: float
    wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    """Rung when there is something to do before the pause is over."""


async def run_jobs(database: Database, jobs: list[LeasedJob], after_seconds: float = 0.0) -> None:
    """Do the duties until cancelled, beginning after so many seconds. `database` acts as the relay's role."""
    await asyncio.sleep(after_seconds)
    holder = uuid4()
    try:
        async with asyncio.TaskGroup() as tasks:
            for job in jobs:
                tasks.create_task(_do(database, job, holder), name=f"duty {job.name}")
    finally:
        # Whoever leaves in peace need not be waited for.
        with contextlib.suppress(GatewayError):
            async with database.unscoped() as connection:
                await connection.fetch(GIVE_UP_LEASES, holder=holder)


async def _do(database: Database, job: LeasedJob, holder: UUID) -> None:
    while True:
        held = more = False
        try:
            held = await take_lease(database, job.name, holder)
            if held:
                more = await _keeping_the_lease(database, job, holder)
        except GatewayError:
            pass  # the database is away; the requests that meet it say so
        except Exception as error:  # noqa: BLE001 - a duty that fails once must be tried again
            log.error("duty", job=job.name, **describe(error))
        if not more:
            # The bell is for the one who holds the lease: the others need not all come running.
            wakeup = job.wakeup if held else asyncio.Event()
            # Not `wait_for`, which until Python 3.12 loses a cancellation that comes with the ring.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(job.pause_seconds):
                    await wakeup.wait()
        job.wakeup.clear()


async def _keeping_the_lease(database: Database, job: LeasedJob, holder: UUID) -> bool:
    """Do one round, which is cut off when the lease cannot be renewed in the middle of it."""
    round_ = asyncio.ensure_future(job.round(database))
    try:
        while not round_.done():
            await asyncio.wait({round_}, timeout=LEASE_TIME.total_seconds() / 3)
            if not round_.done() and not await take_lease(database, job.name, holder):
                return False
        return await round_
    finally:
        round_.cancel()
        await asyncio.gather(round_, return_exceptions=True)


async def take_lease(database: Database, name: str, holder: UUID) -> bool:
    """Take or renew the lease of a duty; False while another holds it."""
    async with database.unscoped() as connection:
        taken = await connection.fetch_one(TAKE_LEASE, name=name, holder=holder, lease_time=LEASE_TIME)
    return taken is not None


# Pruning idempotency keys
