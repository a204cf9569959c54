"""Explain why a database cannot be used, in a sentence that names the remedy.

The driver's messages are never included, because they may contain the rejected password.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from socket import gaierror

import asyncpg
from asyncpg.exceptions import TargetServerAttributeNotMatched
from sqlalchemy.exc import SQLAlchemyError

from gateway.database.connection import NoUserError
from gateway.database.session import READ_ONLY, UnusableSession
from gateway.settings import SettingsError
from resolvers.errors import TemporarilyUnavailable

PROBLEMS = (
    OSError,
    ValueError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    SQLAlchemyError,
    TemporarilyUnavailable,
)
"""Errors raised while using a database that cannot be used."""

# The first match applies.
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (asyncpg.InvalidPasswordError, "the password was refused"),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "the login was refused; check that the role exists, may log in, and is allowed by pg_hba.conf",
    ),
    (asyncpg.InvalidCatalogNameError, "the server has no database of that name"),
    (
        asyncpg.InvalidParameterValueError,
        "gateway_app or gateway_relay is missing, or a setting in `options`; run `gateway migrate` as the owner",
    ),
    (
        asyncpg.InsufficientPrivilegeError,
        "rights are missing; the login must be in gateway_app and gateway_relay, and the owner must own the schemas",
    ),
    (asyncpg.UndefinedTableError, "it is not migrated; run `gateway migrate` as the owner"),
    (asyncpg.InvalidSchemaNameError, "it is not migrated; run `gateway migrate` as the owner"),
    (asyncpg.ReadOnlySQLTransactionError, READ_ONLY),
    (
        asyncpg.TooManyConnectionsError,
        "the server has no free connection; raise max_connections or close some connections",
    ),
    (asyncpg.CannotConnectNowError, "the server is starting, stopping or recovering; try again shortly"),
    (asyncpg.DiskFullError, "the server's disk is full"),
    (asyncpg.UndefinedObjectError, "a role or a setting in `options` does not exist"),
    (TargetServerAttributeNotMatched, "no host matches target_session_attrs"),
    (NoUserError, "the URL names no user, and the account of this process has no name"),
    (asyncpg.ClientConfigurationError, "the URL requires what the gateway cannot do; see sslmode and sslrootcert"),
    (gaierror, "the host name cannot be resolved"),
    (ConnectionRefusedError, "no server listens at its host and port"),
    (FileNotFoundError, "no server has a socket at that path"),
    (TimeoutError, "it did not answer in time"),
    (ssl.SSLError, "the TLS handshake failed; see sslmode and sslrootcert"),
    (OSError, "it cannot be reached"),
    (TemporarilyUnavailable, "the connection was lost, or the server does not answer"),
)


def reason_of(error: BaseException) -> str:
    """Return what is wrong, beginning with "the database cannot be used" and the type of the error."""
    cause = getattr(error, "orig", None) or error
    # SQLAlchemy's dialect wraps the driver's error once more.
    cause = cause.__cause__ if isinstance(cause.__cause__, asyncpg.PostgresError) else cause
    if isinstance(cause, TemporarilyUnavailable) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    if isinstance(cause, UnusableSession):
        return str(cause)
    summary = f"the database cannot be used ({type(cause).__name__})"
    return next((f"{summary}: {reason}" for kind, reason in _REASONS if isinstance(cause, kind)), summary)


@contextmanager
def translate_driver_errors(variable: str) -> Iterator[None]:
    """Translate the errors of an unusable database into a `SettingsError` that names the variable."""
    try:
        yield
    except PROBLEMS as error:
        raise SettingsError(f"{variable}: {reason_of(error)}. See docs/operators.md.") from error
