"""The measured servers: the gateway as an operator starts it, and its peers, each a process with its own login."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import IO, Literal
from urllib.parse import parse_qs, urlsplit

import asyncpg

from bench.seed import BRAND
from gateway.database.database import APP_ROLE
from gateway.database.roles import DATABASE, LOGIN, OWNER
from gateway.embedded_postgres.cluster import PrivatePostgres

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "bench" / "peers"
NODE = PEERS / ".venv" / "bin" / "node"
CLIENTS = [f"bench-{number}" for number in range(32)]
"""The clients that take turns, so that none of them exceeds a limit for one client."""
TOKENS = {f"token-of-{client}": client for client in CLIENTS}
CLIENT, SECRET = "bench-gateway", "bench-secret"

Dialect = Literal["gateway", "sdl", "postgraphile", "rest", "bare"]

STARTUP_SECONDS = 60.0

UNREACHED_PER_MINUTE = 1_000_000
"""The requests of a client are counted, and no client reaches this limit."""
LARGEST_PAGE = 500


@dataclass(frozen=True, eq=False)
class Kind:
    """A server that can be started.

    Args:
        name: Name in the tables.
        command: The command that starts it.
        login: Its login at PostgreSQL, by which its backends are found.
        dialects: The forms of requests that it answers.
        cold_question: The workload of its first request.
        database: The database that it uses.
        does_all: Whether it does the gateway's work, and not only that of the request itself.
        has_background_jobs: Whether it continues to work on a request long after its answer.
    """

    name: str
    command: Sequence[str | Path]
    login: str
    dialects: frozenset[Dialect]
    cold_question: str
    database: str = DATABASE
    does_all: bool = False
    has_background_jobs: bool = False

    @property
    def installed(self) -> bool:
        """Whether its runtime is installed."""
        return Path(self.command[0]).exists()


GATEWAY = Kind(
    "gateway",
    [Path(sys.executable).with_name("gateway"), "serve"],
    LOGIN,
    frozenset({"gateway", "rest"}),
    "W3",
    does_all=True,
    has_background_jobs=True,
)


def _node(name: str, dialect: Dialect, cold_question: str) -> Kind:
    login = f"bench_{name}"
    return Kind(name, [NODE, PEERS / f"{name}.js"], login, frozenset({dialect}), cold_question)


def _full(name: str, dialect: Dialect, cold_question: str) -> Kind:
    # A database of its own: the gateway's background jobs would otherwise process its events and audit entries.
    login = database = f"bench_full_{name}"
    command = [NODE, PEERS / "full" / f"{name}.js"]
    return Kind(f"full-{name}", command, login, frozenset({dialect}), cold_question, database, does_all=True)


FULL_MERCURIUS = _full("mercurius", "gateway", "W3")
FULL_FASTIFY = _full("fastify", "rest", "R4")

MERCURIUS = _node("mercurius", "sdl", "W3")
APOLLO = _node("apollo", "sdl", "W3")
POSTGRAPHILE = _node("postgraphile", "postgraphile", "W3")
FASTIFY = _node("fastify", "rest", "R4")
FASTAPI = Kind(
    "fastapi",
    [PEERS / ".venv" / "bin" / "python", PEERS / "fastapi_sqlmodel.py"],
    "bench_fastapi",
    frozenset({"rest"}),
    "R4",
)
BARE = Kind("bare", [Path(sys.executable), PEERS / "bare.py"], "bench_bare", frozenset({"bare"}), "W3")
KINDS = {
    each.name: each
    for each in (GATEWAY, FULL_MERCURIUS, FULL_FASTIFY, MERCURIUS, APOLLO, POSTGRAPHILE, FASTIFY, FASTAPI, BARE)
}


@dataclass
class Server:
    """A running server."""

    kind: Kind
    process: subprocess.Popen[str]
    host: str
    port: int

    def head(self, method: str, path: str, number: int) -> str:
        """Return the request line and the header lines of the nth request to this server."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", "Accept: application/json"]
        if self.kind.does_all:
            lines.append(f"Authorization: Bearer {list(TOKENS)[number % len(TOKENS)]}")
        return "\r\n".join(lines) + "\r\n"


