"""A listening gateway in this process, and clients that speak GraphQL over WebSocket."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self

import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from gateway.app import create_app
from gateway.protocols.http import bound_unsent_bytes
from gateway.server import PROTOCOLS
from gateway.settings import Settings
from resolvers.access import Verify
from tests.background_server import BackgroundServer

SUBPROTOCOL = "graphql-transport-ws"
TIMEOUT_SECONDS = 5.0
"""Timeout of what should happen within milliseconds."""


class WebSocketClient:
    """One WebSocket connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, **message: Any) -> None:
        """Send a message."""
        await self.connection.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        """Return the next message."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            message: dict[str, Any] = json.loads(await self.connection.recv())
        return message

    async def authenticate(self, token: str | None = "dev", **headers: Any) -> Self:
        """Authenticate, and wait for the acknowledgement."""
        await self.send(type="connection_init", payload={"Authorization": f"Bearer {token}", **headers})
        assert await self.receive() == {"type": "connection_ack"}
        return self

    async def start(self, operation_id: str, query: str, **variables: Any) -> None:
        """Start an operation."""
        await self.send(type="subscribe", id=operation_id, payload={"query": query, "variables": variables})

    async def next(self, operation_id: str) -> dict[str, Any]:
        """Return the body of an operation's next result, which must be the next message."""
        message = await self.receive()
        assert (message["type"], message["id"]) == ("next", operation_id), message
        body: dict[str, Any] = message["payload"]
        return body

    async def errors(self, operation_id: str) -> list[dict[str, Any]]:
        """Return the errors of a refused operation."""
        message = await self.receive()
        assert (message["type"], message["id"]) == ("error", operation_id), message
        errors: list[dict[str, Any]] = message["payload"]
        return errors

    async def ask(self, query: str, *, operation_id: str = "one", **variables: Any) -> dict[str, Any]:
        """Run a query or a mutation, and return the body of its result."""
        await self.start(operation_id, query, **variables)
        body = await self.next(operation_id)
        assert await self.receive() == {"type": "complete", "id": operation_id}
        return body

    async def refusal(self, query: str, **variables: Any) -> dict[str, Any]:
        """Run an operation that is refused, and return the extensions of its error."""
        await self.start("refused", query, **variables)
        (error,) = await self.errors("refused")
        extensions: dict[str, Any] = error["extensions"]
        return extensions

    async def closed(self) -> tuple[int, str]:
        """Read until the gateway closes the connection, and return the code and reason."""
        try:
            async with asyncio.timeout(2 * TIMEOUT_SECONDS):
                while True:
                    await self.connection.recv()
        except ConnectionClosed as end:
            return (end.rcvd.code, end.rcvd.reason) if end.rcvd else (1006, "")


@asynccontextmanager
async def connect_to(
    origin: str, *, subprotocols: list[str] | None = None, headers: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[WebSocketClient]:
    """Open a connection to a gateway."""
    offered = [SUBPROTOCOL] if subprotocols is None else subprotocols
    async with connect(
        f"{origin.replace('http', 'ws', 1)}/graphql",
        subprotocols=[Subprotocol(each) for each in offered] or None,
        additional_headers=headers,
        compression=None,
        proxy=None,
        close_timeout=1,
        **options,
    ) as connection:
        yield WebSocketClient(connection)


class GatewayServer:
    """A gateway that listens in this process."""

    def __init__(self, server: BackgroundServer, port: int, app: Any) -> None:
        self.server = server
        self.port = port
        self.app = app

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, settings: Settings, verify: Verify | None = None, port: int = 0, **options: Any
    ) -> AsyncIterator[Self]:
        """Serve as `gateway serve` does, with other options for uvicorn."""
        app = create_app(settings, verify)
        config = uvicorn.Config(
            app,
            **{**PROTOCOLS, **options},
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=settings.drain_seconds,
        )
        with socket.create_server(("127.0.0.1", port)) as listening:
            bound_unsent_bytes(listening)
            server = BackgroundServer(config)
            serving = asyncio.create_task(server.serve([listening]))
            while not server.started:  # noqa: ASYNC110 - uvicorn reports it by this attribute alone
                await asyncio.sleep(0.01)
            try:
                yield cls(server, listening.getsockname()[1], app)
            finally:
                server.should_exit = True
                await serving

    def connect(self, **options: Any) -> AbstractAsyncContextManager[WebSocketClient]:
        """Open a connection."""
        return connect_to(f"http://127.0.0.1:{self.port}", **options)

    @asynccontextmanager
    async def authenticated(self, token: str = "dev", **options: Any) -> AsyncIterator[WebSocketClient]:
        """Open a connection and authenticate."""
        async with self.connect(**options) as websocket:
            yield await websocket.authenticate(token)
