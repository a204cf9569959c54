"""Connection URLs of PostgreSQL: each parameter of libpq is supported or refused by name."""

import re
from pathlib import Path

import pytest

from gateway.connection_url import HARMLESS, KNOWN, parse

# Source: https://www.postgresql.org/docs/18/libpq-connect.html#LIBPQ-PARAMKEYWORDS
LIBPQ_PARAMETERS = """
    host hostaddr port dbname user password passfile require_auth channel_binding connect_timeout
    client_encoding options application_name fallback_application_name keepalives keepalives_idle
    keepalives_interval keepalives_count tcp_user_timeout replication gssencmode sslmode requiressl
    sslnegotiation sslcompression sslcert sslkey sslkeylogfile sslpassword sslcertmode sslrootcert sslcrl
    sslcrldir sslsni requirepeer ssl_min_protocol_version ssl_max_protocol_version min_protocol_version
    max_protocol_version krbsrvname gsslib gssdelegation scram_client_key scram_server_key service
    servicefile target_session_attrs load_balance_hosts oauth_issuer oauth_client_id oauth_client_secret
    oauth_scope
"""


def test_every_parameter_of_libpq_is_known() -> None:
    assert set(LIBPQ_PARAMETERS.split()) <= KNOWN


@pytest.mark.parametrize("name", HARMLESS)
def test_an_unsupported_parameter_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        parse(f"postgresql://host/db?{name}=anything-else")

    for value in HARMLESS[name]:
        assert name not in parse(f"postgresql://host/db?{name}={value}").dsn


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("sslmode=maybe", "sslmode: must be disable, allow"),
        ("sslnegotiation=direct", "sslnegotiation=direct requires sslmode"),
        ("sslrootcert=/nowhere", "sslrootcert: the file cannot be read"),
        ("sslrootcert=system", "sslrootcert: system is not supported"),
        ("target_session_attrs=writable", "target_session_attrs: must be any"),
        ("target_session_attrs=standby", "target_session_attrs: must be any, read-write or primary"),
        ("connect_timeout=soon", "connect_timeout: must be a whole number"),
        ("keepalives=yes", "keepalives: must be 0 or 1"),
        ("keepalives_idle=1.5", "keepalives_idle: must be a whole number"),
        ("port=x", "the port must be a number"),
        ("port=1,2,3", "port: must be one port, or one for each host"),
        ("sslmode", "sslmode: has no value"),
        ("ssl=true", "ssl is not a parameter of a connection URL; the nearest is"),
        ("statement_timeout=5", "options=-c%20name%3Dvalue"),
        ("ss%20word%21=1", "^is not a parameter"),
    ],
)
def test_an_invalid_value_is_refused_with_the_name_of_its_parameter(parameter: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(f"postgresql://host/db?{parameter}")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@x@host/db",
        "postgresql://me:hunter2/x@host/db",
        "postgresql://me:hunter2?x@host/db",
        "postgresql://me:hunter2#x@host/db",
        "postgresql://me:x:hunter2@host:port/db",
        "postgresql://[::1/hunter2",
        "mysql://hunter2@host/db",
    ],
)
def test_an_unencoded_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refusal:
        parse(url)

    assert not re.search("hunter2|x@", str(refusal.value))


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql:///db", ()),
        ("postgresql://host/db", (("host", None),)),
        ("postgresql://me:p%40ss@host:1/db", (("host", 1),)),
        ("postgresql://one:1,two/db?port=2", (("one", 1), ("two", 2))),
        ("postgresql://[::1]:5,[::2]/db", (("::1", 5), ("::2", None))),
        ("postgresql:///db?host=one,two&port=1,2", (("one", 1), ("two", 2))),
        ("postgresql:///db?host=/run/a%20b&port=5432", (("/run/a b", 5432),)),
    ],
)
def test_hosts_are_parsed_in_order_with_their_ports(url: str, hosts: object) -> None:
    assert parse(url).hosts == hosts


def test_asyncpg_gets_only_the_parameters_that_it_supports(tmp_path: Path) -> None:
    (tmp_path / "ca").touch()

    dsn = parse(
        f"postgresql://h/db?sslmode=verify-ca&sslrootcert={tmp_path}/ca&connect_timeout=3&options=-c%20a%3Db"
    ).dsn

    assert "sslmode=verify-ca" in dsn
    assert "connect_timeout" not in dsn
    assert "options=-c%20a%3Db" in dsn
