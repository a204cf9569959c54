"""The examples for nginx and Caddy, run by the servers of the distribution: TLS, HTTP/2, streams and WebSockets."""

import asyncio
import json
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cast import Cast
from tests.controlled_schema import TOKENS
from tests.gateways import ROOT, Gateway, free_port
from tests.graphql.test_subscriptions import BEGINNING, EVENTS, gateway_on, record
from tests.waiting import wait_until
from tests.websocket_client import TIMEOUT_SECONDS, connect_to

# Debian installs nginx outside the PATH of ordinary users.
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
CADDY = shutil.which("caddy")

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("curl", "openssl"))), reason="apt-get install curl openssl; curl speaks HTTP/2"
)

# What the configuration of Debian's package adds to a virtual host. The other settings let nginx run without root.
AROUND_NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {virtual_host}
}}
"""


def changed(text: str, changes: dict[str, str]) -> str:
    """Return a text with replacements, each of which must apply."""
    for pattern, replacement in changes.items():
        text, number = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert number, f"the example does not contain {pattern}"
    return text


# Comments of the examples: what replaces the next line, or is added, where the gateway has a path.
BELOW_A_PATH = {r"^\s*# Below a path: (.*)\n.*$": r"\1", r"# Below a path, also: ": ""}


def example(name: str, *, below_a_path: bool) -> str:
    """Return an example of `deploy/`, as it is or changed for a gateway below `/gateway/`."""
    text = (ROOT / "deploy" / name).read_text()
    for pattern, replacement in BELOW_A_PATH.items() if below_a_path else ():
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    assert ("/gateway/metrics" in re.sub(r"#.*", "", text)) == below_a_path
    return text


def nginx(folder: Path, port: int, gateway_port: int, *, below_a_path: bool = False) -> list[str | Path]:
    """Write the configuration of nginx; return the command that runs it."""
    assert NGINX is not None
    virtual_host = changed(
        example("nginx/gateway.conf", below_a_path=below_a_path),
        {
            r"^  listen \[::\]:443.*\n": "",
            r"listen 443 ": f"listen 127.0.0.1:{port} ",
            "127.0.0.1:8000": f"127.0.0.1:{gateway_port}",
            "/etc/ssl/gateway/": f"{folder}/",
            r"gateway\.example": "localhost",
        },
    )
    (folder / "nginx.conf").write_text(AROUND_NGINX.format(folder=folder, virtual_host=virtual_host))
    return [NGINX, "-c", folder / "nginx.conf", "-e", folder / "log"]


def caddy(folder: Path, port: int, gateway_port: int, *, below_a_path: bool = False) -> list[str | Path]:
    """Write the configuration of Caddy; return the command that runs it."""
    assert CADDY is not None
    site = changed(
        example("caddy/Caddyfile", below_a_path=below_a_path),
        {
            # A certificate of this test, because no authority can be asked for one.
            r"^gateway\.example \{": f"localhost:{port} {{\n\ttls {folder}/fullchain.pem {folder}/key.pem",
            "127.0.0.1:8000": f"127.0.0.1:{gateway_port}",
        },
    )
    options = f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tstorage file_system {folder}/caddy\n}}\n"
    (folder / "Caddyfile").write_text(options + site)
    return [CADDY, "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile"]


@dataclass
class Proxy:
    """A running proxy, and its certificate."""

    origin: str
    certificate: Path

    async def curl(self, path: str, *arguments: str, body: Any = None) -> tuple[int, str, bytes]:
        """Send a request over HTTP/2; return the status, the version of HTTP and the body."""
        process = await self.open(
            path,
            *(["--json", "@-"] if body is not None else []),
            "--write-out",
            "\n%{http_code} %{http_version}",
            *arguments,
        )
        sent = None if body is None else json.dumps(body).encode()
        received, _ = await asyncio.wait_for(process.communicate(sent), 2 * TIMEOUT_SECONDS)
        content, _, result = received.rpartition(b"\n")
        status, version = result.decode().split()
        return int(status), version, content

    async def open(self, path: str, *arguments: str) -> asyncio.subprocess.Process:
        """Start curl, which prints what it receives at once."""
        return await asyncio.create_subprocess_exec(
            *("curl", "--silent", "--no-buffer", "--http2", "--noproxy", "*", "--cacert", self.certificate),
            *("--header", "Authorization: Bearer dev", *arguments, self.origin + path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )


@pytest.fixture(
    params=[
        pytest.param(nginx, marks=pytest.mark.skipif(NGINX is None, reason="apt-get install nginx-light")),
        pytest.param(caddy, marks=pytest.mark.skipif(CADDY is None, reason="apt-get install caddy")),
    ]
)
def configure(request: pytest.FixtureRequest) -> Callable[..., list[str | Path]]:
    command: Callable[..., list[str | Path]] = request.param
    return command


def make_certificate(folder: Path) -> Path:
    """Make a key and a certificate for `localhost`; return the certificate."""
    certificate = folder / "fullchain.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", folder / "key.pem", "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate


@asynccontextmanager
async def running(configure, gateway_port: int, folder: Path, port: int = 0) -> AsyncIterator[Proxy]:
    """Run a proxy in front of a port of this machine; without `port`, on a free one."""
    port, certificate = port or free_port(), make_certificate(folder)
    with (folder / "output").open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *configure(folder, port, gateway_port), stdout=output, stderr=output, env=os.environ | {"HOME": str(folder)}
        )

    async def listens() -> bool:
        assert process.returncode is None, (folder / "output").read_text()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    try:
        await wait_until(listens)
        yield Proxy(f"https://localhost:{port}", certificate)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_encounters_are_recorded_over_http2(configure, database_url: str, cast: Cast, tmp_path: Path) -> None:
    TOKENS.give("dev")
    patient_id = await cast.patient()
    path = f"/v1/patients/{patient_id}/encounters"
    visit = {"brand_id": "loop", "encounter_type": "lab"}

    async with gateway_on(database_url) as gateway, running(configure, gateway.port, tmp_path) as proxy:
        status, version, body = await proxy.curl(path, body=visit)
        assert (status, version) == (201, "2")
        assert json.loads((await proxy.curl(path))[2])["encounters"][0]["id"] == json.loads(body)["id"]

        # The refusal of the gateway, not a page of the proxy.
        status, _, body = await proxy.curl(path, body=visit | {"notes": "x" * 300_000})
        assert (status, json.loads(body)["error"]) == (413, "payload_too_large")
        assert (await proxy.curl("/metrics"))[0] == 404


async def test_each_event_of_a_stream_arrives_at_once(configure, database_url: str, cast: Cast, tmp_path: Path) -> None:
    TOKENS.give("dev")
    patient_id = await cast.patient()
    asked = {"query": EVENTS, "variables": {"patientId": patient_id, "after": BEGINNING}}

    async with gateway_on(database_url) as gateway, running(configure, gateway.port, tmp_path) as proxy:
        stream = await proxy.open("/graphql", "--header", "Accept: text/event-stream", "--json", json.dumps(asked))
        assert stream.stdout is not None
        for _ in range(3):
            # The next event is recorded after this one has arrived, so it cannot flush a buffer.
            encounter_id = await record(gateway, patient_id)
            async with asyncio.timeout(2 * TIMEOUT_SECONDS):
                while not (line := await stream.stdout.readline()).startswith(b"data: {"):
                    assert line
            assert json.loads(line[6:])["data"]["encounterEvents"]["encounter"]["id"] == encounter_id
        stream.terminate()
        await stream.communicate()


async def test_a_subscription_over_websocket_passes(configure, database_url: str, cast: Cast, tmp_path: Path) -> None:
    TOKENS.give("dev")
    patient_id = await cast.patient()

    async with gateway_on(database_url) as gateway, running(configure, gateway.port, tmp_path) as proxy:
        context = ssl.create_default_context(cafile=proxy.certificate)
        async with connect_to(proxy.origin, ssl=context) as websocket:
            await websocket.authenticate()
            await websocket.start("events", EVENTS, patientId=patient_id, after=BEGINNING)
            encounter_id = await record(gateway, patient_id)
            event = (await websocket.next("events"))["data"]["encounterEvents"]
            assert event["encounter"]["id"] == encounter_id


async def test_the_gateway_is_served_below_a_path(configure, database_url: str, cast: Cast, tmp_path: Path) -> None:
    TOKENS.give("dev")
    path, port = f"/gateway/v1/patients/{await cast.patient()}/encounters", free_port()
    settings = {"GATEWAY_PUBLIC_URL": f"https://localhost:{port}/gateway/"}
    gateway = Gateway.on(database_url, **settings).started()
    try:
        gateway_port = int(gateway.origin.rpartition(":")[2])
        async with running(partial(configure, below_a_path=True), gateway_port, tmp_path, port) as proxy:
            status, _, body = await proxy.curl(path, "--include", body={"brand_id": "loop", "encounter_type": "lab"})
            assert status == 201
            location = re.findall(rb"(?im)^location: (.*?)\r$", body)[0].decode()
            assert (await proxy.curl(location))[0] == 200

            assert (await proxy.curl("/gateway", "--location", "--header", "Accept: text/html"))[0] == 200
            assert (await proxy.curl("/gateway/metrics"))[0] == 404
            assert b"encounter" not in (await proxy.curl("/healthz"))[2]
            context = ssl.create_default_context(cafile=proxy.certificate)
            async with connect_to(f"{proxy.origin}/gateway", ssl=context) as websocket:
                await websocket.authenticate()
    finally:
        gateway.end()


async def test_only_the_proxy_names_the_address_of_a_client(configure, tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(head), head))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, running(configure, server.sockets[0].getsockname()[1], tmp_path) as proxy:
        forged = ("--header", "X-Forwarded-For: 203.0.113.7", "--header", "X-Request-Id: visit-1")
        _, _, head = await proxy.curl("/", *forged)

    fields = [line.lower().partition(": ") for line in head.decode().splitlines()]
    received = {name: value for name, _, value in fields}
    assert [value for name, _, value in fields if name == "x-forwarded-for"] == ["127.0.0.1"]
    assert received["x-forwarded-proto"] == "https"
    assert received["host"].startswith("localhost")
    assert received["x-request-id"] == "visit-1"
