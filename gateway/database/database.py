"""The interface of the resolvers to PostgreSQL: pooled connections, and an exception for each way of losing one."""

from __future__ import annotations

import asyncio
import math
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple, Self, TypedDict

import asyncpg

from gateway.database.connection import is_cluster
from gateway.database.pool import Pool
from gateway.database.session import RELIED_ON, Session, SessionFactory
from gateway.observability import traces
from gateway.observability.metrics import POOL_CONNECTIONS, POOL_IN_USE, POOL_REFUSED
from resolvers.batcher import MicroBatcher
from resolvers.errors import (
    AnswerTooLarge,
    GatewayError,
    Locked,
    OutcomeUnknown,
    PatientErased,
    TemporarilyUnavailable,
)
from resolvers.sql import Row, Statement

APP_ROLE = "gateway_app"
"""Role with the rights that serving needs, for one brand at a time. It owns nothing. The migrations define its
rights."""

RELAY_ROLE = "gateway_relay"
"""Role with the rights that relaying events needs, for all brands. It cannot read encounters."""

SILENCE_SECONDS = 2.0
"""Seconds; how much longer than `statement_timeout` the client waits. The server times out first and sends an error. If
no error arrives, the network is down, which the kernel would notice only after many minutes."""

ROWS_TOGETHER = 400
"""Rows of lists that one statement reads. A statement costs little beside a long list, and no caller should wait for
many long lists."""

CLOSE_SECONDS = 5.0
"""Seconds; how long shutdown waits for connections in use."""

# The connection, the server or its resources are temporarily unavailable. The statement did not happen and may be
# retried.
UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # sometimes raised by a connection that was closed while idle
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, cancelled by a timeout, terminated
    asyncpg.InsufficientResourcesError,  # disk full, out of memory, too many connections
    asyncpg.TransactionRollbackError,  # deadlock, serialization failure
    asyncpg.ReadOnlySQLTransactionError,  # the server became a standby, or the role may only read
)


# Citus has no SQLSTATE for some ways of losing a node: the error is XX000, and its message is that of libpq.
# Source: ReportResultError of connection/remote_commands.c, transaction/remote_transaction.c.
LOST_NODE = re.compile(
    r"failure on connection marked as essential|failed to prepare transaction|no connection to the server"
    r"|(server closed the|SSL) connection|SSL SYSCALL|could not (receive data from|send data to) server"
    r"|connection (pointer is NULL|not open)"
)


class Timeouts(TypedDict):
    """Seconds to wait for a connection and for a statement."""

    acquire_seconds: float
    statement_seconds: float


class PoolConnection:
    """A connection acquired from the pool.

    Compiled statements are sent as text, which asyncpg caches as prepared statements.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Session) -> None:
        self._connection = connection

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        """Run the statement and return its rows. Raises `Locked` or `PatientErased`."""
        return await self._rows(statement, values)

    async def fetch_one(self, statement: Statement, **values: object) -> Row | None:
        """Run the statement and return its first row, or None. Raises `Locked`."""
        rows = await self._rows(statement, values)
        return rows[0] if rows else None

    async def fetch_at_most(self, most_bytes: int, statement: Statement, /, **values: object) -> list[Row]:
        """Run the statement and return its rows, whose JSON columns have at most `most_bytes` bytes together.

        Raises `AnswerTooLarge` or `Locked`. The statement is cancelled as soon as more bytes have arrived.
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
            if traces.active is None:
                return await self._connection.fetch(statement.text, *statement.arguments(values))
            with traces.active.statement(statement.text):
                return await self._connection.fetch(statement.text, *statement.arguments(values))
        except asyncpg.LockNotAvailableError as error:
            raise Locked from error
        except asyncpg.ForeignKeyViolationError as error:
            # The only foreign key is that of an encounter to its patient.
            raise PatientErased from error


