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
from typing import IO, Literal
from urllib.parse import parse_qs, urlsplit

import asyncpg

from bench.seed import BRAND
from gateway.database.roles import DATABASE, LOGIN, OWNER
from gateway.embedded_postgres.cluster import PrivatePostgres

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "bench" / "peers"
NODE = PEERS / ".venv" / "bin" / "node"
TOKEN = "bench-token"  # noqa: S105 - it opens a database of made-up patients
CLIENT, SECRET = "bench-gateway", "bench-secret"

Dialect = Literal["gateway", "sdl", "postgraphile", "rest", "bare"]

STARTUP_SECONDS = 60.0


@dataclass(frozen=True)
class Kind:
    """A server that can be started. One with background work continues to work on a request after its answer."""

    name: str
    command: Sequence[str | Path]
    login: str
    dialects: frozenset[Dialect]
    cold_question: str
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
    has_background_jobs=True,
)


def _node(name: str, dialect: Dialect, cold_question: str) -> Kind:
    login = f"bench_{name}"
    return Kind(name, [NODE, PEERS / f"{name}.js"], login, frozenset({dialect}), cold_question)


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
KINDS = {each.name: each for each in (GATEWAY, MERCURIUS, APOLLO, POSTGRAPHILE, FASTIFY, FASTAPI, BARE)}


@dataclass
class Server:
    """A running server."""

    kind: Kind
    process: subprocess.Popen[str]
    host: str
    port: int

    def head(self, method: str, path: str) -> str:
        """Return the request line and the header lines of a request to this server."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", "Accept: application/json"]
        if self.kind is GATEWAY:
            lines.append(f"Authorization: Bearer {TOKEN}")
        return "\r\n".join(lines) + "\r\n"


# The database


async def create_peer_logins(postgres: PrivatePostgres) -> None:
    """Create a login for each peer that reads and records encounters and bypasses row-level security."""
    connection = await asyncpg.connect(postgres.url(database=DATABASE))
    try:
        await connection.execute("CREATE ROLE bench_peer NOLOGIN BYPASSRLS")
        await connection.execute("GRANT USAGE ON SCHEMA patient_graph TO bench_peer")
        await connection.execute("GRANT SELECT ON patient_graph.patients TO bench_peer")
        await connection.execute("GRANT SELECT, INSERT ON patient_graph.encounters TO bench_peer")
        # BYPASSRLS is not inherited, so each login has the attribute itself.
        for login in [*(each.login for each in KINDS.values() if each is not GATEWAY), "bench_pgbench"]:
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


# The processes


@contextmanager
def running(kind: Kind, postgres: PrivatePostgres, introspection_url: str, logs: Path) -> Iterator[Server]:
    """Start a server, yield it once it listens, and stop it at the end. Its log goes to a file."""
    if kind is GATEWAY:
        environment = gateway_environment(postgres, introspection_url)
    else:
        environment = os.environ | {"DATABASE_URL": postgres.url(kind.login, DATABASE), "NODE_ENV": "production"}
    with (logs / f"{kind.name}.log").open("ab") as log:
        process = _launch(kind, environment, log)
        try:
            yield Server(kind, process, "127.0.0.1", _port(process, kind))
        finally:
            _stop(process)


def gateway_environment(postgres: PrivatePostgres, introspection_url: str) -> Mapping[str, str]:
    """Return the environment of an operator: every setting has its default except those named here."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return others | {
        "GATEWAY_PORT": "0",
        "GATEWAY_DATABASE_URL": postgres.url(LOGIN, DATABASE),
        "GATEWAY_DATABASE_OWNER_URL": postgres.url(OWNER, DATABASE),
        "GATEWAY_INTROSPECTION_URL": introspection_url,
        "GATEWAY_INTROSPECTION_CLIENT_ID": CLIENT,
        "GATEWAY_INTROSPECTION_CLIENT_SECRET": SECRET,
        # One client sends all requests, more often than the default limit allows.
        "GATEWAY_RATE_WRITES_PER_MINUTE": "0",
        "GATEWAY_RATE_READS_PER_MINUTE": "0",
        "GATEWAY_RATE_PARSING_MS_PER_MINUTE": "0",
        "GATEWAY_RATE_ANSWER_BYTES_PER_MINUTE": "0",
        # Allows the lists of 500.
        "GATEWAY_PAGE_SIZE_MAX": "500",
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
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return port


def _stop(process: subprocess.Popen[str]) -> None:
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


@contextmanager
def token_server() -> Iterator[str]:
    """Serve introspection (RFC 7662) on loopback, like an identity provider; yield its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Introspection)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/introspect"
    finally:
        server.shutdown()
        server.server_close()


class _Introspection(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Answer that the benchmark's token is active, and every other one is not."""
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        basic = "Basic " + base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        known = self.headers["Authorization"] == basic and form.get("token") == [TOKEN]
        body = json.dumps(_claims() if known else {"active": False}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Suppress the log, which would interrupt the printed tables."""


def _claims() -> Mapping[str, object]:
    return {
        "active": True,
        "sub": "bench",
        "client_id": "bench",
        "brand": BRAND,
        "scope": "read:patients manage:encounters write:patients",
        "token_type": "Bearer",
        "exp": int(time.time()) + 3600,
    }