# The database


async def create_peer_logins(postgres: PrivatePostgres, kinds: Sequence[Kind]) -> None:
    """Create a login for each peer that reads and records encounters and bypasses row-level security.

    A peer that does the gateway's work acts in the gateway's role instead, in a copy of the database.
    """
    connection = await asyncpg.connect(postgres.url(database=DATABASE))
    try:
        await connection.execute("CREATE ROLE bench_peer NOLOGIN BYPASSRLS")
        await connection.execute("GRANT USAGE ON SCHEMA patient_graph TO bench_peer")
        await connection.execute("GRANT SELECT ON patient_graph.patients TO bench_peer")
        await connection.execute("GRANT SELECT, INSERT ON patient_graph.encounters TO bench_peer")
        # BYPASSRLS is not inherited, so each login has the attribute itself.
        for login in [*(each.login for each in KINDS.values() if not each.does_all), "bench_pgbench"]:
            await connection.execute(f"CREATE ROLE {login} LOGIN BYPASSRLS IN ROLE bench_peer")
        await connection.execute("CREATE SCHEMA bench")
        await connection.execute(
            "CREATE FUNCTION bench.patients_by_ids(ids text[]) RETURNS SETOF patient_graph.patients"
            " LANGUAGE sql STABLE AS 'SELECT p.* FROM unnest(ids) WITH ORDINALITY AS wanted (id, nth)"
            " JOIN patient_graph.patients p USING (id) ORDER BY nth'"
        )
        await connection.execute("GRANT USAGE ON SCHEMA bench TO bench_peer")
    finally:
        await connection.close()
    # A database can be copied while it has no connection.
    connection = await asyncpg.connect(postgres.url())
    try:
        for kind in kinds:
            if kind.database != DATABASE:
                await connection.execute(f"CREATE ROLE {kind.login} LOGIN IN ROLE {APP_ROLE}")
                await connection.execute(f"CREATE DATABASE {kind.database} TEMPLATE {DATABASE}")
    finally:
        await connection.close()


# The processes


@contextmanager
def running(
    kind: Kind,
    postgres: PrivatePostgres,
    introspection_url: str,
    logs: Path,
    requests_per_minute: int = UNREACHED_PER_MINUTE,
    database_url: str = "",
) -> Iterator[Server]:
    """Start a server, yield it once it listens, and stop it at the end. Its log goes to a file.

    Args:
        kind: What to start.
        postgres: The private PostgreSQL.
        introspection_url: The token server.
        logs: Folder of the log.
        requests_per_minute: The reads, and the writes, that each client may send to a server that counts them.
        database_url: The URL by which the gateway reaches PostgreSQL; empty for a direct connection.
    """
    if kind is GATEWAY:
        urls = database_url or postgres.url(LOGIN, DATABASE), postgres.url(OWNER, DATABASE)
        environment = gateway_environment(*urls, introspection_url, requests_per_minute)
    else:
        environment = os.environ | {"DATABASE_URL": postgres.url(kind.login, kind.database), "NODE_ENV": "production"}
        if kind.does_all:
            environment |= _settings_of_full_peer(introspection_url, requests_per_minute)
    with started(kind, environment, logs / f"{kind.name}.log") as server:
        yield server


@contextmanager
def started(kind: Kind, environment: Mapping[str, str], log_file: Path) -> Iterator[Server]:
    """Start a server in an environment, yield it once it listens, and stop it at the end."""
    with log_file.open("ab") as log:
        process = _launch(kind, environment, log)
        try:
            yield Server(kind, process, "127.0.0.1", _port(process, kind))
        finally:
            _stop(process)


def _settings_of_full_peer(introspection_url: str, requests_per_minute: int) -> dict[str, str]:
    return {
        "INTROSPECTION_URL": introspection_url,
        "INTROSPECTION_CLIENT_ID": CLIENT,
        "INTROSPECTION_CLIENT_SECRET": SECRET,
        "READS_PER_MINUTE": str(requests_per_minute),
        "WRITES_PER_MINUTE": str(requests_per_minute),
        "PAGE_SIZE_MAX": str(LARGEST_PAGE),
    }


