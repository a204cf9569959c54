"""The JavaScript clients of docs/live.md miss no event while the gateway restarts."""

import asyncio
import shutil
import socket
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.conftest import fresh_database
from tests.controlled_schema import TOKENS
from tests.event_helpers import rows
from tests.graphql.test_subscriptions import BEGINNING, REGISTER, gateway_on, record
from tests.waiting import DEADLINE_SECONDS

NODE = shutil.which("node")
CLIENTS = Path(__file__).parents[1] / "javascript"

pytestmark = pytest.mark.skipif(
    NODE is None or not (CLIENTS / "node_modules").exists(),
    reason="Node's packages are not installed: apt-get install nodejs npm && make .venv/javascript",
)


@pytest.mark.parametrize("library", ["graphql-sse", "graphql-ws"])
async def test_a_client_gets_each_event_once_in_order_across_restarts(library: str, server_url: str) -> None:
    assert NODE is not None
    TOKENS.give("dev")
    url = await fresh_database(server_url)
    await rows(url, REGISTER)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [NODE, "follow.mjs", library, f"http://127.0.0.1:{port}", "a", BEGINNING]
    client = await asyncio.create_subprocess_exec(*words, cwd=CLIENTS, stdout=PIPE)
    assert client.stdout is not None
    recorded: list[str] = []
    heard: list[str] = []

    try:
        for _ in range(3):
            async with gateway_on(url, port=port, drain_seconds=1) as gateway:
                recorded += [await record(gateway, "a") for _ in range(3)]
                async with asyncio.timeout(DEADLINE_SECONDS):
                    while len(heard) < len(recorded) - 1:
                        heard.append((await client.stdout.readline()).decode().strip())
        async with gateway_on(url, port=port, drain_seconds=1) as gateway, asyncio.timeout(DEADLINE_SECONDS):
            recorded.append(await record(gateway, "a"))
            while len(heard) < len(recorded):
                heard.append((await client.stdout.readline()).decode().strip())
    finally:
        client.kill()
        await client.communicate()

    assert heard == [f"RECORDED {encounter_id}" for encounter_id in recorded]
