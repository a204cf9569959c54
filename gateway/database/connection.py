"""Opening connections to PostgreSQL as their URLs say, with what asyncpg does not know of libpq's parameters."""

import getpass
import os
import socket
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from asyncpg.exceptions import TargetServerAttributeNotMatched

from gateway.connection_url import ConnectionUrl, parse

# asyncpg's names of them differ from libpq's in nothing but the option that the kernel knows.
_SOCKET_OPTIONS = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}

# What another host may not share.
_OF_THIS_HOST = (OSError, asyncpg.CannotConnectNowError, TargetServerAttributeNotMatched)


class NoUserError(ValueError):
    """The URL names no user, and the account of this process has no name to log in with."""


_parse_once = lru_cache(8)(parse)


def named_by(url: str) -> dict[str, str]:
    """Return the setting `application_name` where the URL gives it, as `fallback_application_name` too."""
    given = _parse_once(url).parameters
    name = given.get("application_name") or given.get("fallback_application_name")
    return {"application_name": name} if name else {}


async def connect(url: str, *, timeout: float | None = None, **options: Any) -> Any:  # noqa: ASYNC109 - asyncpg's name
    """Open a connection as the URL says. Several hosts are tried in order, each for `connect_timeout`.

    Raises `OSError`, `ValueError`, `asyncpg.PostgresError` or `asyncpg.InterfaceError`.

    Args:
        url: Where to connect.
        timeout: Seconds for each host where the URL gives none. None: 60.
        options: What else `asyncpg.connect` takes.
    """
    parsed = _parse_once(url)
    given = parsed.parameters
    seconds: float = int(given["connect_timeout"]) if "connect_timeout" in given else timeout or 60
    _refuse_without_a_user(parsed)
    hosts: list[tuple[str | None, int | None]] = [*parsed.hosts] or [(None, None)]
    problem: BaseException | None = None
    for host, port in hosts:
        try:
            connection = await asyncpg.connect(
                parsed.dsn,
                host=host,
                port=port,
                timeout=seconds if seconds > 0 else None,  # type: ignore[arg-type] # None is for ever
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
    link = connection._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no way to it
    if link is None or link.family == socket.AF_UNIX:
        return
    # On unless switched off, as libpq has it.
    kept_alive = given.get("keepalives") != "0"
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(kept_alive))
    for parameter, option in _SOCKET_OPTIONS.items():
        value = int(given.get(parameter, "0"))
        # 0 and less stand for the system's own value. A system may lack an option, and libpq then ignores it too.
        if value > 0 and hasattr(socket, option) and (kept_alive or parameter == "tcp_user_timeout"):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
