"""A PostgreSQL session with the properties that the gateway relies on.

Settings are set after connecting and read back. The session is refused if they do not hold. No setting is a start-up
parameter: a pooler refuses unknown ones or drops them silently. Behind a pooler in transaction mode a connection has no
session of its own, so each transaction sets them again (`Session.begin`). Citus passes only commands (`SET LOCAL`) on
to its nodes, so on a cluster each transaction sets the brand and the timeout by commands.
"""

import asyncio
import logging
import math
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

import asyncpg

from gateway.database.connection import Host, connect, hosts_of, is_cluster, keeps_session, named_by

logger = logging.getLogger(__name__)

RELIED_ON = {
    "application_name": "encounter-gateway",
    "TimeZone": "UTC",
    # Timestamps arrive as text (`gateway.database.database._set_codecs`).
    "DateStyle": "ISO, MDY",
    # A statement that waited for a key or a lease must see the effects of the transaction before it.
    "default_transaction_isolation": "read committed",
    # If off, a statement to which a policy applies is an error.
    "row_security": "on",
    "lock_timeout": "0",
}
"""Settings of every session, by name, in the units of `pg_settings`."""

READ_ONLY_SECONDS = 5.0
"""Seconds; how long a read-only session serves reads before it is replaced by one that may be writable."""

REFUSED_SECONDS = 1.0
"""Seconds without opening a session after one was refused; avoids a storm of connections to a recovering server."""

SHARED = (
    "several connections share one session: a pooler in transaction mode. Add pool_mode=transaction to the URL, or "
    "give each connection a session of its own (PgBouncer: pool_mode = session)"
)
STANDBY = "the server is a hot standby, which accepts no writes: name the primary, or all servers in one URL"
NO_PRIMARY = "none of the servers in the URL accepts writes"
READ_ONLY = (
    "the database accepts no writes: check default_transaction_read_only of the server, the database and the login"
)

HOST_SECONDS = 5.0
"""Seconds; the connect timeout of one of several hosts before the next is tried."""

# Errors after which the next host is tried.
UNREACHABLE = (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InterfaceError)

BRAND = "app.brand_id"

CLUSTER_SETTINGS = {
    # Passes `SET LOCAL` on to the nodes.
    "citus.propagate_set_commands": "local",
    # Otherwise Citus looks up each row of pg_class, and reading the types of the columns takes seconds a connection.
    "citus.override_table_visibility": "off",
}
"""Settings of every session on a cluster, by name."""

PROPAGATED = ("TimeZone", "DateStyle", "row_security", "statement_timeout", "lock_timeout")
"""Settings that each transaction on a cluster sets on the nodes too, beside the brand.

Nodes write instants as JSON, and with `row_security = off` as a default they would refuse each statement.
"""

READ_BACK = """
SELECT
    current_user::text AS role, pg_is_in_recovery() AS is_standby,
    current_setting('transaction_read_only') = 'on' AS is_read_only,
    pg_postmaster_start_time() AS server_started, pg_backend_pid() AS pid,
    ARRAY(SELECT name || '=' || setting FROM pg_settings WHERE name = ANY($1))
        || ARRAY(
            SELECT name || '=' || current_setting(name, true)
            FROM unnest($2::text[]) AS name
        ) AS settings
"""


class UnusableSession(ConnectionError):
    """The session does not have the required properties; the message says why. It contains no secret."""


