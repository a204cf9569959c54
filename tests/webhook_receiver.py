"""A webhook receiver on loopback, whose answers a test sets."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.background_server import BackgroundServer


@dataclass(frozen=True)
class Delivery:
    """One received request."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The event's id, from the headers."""
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        """The envelope."""
        event: dict[str, Any] = json.loads(self.body)
        return event

    @property
    def encounter_id(self) -> str:
        """The encounter that the event is about."""
        encounter_id: str = self.event["data"]["encounter_id"]
        return encounter_id


Answer = Callable[[Delivery], Awaitable[Response]]


class ReceiverServer:
    """An HTTP server that receives events."""

    def __init__(self) -> None:
        self.port = 0
        self.tried: list[Delivery] = []
        self.taken: list[Delivery] = []
        """Requests answered with 2xx."""
        self.answer: Answer = accept
        self.misdirected = 0
        """Requests to another path."""
        self._app = Starlette(
            routes=[
                Route("/events", self._receive, methods=["POST"]),
                Route("/other", self._receive_elsewhere, methods=["GET", "POST"]),
            ]
        )

    @property
    def url(self) -> str:
        """The URL of the sink."""
        return f"http://127.0.0.1:{self.port}/events"

    @property
    def encounters(self) -> list[str]:
        """The encounters of the accepted events, in order."""
        return [delivery.encounter_id for delivery in self.taken]

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Self]:
        """Listen, and stop at the end."""
        receiver = cls()
        await receiver.start()
        try:
            yield receiver
        finally:
            await receiver.stop()

    async def start(self) -> None:
        """Listen, at the previous port if there was one."""
        listening = socket.create_server(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        self._server = BackgroundServer(
            uvicorn.Config(
                self._app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=0, ws="none"
            )
        )
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        await self._server.listening.wait()

    async def stop(self) -> None:
        """Stop listening, and cut off requests in progress."""
        self._server.should_exit = True
        await self._serving

    async def _receive_elsewhere(self, _request: Request) -> Response:
        self.misdirected += 1
        return Response()

    async def _receive(self, request: Request) -> Response:
        delivery = Delivery(request.headers, await request.body())
        self.tried.append(delivery)
        response = await self.answer(delivery)
        if 200 <= response.status_code < 300:
            self.taken.append(delivery)
        return response


async def accept(_delivery: Delivery) -> Response:
    """Accept an event."""
    return Response(status_code=204)
