"""GraphQL over WebSocket: many operations on one connection, each of which fails separately.

Source: GraphQL over WebSocket, subprotocol `graphql-transport-ws`. The older `graphql-ws` is not supported. A refused
operation gets an `error` message. Only a protocol violation or the end of the token closes the socket.
"""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from resolvers.context import Context, authenticate
from resolvers.errors import (
    GatewayError,
    PayloadTooLarge,
    RateLimited,
)
from resolvers.rate_limits import Kind
from resolvers.request_state import state_of
from schema.charging import MAX_SHORT_BYTES, charge, reserve
from schema.documents.parse import Document
from schema.errors import refuse
from schema.execution import GraphQLRequest, GraphQLResponse, Runner, add_marker, parse_request, serialize
from schema.transport import close_codes
from schema.transport.close_codes import SUBPROTOCOL, Close
from schema.transport.long_lived import (
    ConnectionLimit,
    LogOperation,
    Reauthenticate,
    TokenEnd,
    seconds_left,
    watch_token,
)
from schema.transport.websocket_messages import Complete, ConnectionInit, InvalidMessage, Message, Ping, Subscribe, read

MOST_PARSING_WAIT_SECONDS = 2.0
"""Seconds; maximum delay before a long message is parsed, while the client's earlier parsing time is worked off."""

CROWDED_SECONDS = 1.0
"""Seconds; the retry delay for an operation beyond the limit of running operations."""

CLOSE_SECONDS = 1.0
"""Seconds; the timeout of sending the close frame, because the server may block until the client reads."""

RESTART_ORDERED = 1012
"""The code of the disconnect message that the server sends to the application at shutdown."""


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """The limits of one socket."""

    operations: int
    """Maximum number of running operations on one socket."""
    message_bytes: int
    """Maximum size of an operation's message, as over HTTP."""
    init_seconds: float
    """Timeout in seconds for `connection_init`."""
    send_seconds: float
    """Timeout in seconds for sending a message to a client that does not read."""
    recheck_seconds: float
    """Seconds between two verifications of the token."""


class GraphQLSocket:
    """Serves `/graphql` over WebSocket."""

    def __init__(
        self, runner: Runner, limits: SocketLimits, connection_limit: ConnectionLimit, log_operation: LogOperation
    ) -> None:
        self._runner = runner
        self._limits = limits
        self._connection_limit = connection_limit
        self._log_operation = log_operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one socket, from the upgrade request to its close."""
        await receive()  # websocket.connect
        # The origins of the caller's own client are checked at authentication.
        origin = state_of(scope)["introduction"].origin
        if origin is not None and not state_of(scope)["services"].origins.allows(origin):
            # A close before the accept makes the server answer the upgrade with HTTP 403.
            await send({"type": "websocket.close"})
            return
        # A browser that offered subprotocols fails if none is selected, and would not see the close reason. So an
        # unsupported subprotocol is accepted first and refused by a close frame.
        spoken = SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else next(iter(scope["subprotocols"]), None)
        await send({"type": "websocket.accept", "subprotocol": spoken})
        if (refusal := self._refusal(scope)) is not None:
            await send({"type": "websocket.close", "code": refusal.code, "reason": refusal.reason})
            return
        await WebSocketConnection(
            scope,
            receive,
            send,
            runner=self._runner,
            limits=self._limits,
            connection_limit=self._connection_limit,
            log_operation=self._log_operation,
        ).run()

    def _refusal(self, scope: Scope) -> Close | None:
        if SUBPROTOCOL not in scope["subprotocols"]:
            return close_codes.OTHER_SUBPROTOCOL
        return close_codes.TOO_MANY_SOCKETS if self._connection_limit.is_full else None


class _Over(Exception):
    """The socket must be closed, because of a message of the client or because it disconnected."""

    def __init__(self, close: Close) -> None:
        self.close = close


@dataclass(eq=False)
class _Operation:
    id: str
    """The client's id for the operation; logs and audit records use the request id."""
    context: Context
    task: asyncio.Task[None] | None = None
    changes: bool = False
    """Whether it is a mutation. A running mutation is not cancelled when the client stops listening."""
    outcome: str = "stopped"


