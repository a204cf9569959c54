"""Faults to rehearse with: what a network and a busy service do to a client, done on purpose and in a seeded order.

Only for `gateway serve --faults SEED`, so only where no real patient is. A fault is drawn for each POST to a door, in
the order they come, but for streams; the same seed and the same requests make the same faults. Pure ASGI, next to the
doors: a refusal is raised where a body would be read, so the door phrases it, after it has found out who calls, and it
is true that nothing was recorded.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.observability.logs import log
from gateway.protocols.http import LimitedHttpProtocol
from resolvers.errors import GatewayError, RateLimited, TemporarilyUnavailable

HEADER = b"x-rehearsed-fault"
CUT = "encounter_gateway.cut"
"""The ASGI extension that cuts a connection: there is no message for that."""


class Fault(StrEnum):
    """What can go wrong with one request."""

    NONE = "none"
    DELAY = "delay"
    """It is handled late."""
    RATE_LIMITED = "rate_limited"
    """429, and it is not handled."""
    UNAVAILABLE = "unavailable"
    """503, and it is not handled."""
    LOST_ANSWER = "lost_answer"
    """It is handled, and the connection is cut before the answer."""
    DELIVERED_TWICE = "delivered_twice"
    """It is handled twice, as a proxy would that tries again by itself; the second answer is the one that is given."""


# Often enough that thirty requests meet every kind, seldom enough that four tries nearly always do.
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
    """Lets something go wrong with some of the requests that a door is sent."""

    def __init__(self, app: ASGIApp, *, seed: int) -> None:
        self._app = app
        self._chance = random.Random(seed)  # noqa: S311 - to be foreseen is what it is for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or what is left of it."""
        if not _is_sent_to_a_door(scope):
            await self._app(scope, receive, send)
            return
        # The body has to be asked for, so that it can be refused, or handed over twice.
        scope["state"].pop("body", None)
        fault, seconds = self._draw()
        if fault is not Fault.NONE:
            log.info("rehearsed fault", request_id=scope["state"]["request_id"], fault=fault)
        match fault:
            case Fault.NONE:
                await self._app(scope, receive, send)
            case Fault.DELAY:
                await asyncio.sleep(seconds)
                await self._app(scope, receive, _telling(fault, send))
            case Fault.RATE_LIMITED | Fault.UNAVAILABLE:
                await self._refuse(fault, scope, send)
            case Fault.LOST_ANSWER:
                await self._app(scope, receive, _unheard)
                await _cut(scope, receive)
            case Fault.DELIVERED_TWICE:
                await self._deliver_twice(scope, receive, _telling(fault, send))

    def _draw(self) -> tuple[Fault, float]:
        """Draw what goes wrong next. The same number of draws for each, so that no fault shifts the others."""
        (fault,) = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        return fault, self._chance.uniform(0, MAX_DELAY_SECONDS)

    async def _refuse(self, fault: Fault, scope: Scope, send: Send) -> None:
        refused, error = False, REFUSALS[fault]()

        async def refusing_receive() -> Message:
            nonlocal refused
            refused = True
            raise error

        async def send_told(message: Message) -> None:
            # Not where the door has refused by itself before it read the body: without a token, for one.
            await (_telling(fault, send) if refused else send)(message)

        await self._app(scope, refusing_receive, send_told)

    async def _deliver_twice(self, scope: Scope, receive: Receive, send: Send) -> None:
        heard: list[Message] = []

        async def first_receive() -> Message:
            heard.append(await receive())
            return heard[-1]

        async def second_receive() -> Message:
            return heard.pop(0) if heard else await receive()

        await self._app({**scope, "state": dict(scope["state"])}, first_receive, _unheard)
        await self._app(scope, second_receive, send)


def _is_sent_to_a_door(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    if b"text/event-stream" in dict(scope["headers"]).get(b"accept", b""):
        return False  # a stream has no one answer that could be lost, and its end may never come
    path: str = scope["path"]
    return path == "/graphql" or path.startswith("/v1/")


def _telling(fault: Fault, send: Send) -> Send:
    async def send_with_fault(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (HEADER, fault.encode())]
        await send(message)

    return send_with_fault


async def _unheard(_message: Message) -> None:
    pass


async def _cut(scope: Scope, receive: Receive) -> None:
    scope["extensions"][CUT]()
    while (await receive())["type"] != "http.disconnect":
        pass


class CuttingProtocol(LimitedHttpProtocol):
    """The protocol of a rehearsal: lets the application cut the connection that a request came by."""

    def on_message_begin(self) -> None:
        """Lend the request what cuts its connection."""
        super().on_message_begin()
        extensions: dict[str, Any] = {CUT: self.transport.abort}
        self.scope["extensions"] = extensions
