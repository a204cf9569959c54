"""Clients of server-sent events; they parse a stream as the HTML standard defines."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx2

from tests.websocket_client import TIMEOUT_SECONDS

EVENT_STREAM = "text/event-stream"


class Event(NamedTuple):
    """One received event."""

    name: str
    data: str
    id: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The response that it carries."""
        body: dict[str, Any] = json.loads(self.data)
        return body

    @property
    def code(self) -> str:
        """The code of the refusal that it carries."""
        (error,) = self.body["errors"]
        assert set(error["extensions"]) >= {"code", "recorded", "request_id"}
        code: str = error["extensions"]["code"]
        return code


COMPLETE = Event("complete", "")


class Stream:
    """A received stream."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.heartbeats = 0
        self._lines = response.aiter_lines()

    async def receive(self) -> Event:
        """Return the next event."""
        async with asyncio.timeout(2 * TIMEOUT_SECONDS):
            return await anext(self._events())

    async def rest(self) -> list[Event]:
        """Return all remaining events; the stream must end."""
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
                assert name not in fields, f"{name} is repeated"
                fields[name] = value.removeprefix(" ")
        assert not fields, "the stream ended within an event"


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
    """Run an operation, and receive its results as server-sent events."""
    sent_headers: dict[str, Any] = {
        "accept": EVENT_STREAM,
        **({"authorization": f"Bearer {token}"} if token else {}),
        **(headers or {}),
    }
    request: dict[str, Any] = {"query": query, "variables": variables}
    if method == "GET":
        sent: dict[str, Any] = {"params": {"query": query, "variables": json.dumps(variables)}}
    else:
        sent = {"json": request}
    timeout = httpx2.Timeout(2 * TIMEOUT_SECONDS, read=None)
    async with (
        httpx2.AsyncClient(base_url=origin, timeout=timeout, trust_env=False) as client,
        client.stream(method, "/graphql", headers=sent_headers, **sent) as response,
    ):
        yield Stream(response)


@asynccontextmanager
async def open_unread_stream(port: int, query: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run an operation, and read only the status; the test reads the rest."""
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
