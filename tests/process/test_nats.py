"""Events reach a stream of NATS JetStream, each once: on Debian's own server, started here."""

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
from tests.event_helpers import Gateway, fresh_database, rows
from tests.waiting import wait_until

# Debian keeps it where only administrators look.
SERVER = shutil.which("nats-server", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
SUBJECT = "clinic.events"

pytestmark = pytest.mark.skipif(SERVER is None, reason="nats-server is not installed: apt-get install nats-server")


@dataclass
class Nats:
    """A server with JetStream, on a port of its own choice that it keeps when it is started again."""

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
        words = [str(word) for option in options.items() for word in option]
        self.process = await asyncio.create_subprocess_exec(SERVER, "--jetstream", *words)
        ports = self.folder / f"{Path(SERVER).name}_{self.process.pid}.ports"
        await wait_until(lambda: ports.exists() and ports.read_text())
        self.port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[JetStreamContext]:
        """Speak to JetStream as whoever owns the stream."""
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


async def delivered(gateway: Gateway, position: int) -> None:
    """Return when the sink has come so far."""

    async def there() -> bool:
        return (await event_numbers(gateway.relay)).sinks[0].position >= position

    await wait_until(there)


async def failing(gateway: Gateway) -> str | None:
    """Return when delivery has failed a few times, and say why."""

    async def failed() -> bool:
        return (await event_numbers(gateway.relay)).sinks[0].failures >= 3

    await wait_until(failed)
    return (await event_numbers(gateway.relay)).sinks[0].last_error


async def kept(stream: JetStreamContext, count: int) -> list[Any]:
    """Give what the stream keeps, and see that it is no more than this."""
    assert (await stream.stream_info("EVENTS")).state.messages == count
    return [await stream.get_msg("EVENTS", number) for number in range(1, count + 1)]


async def test_an_event_is_kept_once_however_often_it_is_published(gateway: Gateway, server: Nats) -> None:
    async with server.stream() as stream:
        await stream.add_stream(name="EVENTS", subjects=[SUBJECT])
        recorded = [str(await gateway.record(f"patient-{number % 2}")) for number in range(5)]
        await delivered(gateway, 5)
        await replay(gateway.relay, "nats", 1)
        await delivered(gateway, 5)

        messages = await kept(stream, 5)

    envelopes = [json.loads(message.data) for message in messages]
    assert [envelope["data"]["encounter_id"] for envelope in envelopes] == recorded
    assert [message.headers["Nats-Msg-Id"] for message in messages] == [envelope["id"] for envelope in envelopes]
    assert set(envelopes[0]["data"]) == {"encounter_id", "patient_id", "brand_id", "encounter_type", "recorded_at"}
    assert envelopes[0]["specversion"] == "1.0"


async def test_without_a_stream_events_wait(gateway: Gateway, server: Nats) -> None:
    recorded = [str(await gateway.record("patient")) for _ in range(2)]
    assert await failing(gateway) == "NoStreamResponseError"
    async with server.stream() as stream:
        with pytest.raises(NotFoundError):
            await stream.stream_info("EVENTS")
        await stream.add_stream(name="EVENTS", subjects=[SUBJECT])
        await delivered(gateway, 2)

        messages = await kept(stream, 2)

    assert [json.loads(message.data)["data"]["encounter_id"] for message in messages] == recorded


async def test_while_the_server_is_away_events_wait(gateway: Gateway, server: Nats) -> None:
    async with server.stream() as stream:
        await stream.add_stream(name="EVENTS", subjects=[SUBJECT])
    recorded = [str(await gateway.record("patient"))]
    await delivered(gateway, 1)
    await server.stop()
    recorded += [str(await gateway.record("patient")) for _ in range(2)]
    await failing(gateway)

    await server.start()
    await delivered(gateway, 3)

    async with server.stream() as stream:
        messages = await kept(stream, 3)
    assert [json.loads(message.data)["data"]["encounter_id"] for message in messages] == recorded
