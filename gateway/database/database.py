"""The pool of connections, and what each way of losing one means for the caller."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple, Self, TypedDict

import asyncpg

from gateway.database.batcher import MicroBatcher
from gateway.database.pool import Pool
from gateway.database.session import RELIED_ON, Session, SessionFactory
from gateway.observability.metrics import POOL_CONNECTIONS, POOL_IN_USE, POOL_REFUSED
from resolvers.errors import AnswerTooLarge, Locked, OutcomeUnknown, TemporarilyUnavailable
from resolvers.sql import Row, Statement

APP_ROLE = "gateway_app"
"""May do what serving needs, for one brand at a time; owns nothing. The migrations say what exactly."""

RELAY_ROLE = "gateway_relay"
"""May do what passing on events needs, for all brands, and sees no encounter."""

SILENCE_SECONDS = 2.0
"""How much longer than a statement may take its answer is waited for. The server gives up first, and says so; where not
even that is heard, the network is gone, and only the kernel would notice, after many minutes."""

ROWS_TOGETHER = 400
"""Rows of lists that one statement reads: beside a long list a statement costs little, and nobody should wait for many
of them."""

CLOSE_SECONDS = 5.0
"""How long the end of the process waits for connections in use."""

# The connection, the server or its resources are gone for now: the statement did not happen, and may be tried again.
UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a connection that was ended while it was idle sometimes says
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, cancelled by a timeout, terminated
    asyncpg.InsufficientResourcesError,  # disk full, out of memory, too many connections
    asyncpg.TransactionRollbackError,  # deadlock, serialization failure
    asyncpg.ReadOnlySQLTransactionError,  # the server became a standby, or the role may only read
)


class Timeouts(TypedDict):
    """How long a connection, and a statement, are waited for."""

    acquire_seconds: float
    statement_seconds: float


class PoolConnection:
    """One borrowed connection: compiled statements go out by their text, which asyncpg keeps prepared."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Session) -> None:
        self._connection = connection

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        """Run the statement and give its rows. Raises `Locked`."""
        return await self._rows(statement, values)

    async def fetch_one(self, statement: Statement, **values: object) -> Row | None:
        """Run the statement and give its first row, or None. Raises `Locked`."""
        rows = await self._rows(statement, values)
        return rows[0] if rows else None

    async def fetch_at_most(self, most_bytes: int, statement: Statement, /, **values: object) -> list[Row]:
        """Run the statement and give its rows, whose columns of JSON have at most so many bytes together.

        Raises `AnswerTooLarge` or `Locked`. Once there are more bytes, the statement is cancelled.
        """
        connection = self._connection
        try:
            async with asyncio.timeout(None) as reading:
                connection.bound_json(most_bytes, reading)
                rows = await self.fetch(statement, **values)
        except TimeoutError:
            if not connection.passed_limit:
                raise
        finally:
            passed_limit = connection.passed_limit
            connection.bound_json(sys.maxsize, None)
        if passed_limit:
            raise AnswerTooLarge(most_bytes)
        return rows

    async def _rows(self, statement: Statement, values: dict[str, object]) -> list[Row]:
        try:
            return await self._connection.fetch(statement.text, *statement.arguments(values))
        except asyncpg.LockNotAvailableError as error:
            raise Locked from error


class BatchKey(NamedTuple):
    """What those have in common who may be served together."""

    brand_id: str
    statement: Statement
    by: str
    rows: int
    most_bytes: int
    given: tuple[tuple[str, object], ...]


