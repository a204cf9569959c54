"""Erase a patient, and optionally rewrite the database's files (`gateway patients erase`).

A deletion leaves the text in the files: in the pages of tables and indexes, in the planner's statistics, and in the
write-ahead log. `VACUUM` makes the space in pages reusable and `ANALYZE` replaces the statistics. `VACUUM FULL` writes
new files without the deleted rows, and new segments of the write-ahead log then overwrite the old ones.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from gateway.database.database import Database
from gateway.database.problems import PROBLEMS, reason_of
from gateway.database.session import Session, open_session
from resolvers.erasing import ERASED_TABLES, EventsUnsettled, count_rows, erase_patient
from resolvers.errors import OutcomeUnknown, PatientNotFound
from resolvers.relay import move_watermark

STATEMENT_SECONDS = 120.0
"""Seconds; a patient has some thousand rows, and the keys of a day are searched without an index. Less than
`audit_chain.LOOK_BACK`, within which an entry must commit."""

RETRY_SECONDS = 30.0
"""Seconds; how long to wait until no event is about to be published, which takes the relay milliseconds."""

OLD_TRANSACTION_SECONDS = 60.0
"""Seconds; how long a rewrite waits for transactions that may still see the deleted rows. A gateway's are shorter."""

LOCK_SECONDS = 5
"""Seconds; how long a statement waits for the lock of a table. Requests wait behind it."""

PAUSE_SECONDS = 0.1

STATISTICS = "pg_catalog.pg_statistic"
"""The planner's statistics: they contain values of columns."""

UNSETTLED = (
    "nothing was erased, because events beyond the watermark are missing; `gateway events status` shows their number"
)

Say = Callable[[str], None]


class ErasureStopped(Exception):
    """The patient was not erased, or the files were not rewritten; the message says why."""


async def show_rows(owner_url: str, patient_id: str, brand_id: str, say: Say) -> bool:
    """Print the number of rows that an erasure would delete; return whether there are any. Raises `ErasureStopped`."""
    async with _database(owner_url) as database, database.connection(brand_id) as connection:
        counts = await count_rows(connection, brand_id, patient_id)
    _print_counts(counts, say)
    return any(counts.values())


async def erase(owner_url: str, patient_id: str, brand_id: str, actor_id: str, say: Say) -> None:
    """Erase a patient, and print the number of rows. Raises `ErasureStopped`."""
    async with _database(owner_url) as database:
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                counts = await erase_patient(database, brand_id, patient_id, actor_id)
                break
            except EventsUnsettled:
                if time.monotonic() > deadline:
                    raise ErasureStopped(UNSETTLED) from None
            await move_watermark(database)
            await asyncio.sleep(PAUSE_SECONDS)
    _print_counts(counts, say)


async def vacuum(owner_url: str) -> None:
    """Make the space of deleted rows reusable, and replace the planner's statistics. Raises `ErasureStopped`."""
    async with _session(owner_url) as session:
        await session.execute(f"VACUUM (ANALYZE) {', '.join(table.fullname for table in ERASED_TABLES)}")
        await _clear_statistics_of_empty_tables(session)


async def rewrite(owner_url: str, say: Say) -> None:
    """Write the files of the tables anew, without the deleted rows, and overwrite the write-ahead log.

    Each table is locked while it is rewritten. Raises `ErasureStopped`.
    """
    async with _session(owner_url) as session:
        await _wait_for_old_transactions(session)
        for table in ERASED_TABLES:
            size = await session.fetchval("SELECT pg_size_pretty(pg_total_relation_size($1::regclass))", table.fullname)
            say(f"rewriting {table.name} ({size})")
            await session.execute(f"VACUUM (FULL, ANALYZE) {table.fullname}")
        await _clear_statistics_of_empty_tables(session)
        await _rewrite_statistics(session)
        await _overwrite_log(session, say)


def _print_counts(counts: Mapping[str, int], say: Say) -> None:
    for name, count in counts.items():
        say(f"{count:>8}  {name}")


# The planner's statistics

# ANALYZE leaves the statistics of an empty table as they are.
COLUMNS_WITH_STATISTICS = """
SELECT format('ALTER TABLE %s ALTER %I TYPE %s', attrelid::regclass, a.attname, format_type(atttypid, atttypmod))
FROM pg_attribute a JOIN pg_stats s ON s.attname = a.attname
    AND to_regclass(format('%I.%I', s.schemaname, s.tablename)) = attrelid
WHERE attrelid = $1::regclass AND atttypid = ANY('{text,jsonb,bytea}'::regtype[])
    AND a.attname <> ALL('{brand_id,patient_id,id,key}')
"""


async def _clear_statistics_of_empty_tables(session: Session) -> None:
    """Remove the statistics of the text columns of empty tables; changing a column's type to its own does so."""
    for table in ERASED_TABLES:
        if await session.fetchval(f"SELECT brand_id FROM {table.fullname} LIMIT 1") is None:  # noqa: S608 - a constant
            for row in await session.fetch(COLUMNS_WITH_STATISTICS, table.fullname):
                await session.execute(row[0])


