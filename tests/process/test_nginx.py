"""A stream arrives event by event through nginx with default settings, on the nginx of the distribution."""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.protocols.http import LimitedHttpProtocol
from tests.cast import Cast
from tests.controlled_schema import CONTROL, TOKENS, controlled_gateway
from tests.graphql.test_subscriptions import BEGINNING, EVENTS, gateway_on, record
from tests.sse_client import open_stream, open_unread_stream
from tests.waiting import wait_until

# Debian installs it outside the PATH of ordinary users.
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")

# A minimal proxy: the port and the upstream. The other settings let it run without root.
CONFIGURATION = """
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
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{gateway_port}; }}
  }}
}}
"""


@asynccontextmanager
async def nginx_for(gateway_port: int, folder: Path) -> AsyncIterator[str]:
    """Start nginx in front of a gateway; return its origin."""
    assert NGINX is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration, log = folder / "nginx.conf", folder / "log"
    configuration.write_text(CONFIGURATION.format(folder=folder, port=port, gateway_port=gateway_port))
    process = await asyncio.create_subprocess_exec(NGINX, "-c", str(configuration), "-e", str(log))

    async def listens() -> bool:
        assert process.returncode is None, log.read_text()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    try:
        await wait_until(listens)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_nginx_forwards_each_event_at_once(database_url: str, cast: Cast, tmp_path: Path) -> None:
    TOKENS.give("dev")
    patient_id = await cast.patient()

    async with (
        gateway_on(database_url) as gateway,
        nginx_for(gateway.port, tmp_path) as origin,
        open_stream(origin, EVENTS, patientId=patient_id, after=BEGINNING) as stream,
    ):
        for _ in range(3):
            # The next event is recorded after this one has arrived, so it cannot flush a buffer.
            encounter_id = await record(gateway, patient_id)
            event = (await stream.receive()).body["data"]["encounterEvents"]
            assert event["encounter"]["id"] == encounter_id


async def test_nginx_does_not_buffer_an_unread_stream_on_disk(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedHttpProtocol, "send_seconds", 0.3)
    TOKENS.give("dev")
    CONTROL.__init__()  # type: ignore[misc]
    size = 50_000_000

    async with (
        controlled_gateway(database_url) as gateway,
        nginx_for(gateway.port, tmp_path) as origin,
        open_unread_stream(
            int(origin.rpartition(":")[2]), f"subscription {{ count(to: {size // 50_000}, characters: 50000) }}"
        ) as reader,
    ):
        await wait_until(lambda: "count" in CONTROL.done)

        # Otherwise nginx would buffer the whole stream in a file and hide the slow client.
        assert len(await reader.read()) < size