class WebSocketConnection:
    """One socket: it reads the messages of one client, and sends each response as soon as it is ready.

    There is no queue. An operation pauses until its message is sent, so a client that does not read holds at most one
    message per operation in memory. The socket is closed if a message cannot be sent within `send_seconds`.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        runner: Runner,
        limits: SocketLimits,
        connection_limit: ConnectionLimit,
        log_operation: LogOperation,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._runner = runner
        self._limits = limits
        self._connection_limit = connection_limit
        self._place = ExitStack()
        """Holds the socket's slot: among the unauthenticated sockets, and after authentication among its client's."""
        self._log_operation = log_operation
        self._state = state_of(scope)
        self._over: asyncio.Future[Close] = asyncio.get_running_loop().create_future()
        self._closed = False
        self._background: list[asyncio.Task[None]] = []
        self._caller: Context | None = None
        self._under_way: set[_Operation] = set()
        self._listened_to: dict[str, _Operation] = {}
        """Running operations that the client has not completed, by the client's id."""

    # Lifecycle

    async def run(self) -> None:
        """Serve the socket until either side ends it, then cancel or await all of its tasks."""
        self._state["operations"] = 0
        address = self._state["introduction"].address
        self._place.enter_context(
            self._connection_limit.unauthenticated(address, lambda: self._end(close_codes.EVICTED))
        )
        self._in_background(self._listen())
        try:
            close = await self._over
            for task in [*self._background, *self._tasks(changes=False)]:
                task.cancel()
            if close.after_changes:
                await asyncio.gather(*self._tasks(changes=True))
            await self._close(close)
            await asyncio.gather(*self._tasks(changes=True))
        except asyncio.CancelledError:
            # Shutdown timeout: close the socket without waiting for running mutations.
            await self._close(close_codes.RESTARTING)
            raise
        finally:
            left = [*self._background, *self._tasks()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            self._place.close()

    def _end(self, close: Close) -> None:
        """Request the close of the socket. Only the first request has an effect."""
        if not self._over.done():
            self._over.set_result(close)

    def _tasks(self, *, changes: bool | None = None) -> list[asyncio.Task[None]]:
        return [each.task for each in self._under_way if each.task and changes in {None, each.changes}]

    async def _close(self, close: Close) -> None:
        if self._closed:
            return
        self._closed = True
        if close is not close_codes.GONE:
            # These errors mean that the server has closed the socket or the client has disconnected.
            with suppress(OSError, RuntimeError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._send({"type": "websocket.close", "code": close.code, "reason": close.reason})

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(asyncio.create_task(work))

    # Receiving

    async def _listen(self) -> None:
        try:
            try:
                async with asyncio.timeout(self._limits.init_seconds):
                    credentials = await self._introduction()
            except TimeoutError:
                raise _Over(close_codes.NOT_INTRODUCED) from None
            await self._sign_in(credentials)
            while True:
                await self._dispatch(await self._next())
        except _Over as over:
            self._end(over.close)
        except Exception as error:  # noqa: BLE001 - an error affects only its own socket
            self._runner.known(error, self._state["request_id"])
            self._end(close_codes.OUR_FAULT)

    async def _next(self) -> Message:
        # Yield to other tasks before each message, because a client may have sent thousands of them at once.
        await asyncio.sleep(0)
        frame = await self._receive()
        if frame["type"] == "websocket.disconnect":
            raise _Over(close_codes.RESTARTING if frame["code"] == RESTART_ORDERED else close_codes.GONE)
        text = frame.get("text")
        if text is None:
            raise _Over(close_codes.BINARY)
        if self._caller is None:
            if len(text) > MAX_SHORT_BYTES:
                # Parsing costs CPU time that cannot be charged to a client before authentication.
                raise _Over(close_codes.TOO_LONG_BEFORE_SIGN_IN)
            return self._read(text)
        if len(text) > MAX_SHORT_BYTES:
            await asyncio.sleep(min(self._caller.parsing_wait, MOST_PARSING_WAIT_SECONDS))
        with self._caller.parsing():
            return self._read(text)

    def _read(self, text: str) -> Message:
        try:
            return read(text)
        except InvalidMessage as error:
            raise _Over(Close(4400, str(error))) from None

    async def _introduction(self) -> ConnectionInit:
        while True:
            match await self._next():
                case ConnectionInit() as credentials:
                    return credentials
                case Ping():
                    await self._send_message(type="pong")
                case Subscribe():
                    raise _Over(close_codes.NOT_ACKNOWLEDGED)

    async def _dispatch(self, message: Message) -> None:
        match message:
            case Subscribe():
                await self._subscribe(message)
            case Complete():
                self._stop(message.id)
            case Ping():
                await self._send_message(type="pong")
            case ConnectionInit():
                raise _Over(close_codes.INTRODUCED_TWICE)

    # Authentication

    async def _sign_in(self, credentials: ConnectionInit) -> None:
        # Browsers cannot set headers on the upgrade request; some programs can set nothing else. Both are supported.
        upgrade = self._state["introduction"]
        introduction = upgrade._replace(
            authorization=credentials.authorization or upgrade.authorization,
            stated_brand_id=credentials.stated_brand_id or upgrade.stated_brand_id,
            consistency=credentials.consistency or upgrade.consistency,
        )
        reauthenticate = partial(authenticate, self._state["services"], introduction)
        try:
            self._caller = await reauthenticate()
            self._place.close()
            self._place.enter_context(self._connection_limit.slot(self._caller.caller.client_id))
        except GatewayError as error:
            raise _Over(close_codes.close_for(error)) from None
        self._state["caller"] = self._caller.caller
        if seconds_left(self._caller.caller) <= 0:
            raise _Over(close_codes.TOKEN_ENDED[TokenEnd.EXPIRED])
        self._in_background(self._watch(self._caller, reauthenticate))
        await self._send_message(type="connection_ack")

    async def _watch(self, context: Context, reauthenticate: Reauthenticate) -> None:
        """Close the socket when the token expires, is revoked or changes."""
        report = partial(self._runner.known, request_id=context.request_id)
        why = await watch_token(context.caller, reauthenticate, self._limits.recheck_seconds, report)
        self._end(close_codes.TOKEN_ENDED[why])

    # Operations

    async def _subscribe(self, message: Subscribe) -> None:
        assert self._caller is not None, "the caller is authenticated before any operation"
        if message.id in self._listened_to:
            raise _Over(close_codes.ID_IN_USE)
        self._state["operations"] += 1
        # The client's id is arbitrary text. The request id is generated here, because it is logged and audited.
        request_id = f"{self._state['request_id']}.{self._state['operations']}"
        of_socket = self._caller.consistency
        context = Context(
            self._caller.caller,
            self._caller.stated_brand_id,
            request_id,
            self._caller.services,
            consistency=of_socket and of_socket.of_operation(),
        )
        operation = _Operation(message.id, context)
        self._listened_to[message.id] = operation
        if len(self._under_way) >= self._limits.operations:
            # Awaited here, so that no further message is read until the refusal is sent.
            await self._run(operation, message, crowded=True)
            return
        operation.task = asyncio.create_task(self._run(operation, message))
        self._under_way.add(operation)
        operation.task.add_done_callback(lambda _: self._under_way.discard(operation))

    def _stop(self, operation_id: str) -> None:
        # An unknown id is not an error: the operation's last message and the client's `complete` may cross.
        operation = self._listened_to.pop(operation_id, None)
        if operation is not None and operation.task is not None and not operation.changes:
            operation.task.cancel()

    async def _run(self, operation: _Operation, message: Subscribe, *, crowded: bool = False) -> None:
        started = time.perf_counter()
        try:
            await self._answer(operation, message, crowded=crowded)
        except Exception as error:  # noqa: BLE001 - an error affects only its own operation
            refusal = self._runner.known(error, operation.context.request_id)
            await self._finish(operation, [refuse(refusal, operation.context)])
        finally:
            operation.context.release_answer()
            self._log_operation(operation.context, operation.outcome, time.perf_counter() - started)

    async def _answer(self, operation: _Operation, message: Subscribe, *, crowded: bool) -> None:
        ask, document = await self._admit(operation, message, crowded=crowded)
        begun = await self._runner.start(ask, document, operation.context)
        if isinstance(begun, GraphQLResponse):
            if not begun.is_well_formed:
                await self._finish(operation, begun.body["errors"])
                return
            await self._tell(operation, type="next", payload=begun.body)
        else:
            async with aclosing(begun) as answers:
                async for answer in answers:
                    await self._tell(operation, type="next", payload=answer.body)
        await self._finish(operation)

    async def _admit(
        self, operation: _Operation, message: Subscribe, *, crowded: bool
    ) -> tuple[GraphQLRequest, Document]:
        """Return the request and its document. Raise the same errors as over HTTP, in the same order."""
        reservation = await reserve(operation.context)
        try:
            if crowded:
                raise RateLimited(CROWDED_SECONDS)
            if message.size > self._limits.message_bytes:
                raise PayloadTooLarge("The message exceeds the maximum size.")
            ask = parse_request(message.payload)
        except GatewayError as error:
            raise reservation.refuse(error) from None
        document, price = await charge(self._runner, ask, operation.context, reservation)
        operation.changes = price.kind is Kind.WRITES
        return ask, document

    # Sending

    async def _tell(self, operation: _Operation, **members: Any) -> None:
        if self._listened_to.get(operation.id) is operation:
            await self._send_message(id=operation.id, **members)

    async def _finish(self, operation: _Operation, errors: list[dict[str, Any]] | None = None) -> None:
        """Send an operation's last message: `error` with the errors, else `complete`."""
        operation.outcome = errors[0]["extensions"]["code"] if errors else "complete"
        if errors:
            # The message has no other place for the marker of a change.
            add_marker(errors[0], await operation.context.marker())
        if self._listened_to.get(operation.id) is operation:
            # Deleted before the message is sent, because the client may reuse the id once it receives the message.
            del self._listened_to[operation.id]
            last = {"type": "error", "payload": errors} if errors else {"type": "complete"}
            await self._send_message(id=operation.id, **last)

    async def _send_message(self, **message: Any) -> None:
        if self._closed:
            return
        try:
            async with asyncio.timeout(self._limits.send_seconds):
                await self._send({"type": "websocket.send", "text": serialize(message).decode()})
        except TimeoutError:
            self._end(close_codes.TOO_SLOW)
        except (OSError, RuntimeError):
            # The client has disconnected, or the server has closed the connection.
            self._end(close_codes.GONE)