async def _rewrite_statistics(session: Session) -> None:
    file = "SELECT pg_relation_filenode($1::regclass)"
    before = await session.fetchval(file, STATISTICS)
    await session.execute(f"VACUUM FULL {STATISTICS}")
    if await session.fetchval(file, STATISTICS) == before:
        # PostgreSQL reports this by a warning.
        raise ErasureStopped(
            "the planner's statistics were not rewritten, because the role does not own the database: run as a "
            f"superuser `VACUUM FULL {STATISTICS}`, then this command again"
        )


# Old transactions

# Those of other databases keep no rows of this one. Connections of standbys have no database.
BEGAN_EARLIER = """
SELECT
    EXISTS (
        SELECT FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND coalesce(datname, current_database()) = current_database()
            AND greatest(age(backend_xmin), age(backend_xid)) > age($1::text::xid)
    ) OR EXISTS (SELECT FROM pg_replication_slots WHERE greatest(age(xmin), age(catalog_xmin)) > age($1::text::xid))
    OR EXISTS (
        SELECT FROM pg_prepared_xacts WHERE database = current_database() AND age(transaction) > age($1::text::xid)
    )
"""


async def _wait_for_old_transactions(session: Session) -> None:
    """Wait until every transaction began after this call. Earlier ones keep deleted rows. Raises `ErasureStopped`."""
    now = await session.fetchval("SELECT pg_current_xact_id()::xid::text")
    deadline = time.monotonic() + OLD_TRANSACTION_SECONDS
    while await session.fetchval(BEGAN_EARLIER, now):
        if time.monotonic() > deadline:
            raise ErasureStopped(
                "the files were not rewritten, because a transaction, a replication slot or a standby may still see "
                "the deleted rows (pg_stat_activity, pg_replication_slots): end it, then run this command again"
            )
        await asyncio.sleep(PAUSE_SECONDS)


# The write-ahead log

SEGMENT = "SELECT pg_walfile_name(pg_current_wal_insert_lsn())"
SEGMENTS = "SELECT name FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' ORDER BY name"

NO_RIGHTS = (
    "the tables were rewritten, but the role may not renew the write-ahead log; docs/erasing.md has the rights. Until "
    "its segments are overwritten by later writes, the log contains the erased text"
)


async def _overwrite_log(session: Session, say: Say) -> None:
    """Begin a new segment, and overwrite the earlier ones, which a checkpoint renames for reuse.

    Raises `ErasureStopped` if the role may not do so, or segments are kept for an archive or a replica.
    """
    say("overwriting the write-ahead log")
    try:
        last_with_text = await session.fetchval(SEGMENT)
        await _begin_segment(session)
        await session.execute("CHECKPOINT")
        # Names are in the order of writing. Those after the current segment are earlier ones, renamed.
        last = (await session.fetch(SEGMENTS))[-1]["name"]
        while await session.fetchval(SEGMENT) <= last:
            await _begin_segment(session)
        await session.execute("CHECKPOINT")
        kept = [row["name"] for row in await session.fetch(SEGMENTS) if row["name"] <= last_with_text]
    except asyncpg.InsufficientPrivilegeError as error:
        raise ErasureStopped(NO_RIGHTS) from error
    if kept:
        raise ErasureStopped(
            f"the tables were rewritten, but the server keeps {len(kept)} segments of the write-ahead log that contain "
            "the erased text, for an archive, a replication slot or `wal_keep_size`"
        )


async def _begin_segment(session: Session) -> None:
    # PostgreSQL fills the rest of the segment with zeros. It does nothing unless the segment has a record.
    await session.execute("SELECT pg_logical_emit_message(false, 'gateway', '')")
    await session.execute("SELECT pg_switch_wal()")


# Connections


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PatientNotFound as error:
        # The same whether another brand has the patient.
        raise ErasureStopped("the brand has no such patient") from error
    except OutcomeUnknown as error:
        raise ErasureStopped("the connection was lost during the commit; run the command again") from error
    except asyncpg.LockNotAvailableError as error:
        raise ErasureStopped(
            f"the rest was not done, because a table was in use for {LOCK_SECONDS} s; run the command again"
        ) from error
    except PROBLEMS as error:
        raise ErasureStopped(reason_of(error)) from error


@asynccontextmanager
async def _database(owner_url: str) -> AsyncIterator[Database]:
    with _translated():
        database = await Database.connect(
            owner_url, role=None, size=1, acquire_seconds=10, statement_seconds=STATEMENT_SECONDS
        )
        try:
            yield database
        finally:
            await database.close()


@asynccontextmanager
async def _session(owner_url: str) -> AsyncIterator[Session]:
    with _translated():
        session = await open_session(owner_url, {"lock_timeout": str(1000 * LOCK_SECONDS)})
        try:
            yield session
        finally:
            await session.close()
