"""Clients that listen to server-sent events, reading them as the HTML standard says a browser does."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx2

from tests.websocket_client import TIMEOUT_SECONDS

EVENT_STREAM = "text/event-stream"


class Event(NamedTuple):
    """One event as it came."""

    name: str
    data: str
    id: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The answer it carries."""
        body: dict[str, Any] = json.loads(self.data)
        return body

    @property
    def code(self) -> str:
        """Why it is a refusal."""
        (error,) = self.body["errors"]
        assert set(error["extensions"]) >= {"code", "recorded", "request_id"}
        code: str = error["extensions"]["code"]
        return code


COMPLETE = Event("complete", "")


class Stream:
    """One stream, from a client's side."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.heartbeats = 0
        self._lines = response.aiter_lines()

    async def receive(self) -> Event:
        """Give the next event."""
        async with asyncio.timeout(2 * TIMEOUT_SECONDS):
            return await anext(self._events())

    async def rest(self) -> list[Event]:
        """Give every event to the end of the stream, which must come."""
        async with asyncio.timeout(2 * TIMEOUT_SECONDS):
            return [event async for event in self._events()]

    async def _events(self) -> AsyncIterator[Event]:
        fields: dict[str, str] = {}
        async for line in self._lines:
            name, _, value = line.partition(":")
            if not line and "event" in fields:
                yield Event(fields["event"], fields["data"], fields.get("id"))
                fields = {}
            elif line and not name:
                self.heartbeats += 1
            elif line:
                assert name not in fields, f"{name} comes twice"
                fields[name] = value.removeprefix(" ")
        assert not fields, "the stream ended in the middle of an event"


@asynccontextmanager
async def open_stream(
    origin: str,
    query: str,
    *,
    token: str | None = "dev",
    method: str = "POST",
    headers: Mapping[str, str | bytes] | None = None,
    **variables: Any,
) -> AsyncIterator[Stream]:
    """Ask a gateway for an operation, and take its answers as server-sent events."""
    said: dict[str, Any] = {
        "accept": EVENT_STREAM,
        **({"authorization": f"Bearer {token}"} if token else {}),
        **(headers or {}),
    }
    ask: dict[str, Any] = {"query": query, "variables": variables}
    if method == "GET":
        sent: dict[str, Any] = {"params": {"query": query, "variables": json.dumps(variables)}}
    else:
        sent = {"json": ask}
    timeout = httpx2.Timeout(2 * TIMEOUT_SECONDS, read=None)
    async with (
        httpx2.AsyncClient(base_url=origin, timeout=timeout, trust_env=False) as client,
        client.stream(method, "/graphql", headers=said, **sent) as response,
    ):
        yield Stream(response)


@asynccontextmanager
async def open_unread_stream(port: int, query: str) -> AsyncIterator[asyncio.StreamReader]:
    """Ask for an operation, and hear no more of it than that it begins: the test says when something is read."""
    body = json.dumps({"query": query}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(
        b"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer dev\r\nAccept: text/event-stream\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    assert b" 200 " in await reader.readline()
    try:
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()