def gateway_environment(
    database_url: str, owner_url: str, introspection_url: str, requests_per_minute: int = UNREACHED_PER_MINUTE
) -> Mapping[str, str]:
    """Return the environment of an operator: every setting has its default except those named here."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return others | {
        "GATEWAY_PORT": "0",
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATABASE_OWNER_URL": owner_url,
        "GATEWAY_INTROSPECTION_URL": introspection_url,
        "GATEWAY_INTROSPECTION_CLIENT_ID": CLIENT,
        "GATEWAY_INTROSPECTION_CLIENT_SECRET": SECRET,
        # 32 clients send all requests, more often than the default limits allow.
        "GATEWAY_RATE_WRITES_PER_MINUTE": str(requests_per_minute),
        "GATEWAY_RATE_READS_PER_MINUTE": str(requests_per_minute),
        "GATEWAY_RATE_PARSING_MS_PER_MINUTE": "0",
        "GATEWAY_RATE_ANSWER_BYTES_PER_MINUTE": "0",
        "GATEWAY_PAGE_SIZE_MAX": str(LARGEST_PAGE),
    }


def _launch(kind: Kind, environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - every command line here is our own
        list(map(str, kind.command)), cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
    )  # fmt: skip


def _port(process: subprocess.Popen[str], kind: Kind) -> int:
    """Return the port from the first line of a server's output."""
    assert process.stdout is not None
    line = process.stdout.readline()
    words = [word for word in line.split() if word.startswith("http://")]
    if not words:
        raise RuntimeError(f"{kind.name} did not start: see its log")
    port = urlsplit(words[0]).port
    assert port is not None
    # Drain the rest of the output, so that the pipe cannot fill up.
    threading.Thread(target=_drain, args=[process.stdout], daemon=True).start()
    return port


def _drain(output: IO[str]) -> None:
    with output:
        output.read()


def _stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def seconds_to_first_answer(
    kind: Kind, postgres: PrivatePostgres, introspection_url: str, logs: Path, ask: Callable[[Server], object]
) -> float:
    """Return the seconds from a server's start to its first answer; the server is stopped afterwards."""
    started = time.perf_counter()
    with running(kind, postgres, introspection_url, logs) as server:
        while True:
            try:
                ask(server)
            except ConnectionRefusedError:
                if time.perf_counter() - started > STARTUP_SECONDS:
                    raise
                time.sleep(0.002)
            else:
                return time.perf_counter() - started


# The identity provider


class _TokenServer(ThreadingHTTPServer):
    claims: Mapping[str, Mapping[str, object]]
    """The claims of each active token."""


@contextmanager
def token_server(others: Mapping[str, Mapping[str, object]] = MappingProxyType({})) -> Iterator[str]:
    """Serve introspection (RFC 7662) on loopback, like an identity provider; yield its URL.

    The tokens of the benchmark's clients are active, and `others` with their claims.
    """
    server = _TokenServer(("127.0.0.1", 0), _Introspection)
    server.claims = {**{token: claims_of(client) for token, client in TOKENS.items()}, **others}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/introspect"
    finally:
        server.shutdown()
        server.server_close()


class _Introspection(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Answer with the claims of a token, or that it is not active."""
        assert isinstance(self.server, _TokenServer)
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        basic = "Basic " + base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        (token,) = form.get("token", [""])
        claims = self.server.claims.get(token) if self.headers["Authorization"] == basic else None
        body = json.dumps(claims or {"active": False}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Suppress the log, which would interrupt the printed tables."""


def claims_of(client: str) -> Mapping[str, object]:
    """Return the claims of a client that may do all that the workloads do."""
    return {
        "active": True,
        "sub": client,
        "client_id": client,
        "brand": BRAND,
        "scope": "read:patients manage:encounters write:patients",
        "token_type": "Bearer",
        "exp": int(time.time()) + 3600,
    }
