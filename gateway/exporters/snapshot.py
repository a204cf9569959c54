"""Read the rows of a brand in one snapshot, page by page, and audit each page before its rows leave."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from gateway.database.database import APP_ROLE, CLOSE_SECONDS, Database
from gateway.database.problems import PROBLEMS, reason_of, translate_driver_errors
from gateway.database.session import RELIED_ON, Session, open_session
from gateway.exporters.output import ExportStopped, Place
from gateway.settings import PREFIX, Settings
from resolvers import json_text
from resolvers.access import Caller
from resolvers.audit import APPEND_ENTRY
from resolvers.errors import GatewayError
from resolvers.ids import new_id
from resolvers.services import AuditRecord
from resolvers.sql import Row

PAGE_ROWS = 256
"""Rows in memory at once, and patients in one audit entry."""

STATEMENT_SECONDS = 600
"""Seconds that a statement may run. A page takes milliseconds on one server; on a cluster each shard is asked."""

ACQUIRE_SECONDS = 30.0
"""Seconds to wait for the connection that writes audit entries."""

_SETTINGS = {
    **RELIED_ON,
    "statement_timeout": f"{STATEMENT_SECONDS * 1000}",
    # The reader of standard output may be slow.
    "idle_in_transaction_session_timeout": "0",
    # A page is read by an index, in order, and never by sorting the rows of the brand.
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "max_parallel_workers_per_gather": "0",
}

READ_ONLY = "ISOLATION LEVEL REPEATABLE READ READ ONLY"


def instant_text(column: str) -> str:
    """Return SQL for the RFC 3339 text of a column, in UTC to the microsecond: the texts sort like the times."""
    return f"""to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


class Snapshot:
    """A brand's rows as of one instant. Use `Snapshot.open`."""

    def __init__(self, connection: Session, brand_id: str, at: str) -> None:
        self._connection = connection
        self.brand_id = brand_id
        self.at = at
        """The time at which the snapshot's transaction began, by the database's clock."""

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, brand_id: str) -> AsyncIterator["Snapshot"]:
        """Yield a snapshot of the brand, read by the application's role, to which row-level security applies.

        Raises `SettingsError` if the database cannot be used, and `ExportStopped` for a brand without patients.
        """
        with translate_driver_errors(f"{PREFIX}DATABASE_URL"):
            connection = await open_session(settings.serving_url, _SETTINGS, APP_ROLE)
        try:
            with translated():
                await connection.begin(brand_id, READ_ONLY)
                at = await connection.fetchval(f"SELECT {instant_text('now()')}")
                snapshot = cls(connection, brand_id, at)
                if not await snapshot.fetch("SELECT FROM patient_graph.patients WHERE brand_id = $1 LIMIT 1"):
                    raise ExportStopped("the brand has no patients; check --brand")
            yield snapshot
        finally:
            await connection.close(timeout=CLOSE_SECONDS)

    async def fetch(self, sql: str, *arguments: object) -> list[Row]:
        """Return the rows of a statement whose first argument is the brand. Raises `ExportStopped`."""
        with translated():
            return await self._connection.fetch(sql, self.brand_id, *arguments)

    async def pages(self, sql: str, after: Place) -> AsyncIterator[list[Row]]:
        """Yield the rows of a statement in order, at most `PAGE_ROWS` at a time, from a place on.

        The statement takes the brand, the `created_at` and `id` of the place, and the limit. Raises `ExportStopped`.
        """
        while rows := await self.fetch(sql, *after, PAGE_ROWS):
            yield rows
            after = Place(rows[-1]["created_at"], rows[-1]["id"])


class Auditor:
    """Writes the audit entries of one export. Use `Auditor.open`."""

    def __init__(self, database: Database, caller: Caller) -> None:
        self._database = database
        self.caller = caller
        self.request_id = f"export-{new_id()}"

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, actor: str) -> AsyncIterator["Auditor"]:
        """Yield the auditor of an export by `actor`. Raises `SettingsError` if the database cannot be used."""
        with translate_driver_errors(f"{PREFIX}DATABASE_URL"):
            database = await Database.connect(
                settings.serving_url,
                "audit",
                role=APP_ROLE,
                size=1,
                acquire_seconds=ACQUIRE_SECONDS,
                statement_seconds=settings.database_statement_seconds,
            )
        try:
            yield cls(database, Caller("export", frozenset(), user_id=actor))
        finally:
            await database.close()

    async def record(self, note: AuditRecord) -> None:
        """Return once the entry is committed. Raises `ExportStopped`."""
        with translated():
            async with self._database.transaction(note.brand_id) as connection:
                values = note._asdict() | {"id": new_id(), "details": json_text.write(dict(note.details))}
                await connection.fetch(APPEND_ENTRY, **values)


@contextmanager
def translated() -> Iterator[None]:
    """Translate errors of the database into `ExportStopped`."""
    try:
        yield
    except asyncpg.UndefinedTableError as error:
        raise ExportStopped("the database has no tables yet; run `gateway migrate`") from error
    except (*PROBLEMS, GatewayError) as error:
        raise ExportStopped(reason_of(error)) from error