class Session(asyncpg.Connection):
    """A connection that sees the rows of one brand at a time: row-level security compares with `app.brand_id`."""

    expires_at: float = math.inf
    """Time of the event loop's clock after which the connection is closed instead of reused."""

    may_be_standby: bool = False
    """Whether a hot standby is accepted: for reads only."""

    keeps_session: bool = True
    """Whether settings outlive a transaction. Otherwise each transaction sets them: `begin`."""

    cluster: bool = False
    """Whether the server is the coordinator of a Citus cluster. Each use is then a transaction: `begin`."""

    _brand_id: str | None = None
    _established_by: str = ""
    """The statement that sets the settings that the gateway relies on."""
    _propagated: str = ""
    """The commands that set the settings of the nodes for a transaction, without the brand."""

    _json_bytes_left: int = sys.maxsize
    _reading: asyncio.Timeout | None = None

    @property
    def passed_limit(self) -> bool:
        """Whether the JSON columns received since `bound_json` have more bytes than it allowed."""
        return self._json_bytes_left < 0

    def bound_json(self, most_bytes: int, reading: asyncio.Timeout | None) -> None:
        """Limit the JSON columns received from now on to `most_bytes`. Once they have more, `reading` expires."""
        self._json_bytes_left = most_bytes
        self._reading = reading

    def decode_json(self, data: bytes) -> bytes:
        """Return a JSON column unchanged, or empty bytes once the limit is exceeded."""
        self._json_bytes_left -= len(data)
        if self._json_bytes_left >= 0:
            return data
        if self._reading is not None:
            self._reading.reschedule(0)
            self._reading = None
        return b""

    @property
    def needs_transaction(self) -> bool:
        """Whether the brand holds for a transaction only, so that even a single statement needs one."""
        return self.cluster or not self.keeps_session

    async def act_for(self, brand_id: str) -> None:
        """Make the rows of this brand visible. Costs a round trip only if the brand changes."""
        if brand_id != self._brand_id:
            # Unset first: if this is cancelled, the connection must not count as one of the old brand.
            self._brand_id = None
            await self.execute(f"SELECT set_config('{BRAND}', $1, false)", brand_id)
            self._brand_id = brand_id

    async def begin(self, brand_id: str | None, mode: str = "") -> None:
        """Begin a transaction for a brand, or for none; `mode` is its mode in SQL, such as `READ ONLY`.

        Without a session of its own, the connection gets the settings, the role and the brand with each transaction, in
        the same round trip. On a cluster, a second round trip sets the brand and the timeout on every node.
        """
        if self.keeps_session:
            if brand_id is not None and not self.cluster:
                await self.act_for(brand_id)
            await self.execute(f"BEGIN {mode}")
        else:
            # As hexadecimal digits, because a literal depends on `standard_conforming_strings`.
            brand = f"convert_from(decode('{(brand_id or '').encode().hex()}', 'hex'), 'UTF8')"
            await self.execute(f"BEGIN {mode}; {self._established_by}, set_config('{BRAND}', {brand}, true)")
        if self.cluster:
            # Citus sends the whole text to the nodes, so it contains nothing else. `SET` takes no parameters. The brand
            # of a token is any text: one with control characters becomes the empty brand, which has no rows.
            visible = brand_id if brand_id and brand_id.isprintable() else ""
            await self.execute(f"{self._propagated}SET LOCAL {BRAND} = {_literal(visible)}")

    async def establish(self, settings: Mapping[str, str], role: str | None) -> None:
        """Set the role and the settings, and verify in a second transaction that they hold.

        Without a session of its own, the connection verifies them in the transaction that sets them.

        Raises `UnusableSession`.
        """
        wanted = {**settings, BRAND: "", **({} if role is None else {"role": role})}
        if self.cluster:
            wanted |= CLUSTER_SETTINGS
            self._propagated = "".join(
                f"SET LOCAL {name} = {_literal(settings[name])}; " for name in PROPAGATED if name in settings
            )
        local = str(not self.keeps_session).lower()
        calls = [f"set_config({_literal(name)}, {_literal(value)}, {local})" for name, value in wanted.items()]
        self._established_by = f"SELECT {', '.join(calls)}"
        if self.keeps_session:
            await self.execute(self._established_by)
            found = await self.fetchrow(READ_BACK, list(settings), [BRAND, *CLUSTER_SETTINGS])
            assert found is not None
            self._refuse_shared((found["server_started"], found["pid"]))
        else:
            await self.begin(None)
            found = await self.fetchrow(READ_BACK, list(settings), [BRAND, *CLUSTER_SETTINGS])
            assert found is not None
            await self.execute("ROLLBACK")
        if found["is_standby"] and not self.may_be_standby:
            raise UnusableSession(STANDBY)
        held = {*found["settings"], f"role={found['role']}"}
        if lost := [name for name, value in wanted.items() if f"{name}={value}" not in held]:
            raise UnusableSession(
                f"the session lost settings ({', '.join(lost)}): a pooler must pass them on and give each connection a "
                "session of its own (PgBouncer: pool_mode = session)"
            )
        if found["is_read_only"] and not self.may_be_standby:
            self.expires_at = asyncio.get_running_loop().time() + READ_ONLY_SECONDS

    def _refuse_shared(self, identity: tuple[object, int]) -> None:
        """Return if no other open connection of this process is in the same session. Raises `UnusableSession`."""
        other = _open.get(identity)
        if other is not None and other is not self and not other.is_closed():
            # The other connection now has the role and the brand of this one.
            other.terminate()
            raise UnusableSession(SHARED)
        _open[identity] = self

    def get_reset_query(self) -> str:
        """Return the statements of `reset`: asyncpg's own, which reset every setting, then the gateway's settings.

        Without a session of its own, the connection has nothing to reset.
        """
        if not self.keeps_session:
            return ""
        return f"{super().get_reset_query()}\n{self._established_by}"

    async def reset(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's own name
        """End the transaction and clear the brand after a statement was cancelled."""
        self._brand_id = None
        await super().reset(timeout=timeout)


_open: WeakValueDictionary[tuple[object, int], Session] = WeakValueDictionary()
"""The connections of this process by session. The key is the server's start time and the backend's pid."""


class SessionFactory:
    """Open sessions with the same settings, each on the first host of the URL that accepts writes.

    The host that was used last is tried first. After a refused session no other is opened for `REFUSED_SECONDS` (a
    circuit breaker).
    """

    def __init__(
        self,
        url: str,
        settings: Mapping[str, str],
        role: str | None = None,
        *,
        may_be_standby: bool = False,
        **options: Any,
    ) -> None:
        """Store the parameters of every session.

        Args:
            url: One host or several.
            settings: By name, in the units of `pg_settings`.
            role: Role to act as. None: the login of the URL.
            may_be_standby: Whether a hot standby is accepted; the URL then names one host.
            options: Further arguments of `asyncpg.connect`.
        """
        self._url = url
        self._hosts = hosts_of(url)
        self._settings = {**settings, **(named_by(url) if "application_name" in settings else {})}
        self._role = role
        self._may_be_standby = may_be_standby
        self._options = {"timeout": HOST_SECONDS, **options} if len(self._hosts) > 1 else options
        self._first = 0
        self._refusal = ""
        self._retry_at = -math.inf

    async def open(self) -> Session:
        """Open a session, unless one was refused in the last `REFUSED_SECONDS`.

        Raises:
            UnusableSession: The session lacks a required property; of several hosts, none accepts writes.
            OSError, asyncpg.PostgresError: The server refuses the connection.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._retry_at:
            raise UnusableSession(self._refusal)
        try:
            return await self.open_anyway()
        except UnusableSession as error:
            self._refusal, self._retry_at = str(error), loop.time() + REFUSED_SECONDS
            logger.error("database", extra={"refused": self._refusal})
            raise

    async def open_anyway(self) -> Session:
        """Open a session, whether or not one was refused before. Raises the errors of `open`."""
        number_of_hosts = len(self._hosts)
        errors: list[Exception] = []
        for _ in self._hosts:
            host = self._first
            try:
                session = await self._open_on(self._hosts[host])
            except UNREACHABLE as error:
                errors.append(error)
            except asyncio.CancelledError:
                # The next attempt must not begin with a host that does not respond.
                self._first = (host + 1) % number_of_hosts
                raise
            else:
                if number_of_hosts == 1 or session.expires_at == math.inf:
                    return session
                session.terminate()
                errors.append(UnusableSession(NO_PRIMARY))
            self._first = (host + 1) % number_of_hosts
        if number_of_hosts > 1 and all(isinstance(error, UnusableSession) for error in errors):
            raise UnusableSession(NO_PRIMARY) from errors[-1]
        raise errors[-1]

    async def _open_on(self, host: Host) -> Session:
        try:
            connection: Session = await connect(self._url, hosts=[host], connection_class=Session, **self._options)
        except asyncpg.TargetServerAttributeNotMatched:
            raise UnusableSession(NO_PRIMARY) from None
        connection.keeps_session = keeps_session(self._url)
        connection.may_be_standby = self._may_be_standby
        connection.cluster = is_cluster(self._url)
        try:
            await connection.establish(self._settings, self._role)
        except (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError):
            # Another client of the pooler prepared a statement of this name, or ours was prepared in another session.
            connection.terminate()
            raise UnusableSession(SHARED) from None
        except BaseException:
            connection.terminate()
            raise
        return connection


async def open_session(
    url: str, settings: Mapping[str, str] = MappingProxyType({}), role: str | None = None, **options: Any
) -> Session:
    """Open one session as `SessionFactory` does. Raises the errors of `SessionFactory.open`."""
    return await SessionFactory(url, settings, role, **options).open_anyway()


def _literal(text: str) -> str:
    # The form with an E means the same with either value of `standard_conforming_strings`.
    return "E'" + text.replace("\\", r"\\").replace("'", "''") + "'"
