"""Parser of PostgreSQL connection URLs, compatible with libpq. A parameter is supported, or the error names it.

asyncpg sends unknown parameters to the server as settings, and the server then refuses the connection.
`gateway.database.connection` implements supported parameters that asyncpg does not know.
Source: https://www.postgresql.org/docs/current/libpq-connect.html
"""

import difflib
import os
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

TLS_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")

# Parameters that asyncpg implements, including the TLS files above.
HONOURED_BY_ASYNCPG = frozenset(TLS_FILES) | {
    *("dbname", "gsslib", "host", "krbsrvname", "options", "passfile", "password", "port", "service"),
    *("ssl_max_protocol_version", "ssl_min_protocol_version", "sslmode", "sslnegotiation", "sslpassword"),
    *("target_session_attrs", "user"),
}

# Not libpq's: what the gateway must know of the server and of what is between. The first value of each is the default.
POOLER: Mapping[str, tuple[str, ...]] = {
    # Whether a connection keeps its session, or only its transactions (PgBouncer's pool_mode).
    "pool_mode": ("session", "transaction"),
    # Whether a pooler in transaction mode tracks prepared statements (PgBouncer from 1.21, max_prepared_statements).
    "prepared_statements": ("untracked", "tracked"),
    # Whether the server is the coordinator of a Citus cluster. Set by `Settings.serving_url`.
    "cluster": ("false", "true"),
}

CHOICES: Mapping[str, tuple[str, ...]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    # The other values select servers that accept no writes.
    "target_session_attrs": ("any", "read-write", "primary"),
    "keepalives": ("0", "1"),
    **POOLER,
}

NUMBERS = ("connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")

NAMES = ("application_name", "fallback_application_name")

# Parameters that are not implemented, with the values that match the actual behaviour. Any other value is refused.
HARMLESS: Mapping[str, tuple[str, ...]] = {
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("auto", "utf8", "utf-8"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "hostaddr": (),
    "load_balance_hosts": ("disable",),
    "max_protocol_version": ("3.0", "latest"),
    "min_protocol_version": ("3.0",),
    "oauth_client_id": (),
    "oauth_client_secret": (),
    "oauth_issuer": (),
    "oauth_scope": (),
    "replication": ("false", "off", "no", "0"),
    "require_auth": (),
    "requirepeer": (),
    "requiressl": ("0",),
    "scram_client_key": (),
    "scram_server_key": (),
    "servicefile": (),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslcrldir": (),
    "sslkeylogfile": (),
    "sslsni": ("1",),
}

KNOWN = HONOURED_BY_ASYNCPG | CHOICES.keys() | set(NUMBERS) | set(NAMES) | HARMLESS.keys()

_NUMBER = re.compile(r"-?\d{1,9}")


class ConnectionUrl(NamedTuple):
    """A valid connection URL. `dsn` is the URL with only the parameters that asyncpg implements."""

    dsn: str
    hosts: tuple[tuple[str, int | None], ...]
    parameters: Mapping[str, str]


def parse(url: str) -> ConnectionUrl:
    """Return the parsed URL. Raises `ValueError`; its message names the parameter and quotes no value."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is not a URL: enclose an IPv6 address in brackets") from None
    if parts.netloc.count("@") > 1 or parts.fragment or "@" in parts.query or "@" in parts.path:
        raise ValueError("must have the characters @ / ? # : of a name or password percent-encoded")
    parameters = _parameters(parts.query)
    hosts = _hosts(parts, parameters)
    _refuse_unreadable_files(parameters)
    if parameters.get("sslnegotiation") == "direct" and parameters.get("sslmode") not in CHOICES["sslmode"][3:]:
        raise ValueError("sslnegotiation=direct requires sslmode=require, verify-ca or verify-full")
    left = {name: value for name, value in parameters.items() if name in HONOURED_BY_ASYNCPG}
    dsn = parts._replace(query=urlencode(left, quote_via=quote)).geturl()
    return ConnectionUrl(dsn, hosts, parameters)


def _parameters(query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, separator, value = pair.partition("=")
        name = unquote(name)
        # JDBC and asyncpg also accept `database`.
        name = {"database": "dbname"}.get(name, name)
        if name not in KNOWN:
            raise ValueError(_unknown(name))
        if not separator:
            raise ValueError(f"{name}: has no value")
        # An empty value is unset. libpq does not decode a plus as a space.
        if value:
            given[name] = unquote(value)
    for name, value in given.items():
        _refuse_value(name, value)
    return given


def _unknown(name: str) -> str:
    # The name may be part of a password with a question mark, so only a plain word is quoted.
    nearest = difflib.get_close_matches(name, sorted(KNOWN), n=1, cutoff=0)[0]
    shown = f"{name} " if re.fullmatch(r"[a-z_]{3,40}", name) else ""
    return (
        f"{shown}is not a parameter of a connection URL; the nearest is {nearest}; write a setting of the server as "
        "options=-c%20name%3Dvalue"
    )


def _refuse_value(name: str, value: str) -> None:
    if name in NUMBERS and not _NUMBER.fullmatch(value):
        raise ValueError(f"{name}: must be a whole number")
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"{name}: must be {', '.join(CHOICES[name][:-1])} or {CHOICES[name][-1]}")
    if name in HARMLESS and value.lower() not in HARMLESS[name]:
        may = f"only {' or '.join(HARMLESS[name])} is supported" if HARMLESS[name] else "leave it out"
        raise ValueError(f"{name}: this value is not supported; {may}")


def _hosts(parts: SplitResult, given: Mapping[str, str]) -> tuple[tuple[str, int | None], ...]:
    """Return the hosts in order, each with its port, or None for the default port. Empty if the URL names no host."""
    named = parts.netloc.rpartition("@")[2]
    if named:
        found = [_host(each) for each in named.split(",")]
    else:
        found = [(each, None) for each in given.get("host", "").split(",") if each]
    if any(not host for host, _ in found):
        raise ValueError("contains an empty host")
    ports = [_port(each) for each in given["port"].split(",")] if given.get("port") else []
    if not ports:
        return tuple(found)
    if len(ports) not in {1, len(found) or 1}:
        raise ValueError("port: must be one port, or one for each host")
    every = ports * len(found) if len(ports) == 1 else ports
    return tuple((host, own or port) for (host, own), port in zip(found, every, strict=True))


def _host(text: str) -> tuple[str, int | None]:
    address, bracket, rest = text.partition("]")
    host, _, port = rest.partition(":") if bracket else text.partition(":")
    return unquote(address.removeprefix("[") if bracket else host), _port(unquote(port)) if port else None


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError("the port must be a number from 1 to 65535; percent-encode a : in a password")
    return int(text)


def _refuse_unreadable_files(given: Mapping[str, str]) -> None:
    for name in (*TLS_FILES, "passfile"):
        if given.get(name) == "system" and name == "sslrootcert":
            raise ValueError("sslrootcert: system is not supported; name a file of certificate authorities")
        if name in given and not os.access(given[name], os.R_OK):
            raise ValueError(f"{name}: the file cannot be read")
