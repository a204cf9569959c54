"""Fault injection: seeded network and overload faults, for testing clients.

It is only active with `gateway serve --faults SEED`, in development mode, so no real patient is affected. A fault is
drawn for each POST to a door, in order of arrival, except for event streams. The same seed and the same requests
produce the same faults. Pure ASGI, directly around the doors. A refusal is raised when the door reads the body. By then
the door has authenticated the caller and recorded nothing, and it formats the error itself.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.protocols.http import LimitedHttpProtocol
from resolvers.errors import GatewayError, RateLimited, TemporarilyUnavailable
from resolvers.request_state import state_of

logger = logging.getLogger(__name__)

HEADER = b"x-rehearsed-fault"
CUT = "encounter_gateway.cut"
"""ASGI extension that aborts the connection; ASGI defines no message for it."""


class Fault(StrEnum):
    """Fault of one request."""

    NONE = "none"
    DELAY = "delay"
    """The request is handled after a delay."""
    RATE_LIMITED = "rate_limited"
    """The response is 429; the request is not handled."""
    UNAVAILABLE = "unavailable"
    """The response is 503; the request is not handled."""
    LOST_ANSWER = "lost_answer"
    """The request is handled, and the connection is aborted before the response."""
    DELIVERED_TWICE = "delivered_twice"
    """The request is handled twice, as by a proxy that retries. The client gets the second response."""


# Relative weights. Thirty requests usually meet every fault, and four attempts of a request nearly always succeed.
WEIGHTS: Mapping[Fault, int] = {
    Fault.NONE: 5,
    Fault.DELAY: 2,
    Fault.RATE_LIMITED: 1,
    Fault.UNAVAILABLE: 1,
    Fault.LOST_ANSWER: 2,
    Fault.DELIVERED_TWICE: 2,
}
MAX_DELAY_SECONDS = 0.5

REFUSALS: Mapping[Fault, Callable[[], GatewayError]] = {
    Fault.RATE_LIMITED: lambda: RateLimited(1),
    Fault.UNAVAILABLE: TemporarilyUnavailable,
}


class FaultInjectionMiddleware:
    """Middleware that injects faults into some of the POST requests to a door."""

    def __init__(self, app: ASGIApp, *, seed: int) -> None:
        self._app = app
        self._chance = random.Random(seed)  # noqa: S311 - the faults must be reproducible

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, with the fault that is drawn for it."""
        if not _is_sent_to_a_door(scope):
            await self._app(scope, receive, send)
            return
        fault, seconds = self._draw()
        if fault is not Fault.NONE:
            logger.info("rehearsed fault", extra={"request_id": state_of(scope)["request_id"], "fault": fault})
        match fault:
            case Fault.NONE:
                await self._app(scope, receive, send)
            case Fault.DELAY:
                await asyncio.sleep(seconds)
                await self._app(scope, receive, _with_fault_header(fault, send))
            case Fault.RATE_LIMITED | Fault.UNAVAILABLE:
                await self._refuse(fault, scope, send)
            case Fault.LOST_ANSWER:
                await self._app(scope, receive, _discard)
                await _cut(scope, receive)
            case Fault.DELIVERED_TWICE:
                await self._deliver_twice(scope, receive, _with_fault_header(fault, send))

    def _draw(self) -> tuple[Fault, float]:
        """Return the next fault and its delay. Each call draws twice, so that no fault shifts the later ones."""
        (fault,) = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        return fault, self._chance.uniform(0, MAX_DELAY_SECONDS)

    async def _refuse(self, fault: Fault, scope: Scope, send: Send) -> None:
        refused, error = False, REFUSALS[fault]()

        async def refusing_receive() -> Message:
            nonlocal refused
            refused = True
            raise error

        async def send_with_header(message: Message) -> None:
            # No header if the door refused the request before reading the body, for example without a token.
            await (_with_fault_header(fault, send) if refused else send)(message)

        await self._app(scope, refusing_receive, send_with_header)

    async def _deliver_twice(self, scope: Scope, receive: Receive, send: Send) -> None:
        heard: list[Message] = []

        async def first_receive() -> Message:
            heard.append(await receive())
            return heard[-1]

        async def second_receive() -> Message:
            return heard.pop(0) if heard else await receive()

        await self._app({**scope, "state": dict(scope["state"])}, first_receive, _discard)
        await self._app(scope, second_receive, send)


def _is_sent_to_a_door(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    if b"text/event-stream" in dict(scope["headers"]).get(b"accept", b""):
        return False  # a stream has no single response to lose, and may never end
    path: str = scope["path"]
    return path == "/graphql" or path.startswith("/v1/")


def _with_fault_header(fault: Fault, send: Send) -> Send:
    async def send_with_fault(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (HEADER, fault.encode())]
        await send(message)

    return send_with_fault


async def _discard(_message: Message) -> None:
    pass


async def _cut(scope: Scope, receive: Receive) -> None:
    scope["extensions"][CUT]()
    while (await receive())["type"] != "http.disconnect":
        pass


class CuttingProtocol(LimitedHttpProtocol):
    """HTTP protocol with an ASGI extension that aborts the connection of a request."""

    def on_message_begin(self) -> None:
        """Add the extension `CUT` to the scope of the request."""
        super().on_message_begin()
        extensions: dict[str, Any] = {CUT: self.transport.abort}
        self.scope["extensions"] = extensions
