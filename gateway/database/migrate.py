"""Migrate the database to the newest revision. Several processes may do so concurrently.

On a Citus cluster, the tables that the migrations created are distributed in the same step.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

import models
from gateway.database.citus import distribute, undistributed
from gateway.database.connection import keeps_session
from gateway.database.session import open_session
from gateway.settings import PREFIX, SettingsError
from models.base import PROCESS_SCHEMA, SCHEMA
from models.oldest_revision import SCHEMA_REVISION

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import AsyncConnection

MIGRATIONS = Path(models.__file__).parent / "migrations"

# Key of the advisory lock, shared by every gateway on a database. The value is arbitrary and fixed; it spells "encgw".
ADVISORY_LOCK = int.from_bytes(b"encgw")

LOCK_POLL_SECONDS = 0.1

# A statement that waits for the lock of a table makes every later recording wait behind it, so it gives up soon and
# tries again. Shorter than `deadlock_timeout` (1 s), after which PostgreSQL could cancel the recording instead.
TABLE_LOCK_TIMEOUT = "500"  # milliseconds
TABLE_LOCK_ATTEMPTS = 300
TABLE_LOCK_PAUSE_SECONDS = 2.5

# Alembic's table was `alembic_version` up to revision 0014. That table has the oldest revision that may serve now.
COPY_REVISION = f"""DO $$ BEGIN
IF to_regclass('{PROCESS_SCHEMA}.{SCHEMA_REVISION}') IS NULL
AND to_regclass('{PROCESS_SCHEMA}.alembic_version') IS NOT NULL THEN
CREATE TABLE {PROCESS_SCHEMA}.{SCHEMA_REVISION} (LIKE {PROCESS_SCHEMA}.alembic_version INCLUDING INDEXES);
INSERT INTO {PROCESS_SCHEMA}.{SCHEMA_REVISION} SELECT * FROM {PROCESS_SCHEMA}.alembic_version;
END IF; END $$"""  # noqa: S608 - names of this project

FIND_REVISIONS = f"""SELECT (SELECT version_num FROM {PROCESS_SCHEMA}.{SCHEMA_REVISION}) AS newest,
(SELECT version_num FROM {PROCESS_SCHEMA}.alembic_version) AS oldest"""  # noqa: S608 - names of this project


async def migrate(database_url: str) -> None:
    """Run the pending migrations, one process at a time.

    Raises:
        OSError, asyncpg.PostgresError: The database cannot be reached or refuses the connection.
        SettingsError: A newer gateway has migrated the database, and its migrations do not allow this one to serve.
    """
    if await is_newest(database_url):
        return
    if not keeps_session(database_url):
        raise SettingsError(
            "a migration needs a session of its own, which a pooler in transaction mode does not give: set "
            f"{PREFIX}DATABASE_OWNER_URL to an address without the pooler"
        )
    # Imported here: only a migration needs SQLAlchemy's engine and Alembic, which take half a second.
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: open_session(database_url, {"lock_timeout": TABLE_LOCK_TIMEOUT}),
        poolclass=NullPool,
    )
    async with engine.connect() as connection:
        # The lock belongs to the session, so the server releases it if the process dies.
        # It is polled: CREATE INDEX CONCURRENTLY waits for every running statement, so also for one that waits for it.
        while not await connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": ADVISORY_LOCK}):
            await connection.commit()
            await asyncio.sleep(LOCK_POLL_SECONDS)
        for schema in (SCHEMA, PROCESS_SCHEMA):
            await connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
        await connection.execute(text(COPY_REVISION))
        await connection.commit()
        # Another process may have migrated the database while this one waited for the lock.
        if not await is_newest(database_url):
            await _upgrade_within_attempts(connection)
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            await distribute(driver)
    await engine.dispose()


async def is_newest(database_url: str) -> bool:
    """Return whether no migration is pending and, on a cluster, every table is distributed. Waits for no lock.

    A database that a newer gateway has migrated is accepted if its migrations allow this gateway to serve. Raises
    `SettingsError` if they do not.
    """
    connection = await open_session(database_url)
    try:
        await connection.begin(None)
        found = await connection.fetchrow(FIND_REVISIONS)
        pending = await undistributed(connection)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return False
    finally:
        await connection.close()
    known = revisions()
    if found is None or found["newest"] is None:
        return False
    if found["newest"] not in known and found["oldest"] not in known:
        raise SettingsError(
            f"the database was migrated by a newer gateway (revision {found['newest']}; this one knows up to "
            f"{known[-1]}), and gateways older than revision {found['oldest']} may not serve it: run that version"
        )
    return found["newest"] not in known[:-1] and not pending


def revisions() -> list[str]:
    """Return the revisions that this gateway knows, oldest first."""
    return sorted(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("*.py"))


async def _upgrade_within_attempts(connection: "AsyncConnection") -> None:
    """Run the pending migrations. Each is one transaction, so an attempt continues where the last one ended."""
    from sqlalchemy.exc import DBAPIError

    for attempt in range(1, TABLE_LOCK_ATTEMPTS + 1):
        try:
            await connection.run_sync(_upgrade)
        except DBAPIError as error:
            await connection.rollback()
            if not _waited_too_long(error) or attempt == TABLE_LOCK_ATTEMPTS:
                raise
            await asyncio.sleep(TABLE_LOCK_PAUSE_SECONDS)
        else:
            await connection.commit()
            return


def _waited_too_long(error: "DBAPIError") -> bool:
    return getattr(error.orig, "sqlstate", None) in {
        asyncpg.LockNotAvailableError.sqlstate,
        asyncpg.DeadlockDetectedError.sqlstate,
    }


def _upgrade(connection: "Connection") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