class BatchKey(NamedTuple):
    """The properties that calls must share to be batched."""

    brand_id: str
    statement: Statement
    by: str
    rows: int
    most_bytes: int
    given: tuple[tuple[str, object], ...]


class Database:
    """PostgreSQL as the resolvers use it (`resolvers.sql.Database`)."""

    def __init__(
        self,
        pool: Pool[Session],
        acquire_seconds: float,
        name: str,
        late: type[GatewayError] = TemporarilyUnavailable,
        is_node_away: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._pool = pool
        self._late = late
        self._is_node_away = is_node_away
        self._acquire_seconds = acquire_seconds
        # These statements do not wait for a disk. A second one in flight would only take items from the next batch.
        self._finding: MicroBatcher[BatchKey, str, Row | None] = MicroBatcher(
            self._find, acquire_seconds, max_in_flight=1
        )
        # Lists cost the database more than this process, so several statements run at once. Half of the pool stays
        # available to other work.
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
        of_replica: bool = False,
        late: type[GatewayError] = TemporarilyUnavailable,
        is_node_away: Callable[[], Awaitable[bool]] | None = None,
    ) -> Self:
        """Open the pool. Raises `OSError` or `asyncpg.PostgresError` when the server refuses the connection.

        Args:
            url: The server and the login.
            pool: Name of the pool in the metrics.
            role: Role of the connections, whatever the login. It owns no table and cannot bypass row-level security.
                None: the login itself, only for work of the tables' owner.
            size: Maximum number of connections.
            acquire_seconds: Seconds to wait for a connection.
            statement_seconds: Seconds that a statement may run, or a transaction be idle.
            plans_once: Whether each statement gets one generic plan, whatever its arguments.
            long_answers: Whether backends keep the memory of a long answer for the next one.
            opens_first: Whether the first connection is opened now. Otherwise it is opened on first use, and errors are
                raised then.
            of_replica: Whether the server is a hot standby, for reads only.
            late: Class of the error for a statement that runs longer than `statement_seconds`.
            is_node_away: Returns whether a node of a cluster is away, which is then the reason of a late statement.
        """
        settings = {
            **RELIED_ON,
            # A page is read by an index scan, in order. A bitmap scan would read and sort the patient's whole list: 19
            # ms instead of 0.6 for the first page of 10,000 encounters (decision 43).
            "enable_bitmapscan": "off",
            # So a list is not planned for its arguments at each execution, which takes 11 to 14 % more CPU (R4, R5 of
            # docs/performance.md). A background job reads the new end of an append-only log, and its plan must depend
            # on the arguments.
            **({"plan_cache_mode": "force_generic_plan"} if plans_once else {}),
            # No statement justifies using the processors of others, least of all a background job's scan of the log.
            "max_parallel_workers_per_gather": "0",
            "statement_timeout": f"{statement_seconds * 1000:.0f}",
            # A prepared transaction keeps its locks until its coordinator returns. This timeout tells that a lock was
            # the cause, so it is the shorter one.
            **({"lock_timeout": f"{statement_seconds * 800:.0f}"} if is_cluster(url) else {}),
            "idle_in_transaction_session_timeout": f"{statement_seconds * 1000:.0f}",
            # A standby may be promoted while connections are open: reads must not change it even then.
            **({"default_transaction_read_only": "on"} if of_replica else {}),
        }
        sessions = SessionFactory(
            url,
            settings,
            role,
            may_be_standby=of_replica,
            max_cached_statement_lifetime=0,
            command_timeout=statement_seconds + SILENCE_SECONDS,
        )

        async def opened() -> Session:
            connection = await sessions.open()
            try:
                # In one transaction, because a pooler may give each transaction another session.
                await connection.begin(None)
                await _set_codecs(connection)
                await connection.execute("COMMIT")
                if long_answers and connection.keeps_session:
                    await connection.execute(KEEP_MEMORY)
            except BaseException:
                connection.terminate()
                raise
            return connection

        connections = Pool(opened, size, _is_usable)
        if opens_first:
            await connections.open()
        return cls(connections, acquire_seconds, pool, late, is_node_away)

    def terminate(self) -> None:
        """Terminate every connection, so that the statements in flight fail now."""
        for connection in self._pool:
            connection.terminate()

    async def close(self) -> None:
        """Close every connection. Waits up to `CLOSE_SECONDS` for those in use."""
        await self._pool.close(CLOSE_SECONDS)

    async def ping(self) -> None:
        """Return if the database accepts writes. Raises `TemporarilyUnavailable`."""
        async with self._acquired() as connection:
            if await connection.fetchval("SELECT current_setting('transaction_read_only') = 'on'"):
                raise asyncpg.ReadOnlySQLTransactionError

    @asynccontextmanager
    async def connection(self, brand_id: str) -> AsyncIterator[PoolConnection]:
        """Acquire a connection outside a transaction. Raises `TemporarilyUnavailable`."""
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
        """Return the row whose `key` is `value`, batched with calls made at the same time.

        The rows of a batch have at most `most_bytes` of JSON together; if they have more, each is read alone. Raises
        `AnswerTooLarge` or `TemporarilyUnavailable`.

        Args:
            brand_id: Brand whose rows are visible.
            statement: Reads the rows of several values.
            by: Name of the statement's parameter for the values.
            value: Key of the row.
            rows: Rows of lists that the result contains at most; decides how many calls share a statement.
            most_bytes: Limit of the JSON columns.
            given: The statement's other arguments; only calls with equal ones are batched.
        """
        finding = BatchKey(brand_id, statement, by, rows, most_bytes, tuple(given.items()))
        if _lists_together(finding) == 1:
            return await self._fetch_one(finding, value)
        try:
            return await (self._finding if rows == 1 else self._listing).do(finding, value)
        except TimeoutError:
            # The statements in flight may hang while the rest of the database responds.
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
        """Acquire a connection for one statement that commits by itself.

        `within_seconds` limits the wait for a connection; None: `acquire_seconds` of the pool. Raises
        `TemporarilyUnavailable` or `OutcomeUnknown`.
        """
        async with self._acquired(brand_id, within_seconds, commit_failed=OutcomeUnknown) as connection:
            try:
                yield PoolConnection(connection)
            except UNAVAILABLE as error:
                # Only a server ERROR proves that nothing was committed. If the connection ended, even by a server
                # FATAL, the commit may have succeeded. In a transaction, the commit was not sent yet.
                if getattr(error, "severity_en", None) == "ERROR" or connection.needs_transaction:
                    raise
                _terminate(connection, error)
                raise OutcomeUnknown from error

    @asynccontextmanager
    async def unscoped(self) -> AsyncIterator[PoolConnection]:
        """Acquire a connection for no brand, for a role whose policies need none. Raises `TemporarilyUnavailable`."""
        async with self._acquired() as connection:
            yield PoolConnection(connection)

    @asynccontextmanager
    async def transaction(self, brand_id: str | None) -> AsyncIterator[PoolConnection]:
        """Acquire a connection in a transaction. Raises `TemporarilyUnavailable` or `OutcomeUnknown`.

        `brand_id` is None for a role whose policies need no brand.
        """
        async with self._acquired(brand_id, in_transaction=True, commit_failed=OutcomeUnknown) as connection:
            yield PoolConnection(connection)

    @asynccontextmanager
    async def _acquired(
        self,
        brand_id: str | None = None,
        within_seconds: float | None = None,
        *,
        in_transaction: bool = False,
        commit_failed: type[GatewayError] = TemporarilyUnavailable,
    ) -> AsyncIterator[Session]:
        """Acquire a connection for a brand, or for none.

        It is in a transaction if `in_transaction`, and whenever the brand holds for one only. `commit_failed` is the
        class of the error if the connection is lost during the commit.
        """
        try:
            connection = await self._pool.acquire(within_seconds or self._acquire_seconds)
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:  # opening a connection failed
            if isinstance(error, TimeoutError):
                self._refused.inc()
            raise TemporarilyUnavailable from error
        self._in_use.inc()
        cancelled = False
        try:
            if in_transaction or connection.needs_transaction:
                async with _transaction(connection, brand_id, commit_failed):
                    yield connection
            else:
                if brand_id is not None:
                    await connection.act_for(brand_id)
                yield connection
        except (*UNAVAILABLE, asyncpg.InternalServerError) as error:
            if isinstance(error, asyncpg.InternalServerError) and not LOST_NODE.match(str(error)):
                raise
            _terminate(connection, error)
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                self._expire_writable()
            late = isinstance(error, asyncpg.QueryCanceledError)
            if late and self._is_node_away is not None:
                late = not await self._is_node_away()
            raise (self._late() if late else TemporarilyUnavailable()) from error
        except (asyncio.CancelledError, AnswerTooLarge):
            cancelled = True
            raise
        finally:
            self._in_use.dec()
            self._pool.release(connection, cancelled=cancelled)

    def _expire_writable(self) -> None:
        """Expire every connection that was writable when it was opened: its server, or its role, is read-only now.

        Connections that were opened read-only have their own expiry. So writes do not keep opening connections in vain.
        """
        now = asyncio.get_running_loop().time()
        for connection in self._pool:
            if connection.expires_at == math.inf:
                connection.expires_at = now


