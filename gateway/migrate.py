"""Bringing a database to the newest form: safe to ask for from many processes at once."""

from pathlib import Path

import asyncpg
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import models
from models.base import PROCESS_SCHEMA, SCHEMA

MIGRATIONS = Path(models.__file__).parent / "migrations"

# One lock for every gateway on a database. Any fixed number does; this one spells "encgw".
ADVISORY_LOCK = int.from_bytes(b"encgw")


async def migrate(database_url: str) -> None:
    """Run the migrations a database still lacks, one process at a time.

    Raises `OSError` or `asyncpg.PostgresError` when the database cannot be reached or does not let us.
    """
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(database_url), poolclass=NullPool
    )
    async with engine.connect() as connection:
        # The lock belongs to the session, so it is freed even by a process that dies in the middle.
        await connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": ADVISORY_LOCK})
        for schema in (SCHEMA, PROCESS_SCHEMA):
            await connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
        await connection.commit()
        await connection.run_sync(_upgrade)
        await connection.commit()
    await engine.dispose()


def _upgrade(connection: Connection) -> None:
    # Imported here: only a migration needs Alembic, and it takes a third of a second.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
