"""Events are stored once in a stream of NATS JetStream, on a server of the distribution."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from gateway.events import delivery as sinks
from gateway.events import pipeline
from gateway.events.replay import replay
from gateway.events.status import event_numbers
from tests.conftest import fresh_database
from tests.event_helpers import Gateway, rows
from tests.waiting import wait_until

# Debian installs it outside the PATH of ordinary users.
SERVER = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
SUBJECT = "clinic.events"

pytestmark = pytest.mark.skipif(SERVER is None, reason="nats-server is not installed: apt-get install nats-server")


@dataclass
class Nats:
    """A server with JetStream, on an ephemeral port that it keeps across restarts."""

    folder: Path
    port: int = -1
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        assert SERVER is not None
        options = {
            "--addr": "127.0.0.1",
            "--port": self.port,
            "--store_dir": self.folder / "store",
            "--ports_file_dir": self.folder,
            "--log": self.folder / "log",
        }
        arguments = [str(word) for option in options.items() for word in option]
        self.process = await asyncio.create_subprocess_exec(SERVER, "--jetstream", *arguments)
        ports = self.folder / f"{Path(SERVER).name}_{self.process.pid}.ports"
        await wait_until(lambda: ports.exists() and ports.read_text())
        self.port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[JetStreamContext]:
        """Connect to JetStream as the owner of the stream."""
        client = await nats.connect(self.url)
        try:
            yield client.jetstream()
        finally:
            await client.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Nats]:
    server = Nats(tmp_path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def url(server_url: str) -> str:
    return await fresh_database(server_url)


@pytest.fixture
async def gateway(url: str, server: Nats, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    monkeypatch.setattr(sinks, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sinks, "LONGEST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(pipeline, "LOOK_AGAIN_SECONDS", 0.02)
    async with Gateway.running(url, nats_url=server.url, nats_subject=SUBJECT, webhook_seconds=2) as running:
        await wait_until(lambda: rows(url, "SELECT FROM gateway.sinks"))
        yield running


async def wait_until_delivered(gateway: Gateway, position: int) -> None:
    """Return once the sink has delivered up to this position."""

    async def is_delivered() -> bool:
        return (await event_numbers(gateway.relay)).sinks[0].position >= position

    await wait_until(is_delivered)


async def wait_for_failures(gateway: Gateway) -> str | None:
    """Wait until delivery has failed three times; return the last error."""

    async def has_failed() -> bool:
        return (await event_numbers(gateway.relay)).sinks[0].failures >= 3

    await wait_until(has_failed)
    return (await event_numbers(gateway.relay)).sinks[0].last_error


async def stored_messages(stream: JetStreamContext, count: int) -> list[Any]:
    """Assert the number of messages in the stream; return them."""
    assert (await stream.stream_info("EVENTS")).state.messages == count
    return [await stream.get_msg("EVENTS", number) for number in range(1, count + 1)]


async def test_an_event_is_stored_once_however_often_it_is_published(gateway: Gateway, server: Nats) -> None:
    async with server.stream() as stream:
        await stream.add_stream(name="EVENTS", subjects=[SUBJECT])
        recorded = [str(await gateway.record(f"patient-{number % 2}")) for number in range(5)]
        await wait_until_delivered(gateway, 5)
        await replay(gateway.relay, "nats", 1)
        await wait_until_delivered(gateway, 5)

        messages = await stored_messages(stream, 5)

    envelopes = [json.loads(message.data) for message in messages]
    assert [envelope["data"]["encounter_id"] for envelope in envelopes] == recorded
    assert [message.headers["Nats-Msg-Id"] for message in messages] == [envelope["id"] for envelope in envelopes]
    assert set(envelopes[0]["data"]) == {"encounter_id", "patient_id", "brand_id", "encounter_type", "recorded_at"}
    assert envelopes[0]["specversion"] == "1.0"


async def test_events_wait_while_the_stream_is_missing(gateway: Gateway, server: Nats) -> None:
    recorded = [str(await gateway.record("patient")) for _ in range(2)]
    assert await wait_for_failures(gateway) == "NoStreamResponseError"
    async with server.stream() as stream:
        with pytest.raises(NotFoundError):
            await stream.stream_info("EVENTS")
        await stream.add_stream(name="EVENTS", subjects=[SUBJECT])
        await wait_until_delivered(gateway, 2)

        messages = await stored_messages(stream, 2)

    assert [json.loads(message.data)["data"]["encounter_id"] for message in messages] == recorded


async def test_events_wait_while_the_server_is_unavailable(gateway: Gateway, server: Nats) -> None:
    async with server.stream() as stream:
        await stream.add_stream(name="EVENTS", subjects=[SUBJECT])
    recorded = [str(await gateway.record("patient"))]
    await wait_until_delivered(gateway, 1)
    await server.stop()
    recorded += [str(await gateway.record("patient")) for _ in range(2)]
    await wait_for_failures(gateway)

    await server.start()
    await wait_until_delivered(gateway, 3)

    async with server.stream() as stream:
        messages = await stored_messages(stream, 3)
    assert [json.loads(message.data)["data"]["encounter_id"] for message in messages] == recorded
