"""Migrate the database to the newest revision. Several processes may do so concurrently."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

import models
from gateway.database.connection import keeps_session
from gateway.database.session import open_session
from gateway.settings import PREFIX, SettingsError
from models.base import PROCESS_SCHEMA, SCHEMA

if TYPE_CHECKING:
    from sqlalchemy import Connection

MIGRATIONS = Path(models.__file__).parent / "migrations"

# Key of the advisory lock, shared by every gateway on a database. The value is arbitrary and fixed; it spells "encgw".
ADVISORY_LOCK = int.from_bytes(b"encgw")

LOCK_POLL_SECONDS = 0.1


async def migrate(database_url: str) -> None:
    """Run the pending migrations, one process at a time.

    Raises:
        OSError, asyncpg.PostgresError: The database cannot be reached or refuses the connection.
        SettingsError: A newer gateway has migrated the database.
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
        "postgresql+asyncpg://", async_creator=lambda: open_session(database_url), poolclass=NullPool
    )
    async with engine.connect() as connection:
        # The lock belongs to the session, so the server releases it if the process dies.
        # It is polled: CREATE INDEX CONCURRENTLY waits for every running statement, so also for one that waits for it.
        while not await connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": ADVISORY_LOCK}):
            await connection.commit()
            await asyncio.sleep(LOCK_POLL_SECONDS)
        for schema in (SCHEMA, PROCESS_SCHEMA):
            await connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
        await connection.commit()
        await connection.run_sync(_upgrade)
        await connection.commit()
    await engine.dispose()


async def is_newest(database_url: str) -> bool:
    """Return whether no migration is pending, without waiting for the lock.

    Raises `SettingsError` if a newer gateway has migrated the database.
    """
    connection = await open_session(database_url)
    try:
        await connection.begin(None)
        version: str | None = await connection.fetchval(f"SELECT version_num FROM {PROCESS_SCHEMA}.alembic_version")  # noqa: S608
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return False
    finally:
        await connection.close()
    if version is not None and version not in revisions():
        raise _newer(version)
    return version == revisions()[-1]


def revisions() -> list[str]:
    """Return the revisions that this gateway knows, oldest first."""
    return sorted(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("*.py"))


def _newer(version: object) -> SettingsError:
    return SettingsError(
        f"the database was migrated by a newer gateway (revision {version}; this one knows up to {revisions()[-1]}): "
        "run that version"
    )


def _upgrade(connection: "Connection") -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy import text

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        # Another process may have migrated the database while this one waited for the lock.
        version = connection.execute(text(f"SELECT version_num FROM {PROCESS_SCHEMA}.alembic_version")).scalar()  # noqa: S608
        if version in revisions():
            raise
        raise _newer(version) from error