@asynccontextmanager
async def _transaction(
    connection: Session, brand_id: str | None, commit_failed: type[GatewayError]
) -> AsyncIterator[None]:
    try:
        await connection.begin(brand_id)
    except Exception:
        # The transaction may have begun.
        connection.terminate()
        raise
    try:
        yield
    except BaseException as error:
        _terminate(connection, error)
        # The server rolls back when it loses the connection. Raise the first error, not one of the rollback.
        if not connection.is_closed():
            await connection.execute("ROLLBACK")
        raise
    try:
        await connection.execute("COMMIT")
    except (*UNAVAILABLE, asyncpg.InternalServerError) as error:
        _terminate(connection, error)
        # The commit was sent but not acknowledged, so its outcome is unknown.
        raise commit_failed from error


def _is_usable(connection: Session) -> bool:
    return not connection.is_closed() and asyncio.get_running_loop().time() < connection.expires_at


def _lists_together(finding: BatchKey) -> int:
    return max(1, ROWS_TOGETHER // finding.rows)


def _terminate(connection: Session, error: BaseException) -> None:
    """Terminate the connection after a timeout: a rollback would take as long, or longer."""
    if isinstance(error, TimeoutError):
        connection.terminate()


# A long answer passes through several buffers. A backend on glibc then returns them to the system. The next answer
# faults them in page by page, a quarter of the cost of 500 encounters. glibc keeps twice the size of the largest block
# ever freed, so each backend frees 2 MiB at the start. Source: mallopt(3), M_MMAP_THRESHOLD.
KEEP_MEMORY = "SELECT octet_length(repeat(repeat(' ', 1024), (SELECT 2048)))"


async def _set_codecs(connection: Session) -> None:
    # asyncpg decodes the first and the last instant of Python's calendar as infinities; here they are instants. Parsing
    # text also takes Python a quarter of the time of adding up microseconds.
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=datetime.isoformat, decoder=datetime.fromisoformat
    )
    # JSON that is passed on unchanged has the type `bpchar`, which no other column has, and stays bytes.
    await connection.set_type_codec(
        "bpchar", schema="pg_catalog", format="binary", encoder=str.encode, decoder=connection.decode_json
    )
    # JSON arguments are already serialized.
    await connection.set_type_codec("json", schema="pg_catalog", format="binary", encoder=bytes, decoder=bytes)
