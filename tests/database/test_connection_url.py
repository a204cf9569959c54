"""The parameters of a connection URL take effect on a connection to a real server."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

import asyncpg
import pytest

from gateway.database.connection import connect
from gateway.database.session import RELIED_ON, open_session
from tests.tcp_proxy import TcpProxy

pytestmark = pytest.mark.one_server


@contextmanager
def silent_server() -> Iterator[str]:
    """A host that accepts connections and never answers: the kernel accepts them, no program reads."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses connections: bound, so that no other process takes it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def with_hosts(url: str, *before: str, **parameters: str) -> str:
    """Return the URL with other hosts before its own, and more parameters after its own."""
    login, _, rest = url.partition("@")
    return f"{login}@{','.join([*before, rest])}" + "".join(f"&{name}={value}" for name, value in parameters.items())


async def setting_of(connection, setting: str) -> str:
    return await connection.fetchval("SELECT current_setting($1)", setting)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [("", "encounter-gateway"), ("application_name=clinic", "clinic"), ("fallback_application_name=other", "other")],
)
async def test_the_application_name_is_that_of_the_url(database_url: str, parameters: str, name: str) -> None:
    connection = await open_session(f"{database_url}&{parameters}", RELIED_ON)

    assert await setting_of(connection, "application_name") == name
    await connection.close()


async def test_options_apply_except_where_the_gateway_sets_a_value(database_url: str) -> None:
    options = "-c%20work_mem%3D5MB%20-c%20statement_timeout%3D77"

    connection = await open_session(f"{database_url}&options={options}", {**RELIED_ON, "statement_timeout": "88"})

    assert await setting_of(connection, "work_mem") == "5MB"
    assert await setting_of(connection, "statement_timeout") == "88ms"
    await connection.close()


async def test_the_keepalive_parameters_apply(database_url: str) -> None:
    async with TcpProxy.to(database_url) as (_, url):
        asked = "keepalives_idle=33&keepalives_interval=7&keepalives_count=4&tcp_user_timeout=9000"
        connection = await connect(f"{url}&{asked}")
        without = await connect(f"{url}&keepalives=0")
        by_default = await connect(url)

        link = connection._transport.get_extra_info("socket")
        options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
        assert [link.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [33, 7, 4, 9000]
        on = [
            each._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            for each in (connection, without, by_default)
        ]
        assert on == [1, 0, 1]
        for each in (connection, without, by_default):
            await each.close()


async def test_a_silent_server_times_out_after_connect_timeout() -> None:
    with silent_server() as host:
        started = time.monotonic()

        with pytest.raises(TimeoutError):
            await connect(f"postgresql://me@{host}/db?connect_timeout=1")

    assert 0.9 < time.monotonic() - started < 10


async def test_each_host_has_its_own_timeout_and_the_next_is_tried(database_url: str) -> None:
    with silent_server() as host, closed_port() as port:
        async with TcpProxy.to(database_url) as (_, url):
            connection = await connect(with_hosts(url, f"127.0.0.1:{port}", host, connect_timeout="1"))

            assert await connection.fetchval("SELECT 1") == 1
            await connection.close()


@pytest.mark.parametrize("wanted", ["any", "read-write", "primary"])
async def test_target_session_attrs_accepts_a_writable_server(database_url: str, wanted: str) -> None:
    connection = await connect(f"{database_url}&target_session_attrs={wanted}")

    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_a_refused_login_is_not_tried_at_the_next_host(database_url: str) -> None:
    base, _, parameters = database_url.replace("//postgres@", "//no-such-role@").partition("?")
    host = parse_qs(parameters)["host"][0]

    with closed_port() as port, pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await connect(f"{base}?host={host},127.0.0.1&port=5432,{port}")