class Database:
    """PostgreSQL, as the resolvers use it (`resolvers.sql.Database`)."""

    def __init__(self, pool: Pool[Session], acquire_seconds: float, name: str) -> None:
        self._pool = pool
        self._acquire_seconds = acquire_seconds
        # Nobody waits for a disk here. A second statement would only have a few of those whom the next could have.
        self._finding: MicroBatcher[BatchKey, str, Row | None] = MicroBatcher(
            self._find, acquire_seconds, max_in_flight=1
        )
        # Lists are the database's work more than ours: it is given several at once, and others find connections too.
        self._listing: MicroBatcher[BatchKey, str, Row | None] = MicroBatcher(
            self._find, acquire_seconds, max_in_flight=max(1, pool.size // 2), max_batch_size=_lists_together
        )
        self._in_use = POOL_IN_USE.labels(name)
        self._refused = POOL_REFUSED.labels(name)
        POOL_CONNECTIONS.labels(name).set(pool.size)

    @classmethod
    async def connect(
        cls,
        url: str,
        pool: str = "requests",
        /,
        *,
        role: str | None,
        size: int,
        acquire_seconds: float,
        statement_seconds: float,
        plans_once: bool = False,
        long_answers: bool = False,
        opens_first: bool = True,
    ) -> Self:
        """Open the pool. Raises `OSError` or `asyncpg.PostgresError` when the server does not let us in.

        Whoever the URL logs in as, the connections act as `role`, which owns no table and cannot pass by row-level
        security. Only what the owner of the tables does names none. `pool` is what the metrics call it. `plans_once`
        has each statement planned for all arguments at once; `long_answers` keeps the memory of one for the next.
        Without `opens_first` the first connection is opened when it is needed, and what keeps it from that told then.
        """
        settings = {
            **RELIED_ON,
            # A page is read along its index: gathered first and sorted then, it would cost what the whole list of the
            # patient costs.
            "enable_bitmapscan": "off",
            # And so there is nothing to find out from the arguments of what callers ask. A duty looks at what is new in
            # a log that only grows, which a plan must know.
            **({"plan_cache_mode": "force_generic_plan"} if plans_once else {}),
            # None is worth the processors of others, least of all a duty's look through the log.
            "max_parallel_workers_per_gather": "0",
            "statement_timeout": f"{statement_seconds * 1000:.0f}",
            "idle_in_transaction_session_timeout": f"{statement_seconds * 1000:.0f}",
        }
        sessions = SessionFactory(
            url,
            settings,
            role,
            max_cached_statement_lifetime=0,
            command_timeout=statement_seconds + SILENCE_SECONDS,
        )

        async def opened() -> Session:
            connection = await sessions.open()
            try:
                await _set_codecs(connection)
                if long_answers:
                    await connection.execute(KEEP_MEMORY)
            except BaseException:
                connection.terminate()
                raise
            return connection

        connections = Pool(opened, size, _is_usable)
        if opens_first:
            await connections.open()
        return cls(connections, acquire_seconds, pool)

    async def close(self) -> None:
        """Close every connection, waiting for those in use, but not for ever."""
        await self._pool.close(CLOSE_SECONDS)

    async def ping(self) -> None:
        """Return when a write would be taken. Raises `TemporarilyUnavailable`."""
        async with self._acquired() as connection:
            if await connection.fetchval("SELECT current_setting('transaction_read_only') = 'on'"):
                raise asyncpg.ReadOnlySQLTransactionError

    @asynccontextmanager
    async def connection(self, brand_id: str) -> AsyncIterator[PoolConnection]:
        """Borrow a connection outside a transaction. Raises `TemporarilyUnavailable`."""
        async with self._acquired(brand_id) as connection:
            yield PoolConnection(connection)

    async def fetch_one_batched(
        self,
        brand_id: str,
        statement: Statement,
        by: str,
        value: str,
        *,
        rows: int = 1,
        most_bytes: int,
        **given: object,
    ) -> Row | None:
        """Find the row whose `key` is a value, together with those who look at the same time.

        All of them together have at most `most_bytes` of JSON; where they have more, each is read alone. Raises
        `AnswerTooLarge` or `TemporarilyUnavailable`.
        """
        finding = BatchKey(brand_id, statement, by, rows, most_bytes, tuple(given.items()))
        if _lists_together(finding) == 1:
            return await self._fetch_one(finding, value)
        try:
            return await (self._finding if rows == 1 else self._listing).do(finding, value)
        except TimeoutError:
            # The statements under way hang, and perhaps nothing else does.
            return await self._fetch_one(finding, value)

    async def _fetch_one(self, finding: BatchKey, value: str) -> Row | None:
        (row,) = await self._find(finding, [value], self._acquire_seconds)
        return row

    async def _find(self, finding: BatchKey, values: Sequence[str], within_seconds: float) -> list[Row | None]:
        async with self._acquired(finding.brand_id, within_seconds) as connection:
            rows = await PoolConnection(connection).fetch_at_most(
                finding.most_bytes,
                finding.statement,
                **{
                    "brand_id": finding.brand_id,
                    "most_bytes": finding.most_bytes,
                    finding.by: values,
                    **dict(finding.given),
                },
            )
        found = {row["key"]: row for row in rows}
        return [found.get(value) for value in values]

    @asynccontextmanager
    async def autocommit(self, brand_id: str, within_seconds: float | None = None) -> AsyncIterator[PoolConnection]:
        """Borrow a connection for one statement that commits by itself, if one is free within that time or the usual.

        Raises `TemporarilyUnavailable` or `OutcomeUnknown`.
        """
        async with self._acquired(brand_id, within_seconds) as connection:
            try:
                yield PoolConnection(connection)
            except UNAVAILABLE as error:
                # Only an ERROR of the server's says that nothing was committed. What ends the connection, and be it
                # the server's own goodbye, may come after the commit.
                if getattr(error, "severity_en", None) == "ERROR":
                    raise
                _hang_up(connection, error)
                raise OutcomeUnknown from error

    @asynccontextmanager
    async def unscoped(self) -> AsyncIterator[PoolConnection]:
        """Borrow a connection for no brand: for a role whose policies need none. Raises `TemporarilyUnavailable`."""
        async with self._acquired() as connection:
            yield PoolConnection(connection)

    @asynccontextmanager
    async def transaction(self, brand_id: str | None) -> AsyncIterator[PoolConnection]:
        """Borrow a connection in a transaction, for no brand where the role's policies need none.

        Raises `TemporarilyUnavailable` or `OutcomeUnknown`.
        """
        async with self._acquired(brand_id) as connection:
            transaction = connection.transaction()
            try:
                await transaction.start()
            except Exception:
                # asyncpg takes the next transaction on this connection for one within this one.
                connection.terminate()
                raise
            try:
                yield PoolConnection(connection)
            except BaseException as error:
                _hang_up(connection, error)
                # A lost connection has rolled back by itself; the first error is the one to tell.
                if not connection.is_closed():
                    await transaction.rollback()
                raise
            try:
                await transaction.commit()
            except UNAVAILABLE as error:
                _hang_up(connection, error)
                # The commit was sent and its answer never came: only the database knows.
                raise OutcomeUnknown from error

    @asynccontextmanager
    async def _acquired(
        self, brand_id: str | None = None, within_seconds: float | None = None
    ) -> AsyncIterator[Session]:
        try:
            connection = await self._pool.acquire(within_seconds or self._acquire_seconds)
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:  # it lets nobody in, for whatever reason
            if isinstance(error, TimeoutError):
                self._refused.inc()
            raise TemporarilyUnavailable from error
        self._in_use.inc()
        cancelled = False
        try:
            if brand_id is not None:
                await connection.act_for(brand_id)
            yield connection
        except UNAVAILABLE as error:
            _hang_up(connection, error)
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                self._expire_writable()
            raise TemporarilyUnavailable from error
        except (asyncio.CancelledError, AnswerTooLarge):
            cancelled = True
            raise
        finally:
            self._in_use.dec()
            self._pool.release(connection, cancelled=cancelled)

    def _expire_writable(self) -> None:
        """Close every connection that was writable when it was opened: its server, or its role, is read-only now.

        Those that were opened since expire by themselves, so that no write opens a connection in vain.
        """
        now = asyncio.get_running_loop().time()
        for connection in self._pool:
            if connection.expires_at == math.inf:
                connection.expires_at = now


def _is_usable(connection: Session) -> bool:
    return not connection.is_closed() and asyncio.get_running_loop().time() < connection.expires_at


def _lists_together(finding: BatchKey) -> int:
    return max(1, ROWS_TOGETHER // finding.rows)


def _hang_up(connection: Session, error: BaseException) -> None:
    """End a connection on which an answer did not come in time: a rollback would be waited for as long, or longer."""
    if isinstance(error, TimeoutError):
        connection.terminate()


# A long answer passes through several buffers. A backend on glibc gives them back to the system then, to fault them in
# again for the next one, page by page: a quarter of the cost of 500 encounters. It keeps twice the size of the largest
# piece that it ever freed, so it frees 2 MiB at the beginning. Source: mallopt(3), M_MMAP_THRESHOLD.
KEEP_MEMORY = "SELECT octet_length(repeat(repeat(' ', 1024), (SELECT 2048)))"


async def _set_codecs(connection: Session) -> None:
    # asyncpg takes the first and the last instant of Python's calendar for the infinities. They are instants here. And
    # Python reads a text in a quarter of the time that it takes to add up microseconds.
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=datetime.isoformat, decoder=datetime.fromisoformat
    )
    # JSON that goes to the client as it is comes as the one type of text that nothing else has, and stays bytes.
    await connection.set_type_codec(
        "bpchar", schema="pg_catalog", format="binary", encoder=str.encode, decoder=connection.decode_json
    )
    # What is sent as JSON is written already.
    await connection.set_type_codec("json", schema="pg_catalog", format="binary", encoder=bytes, decoder=bytes)
