"""GraphQL responses as server-sent events, for clients that have HTTP but no WebSocket.

Source: GraphQL over Server-Sent Events, distinct connections mode,
https://github.com/enisdenjo/graphql-sse/blob/master/PROTOCOL.md
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from resolvers.context import Context
from resolvers.errors import GatewayError, InvalidToken, TemporarilyUnavailable
from resolvers.request_state import state_of
from schema.errors import refuse
from schema.execution import GraphQLResponse, Runner, serialize
from schema.transport.long_lived import ConnectionLimit, LogOperation, Reauthenticate, watch_token

EVENT_STREAM = "text/event-stream"
HEADERS = {
    "Cache-Control": "no-store, no-transform",
    # nginx would buffer unread events in a file, which would hide a slow client from the gateway.
    # Source: ngx_http_proxy_module, proxy_buffering.
    "X-Accel-Buffering": "no",
}
_HEAD = [(b"content-type", b"text/event-stream; charset=utf-8")] + [
    (name.lower().encode(), value.encode()) for name, value in HEADERS.items()
]
# A browser's EventSource ignores an event without a data line.
COMPLETE = b"event: complete\ndata: \n\n"
HEARTBEAT = b":\n\n"

SendBytes = Callable[[bytes], Awaitable[None]]

RESTARTING = "The gateway is restarting; subscribe again after the last cursor."


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The intervals of an event stream."""

    heartbeat_seconds: float
    """Seconds between two heartbeats, which keep the connection open."""
    recheck_seconds: float
    """Seconds between two verifications of the token."""


class EventStream:
    """The response to a subscription: it streams events until the client disconnects or its token is not accepted.

    There is no queue. The stream takes the next event from the feed after it has sent the previous one.
    """

    def __init__(
        self,
        answers: AsyncGenerator[GraphQLResponse, None],
        context: Context,
        reauthenticate: Reauthenticate,
        *,
        runner: Runner,
        limits: StreamLimits,
        connection_limit: ConnectionLimit,
        log_operation: LogOperation,
    ) -> None:
        self._answers = answers
        self._context = context
        self._reauthenticate = reauthenticate
        self._runner = runner
        self._limits = limits
        self._connection_limit = connection_limit
        self._log_operation = log_operation
        self._outcome = "stopped"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream events until either side ends the stream, then cancel all tasks of the stream."""
        started = time.perf_counter()
        try:
            with self._connection_limit.slot(self._context.caller.client_id):
                await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
                await self._hold(state_of(scope).get("draining"), receive, send)
        finally:
            self._log_operation(self._context, self._outcome, time.perf_counter() - started)

    async def _hold(self, draining: asyncio.Event | None, receive: Receive, send: Send) -> None:
        send_bytes = partial(_send_bytes, send)
        work: list[Coroutine[Any, Any, bytes]] = [
            self._send_answers(send_bytes),
            self._until_token_ends(),
            _until_gone(receive),
            _keep_open(send_bytes, self._limits.heartbeat_seconds),
        ]
        if draining is not None:
            work.append(self._until_stopped(draining))
        tasks = [asyncio.create_task(each) for each in work]
        try:
            over, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await send({"type": "http.response.body", "body": over.pop().result()})

    # Each of these coroutines returns when the stream must end, with the final bytes to send

    async def _send_answers(self, send_bytes: SendBytes) -> bytes:
        try:
            async with aclosing(self._answers) as answers:
                async for answer in answers:
                    await send_bytes(next_event(answer))
        except Exception as error:  # noqa: BLE001 - the stream reports the error to the client
            return self._final_event(self._runner.known(error, self._context.request_id))
        self._outcome = "complete"
        return COMPLETE

    async def _until_token_ends(self) -> bytes:
        report = partial(self._runner.known, request_id=self._context.request_id)
        why = await watch_token(self._context.caller, self._reauthenticate, self._limits.recheck_seconds, report)
        return self._final_event(InvalidToken(f"The bearer token is no longer accepted: {why}."))

    async def _until_stopped(self, draining: asyncio.Event) -> bytes:
        await draining.wait()
        return self._final_event(TemporarilyUnavailable(RESTARTING))

    def _final_event(self, error: GatewayError) -> bytes:
        self._outcome = error.code
        return at_once(GraphQLResponse(False, {"errors": [refuse(error, self._context)]}))


async def _until_gone(receive: Receive) -> bytes:
    # The body of a GET request is ignored, but a body that is too large or too slow ends the stream.
    with suppress(GatewayError):
        while (await receive())["type"] != "http.disconnect":
            pass
    return b""


async def _keep_open(send_bytes: SendBytes, heartbeat_seconds: float) -> bytes:
    while True:
        await send_bytes(HEARTBEAT)
        await asyncio.sleep(heartbeat_seconds)


async def _send_bytes(send: Send, words: bytes) -> None:
    await send({"type": "http.response.body", "body": words, "more_body": True})


def next_event(answer: GraphQLResponse) -> bytes:
    """Return a response as a `next` event. Its id is the cursor, which a browser sends back when it reconnects."""
    place = f"id: {answer.cursor}\n".encode() if answer.cursor else b""
    return b"event: next\n" + place + b"data: " + serialize(answer.body) + b"\n\n"


def at_once(answer: GraphQLResponse) -> bytes:
    """Return a single response as a complete stream: a `next` event and a `complete` event."""
    return next_event(answer) + COMPLETE
