"""Periodic jobs that run on one gateway at a time, under a lease.

Every gateway tries to take the lease of every job. The holder renews it before each round and during a long round. When
the holder dies, the lease expires and another gateway takes over within seconds. A holder whose rounds fail repeatedly
lets the lease expire too: its own connections may be at fault. A round consists of short transactions. If a paused
holder continues after its lease expired, the next holder's transactions see all its changes.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import Interval, bindparam, func, update
from sqlalchemy.dialects.postgresql import insert

from gateway.database.database import Database
from gateway.observability.logs import describe
from models import Lease, table_of
from resolvers.errors import GatewayError
from resolvers.sql import Statement

logger = logging.getLogger(__name__)

LEASES = table_of(Lease)

LEASE_TIME = timedelta(seconds=5)

FAILED_ROUNDS = 3
"""Rounds that may fail one after another before the holder lets the lease expire."""

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
    """A job that runs on one gateway at a time.

    `round` does a bounded part of the work, and returns whether more is waiting. After a round that returned False the
    job waits `pause_seconds`.
    """

    name: str
    round: Callable[[Database], Awaitable[bool]]
    pause_seconds: float
    wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to end the pause early when there is new work."""


async def run_jobs(database: Database, jobs: list[LeasedJob], after_seconds: float = 0.0) -> None:
    """Run the jobs until cancelled, and release their leases at the end.

    Args:
        database: Connections with the relay's role.
        jobs: The jobs, which run concurrently.
        after_seconds: Delay before the first round.

    """
    await asyncio.sleep(after_seconds)
    holder = uuid4()
    try:
        async with asyncio.TaskGroup() as tasks:
            for job in jobs:
                tasks.create_task(_do(database, job, holder), name=f"job {job.name}")
    finally:
        # Release the leases on a clean exit, so that another gateway takes over without waiting for expiry.
        with contextlib.suppress(GatewayError):
            async with database.unscoped() as connection:
                await connection.fetch(GIVE_UP_LEASES, holder=holder)


async def _do(database: Database, job: LeasedJob, holder: UUID) -> None:
    failed = 0
    while True:
        held = more = False
        try:
            held = await take_lease(database, job.name, holder)
            if held:
                more = await _keeping_the_lease(database, job, holder)
            failed = 0
        except GatewayError:
            failed += held  # the database is unavailable; the requests that fail for it log that
        except Exception as error:  # noqa: BLE001 - a job that fails must be retried
            failed += held
            logger.error("duty", extra={"job": job.name, **describe(error)})
        if failed == FAILED_ROUNDS:
            failed, held = 0, False
            await asyncio.sleep(LEASE_TIME.total_seconds())
        if not more:
            # Only the holder of the lease is woken: the other gateways could not take the lease.
            wakeup = job.wakeup if held else asyncio.Event()
            # Not `wait_for`, which before Python 3.12 can lose a cancellation at the moment the event is set.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(job.pause_seconds):
                    await wakeup.wait()
        job.wakeup.clear()


async def _keeping_the_lease(database: Database, job: LeasedJob, holder: UUID) -> bool:
    """Run one round while renewing the lease. Cancel the round and return False if a renewal fails."""
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
    """Take or renew the lease of a job. Return False while another gateway holds it."""
    async with database.unscoped() as connection:
        taken = await connection.fetch_one(TAKE_LEASE, name=name, holder=holder, lease_time=LEASE_TIME)
    return taken is not None
