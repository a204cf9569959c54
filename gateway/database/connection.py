"""Open connections to PostgreSQL from URLs, with the libpq parameters that asyncpg does not support."""

import getpass
import os
import socket
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from asyncpg.exceptions import TargetServerAttributeNotMatched

from gateway.connection_url import ConnectionUrl, parse

# libpq's keep-alive parameters and the kernel's names of the socket options, which asyncpg does not set.
_SOCKET_OPTIONS = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}

# Errors of one host, after which the next host of the URL is tried.
_OF_THIS_HOST = (OSError, asyncpg.CannotConnectNowError, TargetServerAttributeNotMatched)


class NoUserError(ValueError):
    """The URL names no user, and the account of this process has no name to log in with."""


Host = tuple[str | None, int | None]
"""Name and port; None for libpq's default."""

_parse_once = lru_cache(8)(parse)


def hosts_of(url: str) -> Sequence[Host]:
    """Return the hosts of a URL, in order: at least one. Raises `ValueError` for an invalid URL."""
    return _parse_once(url).hosts or ((None, None),)


def named_by(url: str) -> dict[str, str]:
    """Return the server setting `application_name` if the URL gives it, also as `fallback_application_name`."""
    given = _parse_once(url).parameters
    name = given.get("application_name") or given.get("fallback_application_name")
    return {"application_name": name} if name else {}


def keeps_session(url: str) -> bool:
    """Whether a connection keeps its session between transactions: not behind a pooler in transaction mode."""
    return _parse_once(url).parameters.get("pool_mode") != "transaction"


def is_cluster(url: str) -> bool:
    """Whether the server is the coordinator of a Citus cluster."""
    return _parse_once(url).parameters.get("cluster") == "true"


async def connect(
    url: str,
    *,
    hosts: Sequence[Host] = (),
    timeout: float | None = None,  # noqa: ASYNC109 - asyncpg's name
    **options: Any,
) -> Any:
    """Open a connection as the URL specifies. Several hosts are tried in order, each for `connect_timeout`.

    Args:
        url: One host or several.
        hosts: Those to try. Empty: those of the URL.
        timeout: Seconds for each host where the URL gives none. None: 60.
        options: Further arguments of `asyncpg.connect`.

    Raises:
        OSError: No host can be reached.
        ValueError: The URL is invalid or names no user.
        asyncpg.PostgresError: The server refuses the connection.
        asyncpg.InterfaceError: asyncpg cannot connect with these parameters.
    """
    parsed = _parse_once(url)
    given = parsed.parameters
    seconds: float = int(given["connect_timeout"]) if "connect_timeout" in given else timeout or 60
    _refuse_without_a_user(parsed)
    if not keeps_session(url) and given.get("prepared_statements") != "tracked":
        options["statement_cache_size"] = 0
    problem: BaseException | None = None
    for host, port in hosts or hosts_of(url):
        try:
            connection = await asyncpg.connect(
                parsed.dsn,
                host=host,
                port=port,
                timeout=seconds if seconds > 0 else None,  # type: ignore[arg-type] # None: no limit
                server_settings=named_by(url),
                **options,
            )
        except _OF_THIS_HOST as error:
            problem = error
        else:
            _keep_alive(connection, given)
            return connection
    assert problem is not None
    raise problem


def _refuse_without_a_user(parsed: ConnectionUrl) -> None:
    named = urlsplit(parsed.dsn).username or parsed.parameters.keys() & {"user", "service"} or os.environ.get("PGUSER")
    if not named:
        try:
            getpass.getuser()
        except (KeyError, OSError, ImportError) as error:
            raise NoUserError from error


def _keep_alive(connection: Any, given: Mapping[str, str]) -> None:
    link = connection._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no public attribute for it
    if link is None or link.family == socket.AF_UNIX:
        return
    # On by default, as in libpq.
    kept_alive = given.get("keepalives") != "0"
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(kept_alive))
    for parameter, option in _SOCKET_OPTIONS.items():
        value = int(given.get(parameter, "0"))
        # 0 or less means the system's default. An option that the system lacks is ignored, as in libpq.
        if value > 0 and hasattr(socket, option) and (kept_alive or parameter == "tcp_user_timeout"):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
