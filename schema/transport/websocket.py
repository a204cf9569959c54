"""The GraphQL door as a socket: many operations on one connection, each of which fails alone.

Source: GraphQL over WebSocket, subprotocol `graphql-transport-ws`; the older `graphql-ws` is not spoken. An operation
that is refused gets its `error` message. Only what breaks the protocol, or the right to be here, ends the socket.
"""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from starlette.types import Receive, Scope, Send

from resolvers.context import Context, Credentials, authenticate
from resolvers.errors import (
    Forbidden,
    GatewayError,
    InvalidToken,
    PayloadTooLarge,
    RateLimited,
    ServerError,
    TemporarilyUnavailable,
    Unauthenticated,
)
from resolvers.rate_limits import Kind
from resolvers.services import Services
from schema.charging import MAX_SHORT_BYTES, charge, reserve
from schema.documents.parse import Document
from schema.errors import refuse
from schema.execution import GraphQLRequest, GraphQLResponse, Runner, parse_request, serialize
from schema.transport.long_lived import (
    ConnectionLimit,
    LogOperation,
    Reauthenticate,
    TokenEnd,
    seconds_left,
    watch_token,
)
from schema.transport.websocket_messages import Complete, ConnectionInit, InvalidMessage, Message, Ping, Subscribe, read

SUBPROTOCOL = "graphql-transport-ws"


class Close(NamedTuple):
    """Why a socket is closed, for a program and for a person. The reason is at most 123 bytes (RFC 6455, 5.5)."""

    code: int
    reason: str
    after_changes: bool = False
    """Whether mutations that are under way are answered first. They are finished in any case."""


# What a code makes a client do is the client's choice. These are chosen by what `graphql-ws` does, which those who
# wrote the protocol wrote: at 4400, 4401, 4406, 4409, 4429, 4500 and most of 1000 to 1999 it gives up and tells the
# application; at 1001, 1012, 1013, 4403 and 4408 it connects again, and asks the application for a token again.
# So 4401 is for who brought no token, and 4403 for who needs another one.
RESTARTING = Close(1012, "The gateway restarts; connect again.", after_changes=True)
TOO_MANY_SOCKETS = Close(1013, "Too many sockets are open; try again later.")
EVICTED = Close(1013, "Too many sockets wait for sign-in; try again later.")
TOO_SLOW = Close(1013, "What was sent to you was not read in time.")
BINARY = Close(4400, "A message must be text.")
NOT_ACKNOWLEDGED = Close(4401, "connection_init comes first.")
TOKEN_ENDED = {why: Close(4403, f"invalid_token: {why}.", after_changes=True) for why in TokenEnd}
TOO_LONG_BEFORE_SIGN_IN = Close(4400, f"Before connection_ack a message has at most {MAX_SHORT_BYTES:,} characters.")
OTHER_SUBPROTOCOL = Close(4406, f"Only {SUBPROTOCOL} is spoken here.")
NOT_INTRODUCED = Close(4408, "connection_init did not come in time.")
ID_IN_USE = Close(4409, "An operation with this id is under way.")
INTRODUCED_TWICE = Close(4429, "connection_init comes once.")
OUR_FAULT = Close(4500, ServerError.code)
GONE = Close(1006, "")
"""Nobody is left to be told."""

MOST_PARSING_WAIT_SECONDS = 2.0
"""How long a long message waits for its turn, which comes when what the client sent before has been paid for."""

CROWDED_SECONDS = 1.0
"""When to try again an operation that was one too many."""

CLOSE_SECONDS = 1.0
"""How long the order to close may wait for a server that lets us wait for the client."""

RESTART_ORDERED = 1012
"""With this code the server tells us, as if the client had gone, that it is about to stop."""


def close_for(error: GatewayError) -> Close:
    """Give the close of a socket whose caller may not come in."""
    match error:
        case Unauthenticated():
            return Close(4401, error.code)
        case InvalidToken() | Forbidden():
            return Close(4403, error.code)
        case RateLimited() | TemporarilyUnavailable():
            return Close(1013, error.code)
        case _:
            return OUR_FAULT


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """What a socket may cost."""

    operations: int
    """Under way at once on one socket."""
    message_bytes: int
    """The largest operation, as over HTTP."""
    init_seconds: float
    """Until it is said who calls."""
    send_seconds: float
    """How long a message waits for a client that does not read."""
    recheck_seconds: float
    """Between two looks at whether the token is still good."""


class GraphQLSocket:
    """Serves `/graphql` to sockets."""

    def __init__(
        self, runner: Runner, limits: SocketLimits, connection_limit: ConnectionLimit, log_operation: LogOperation
    ) -> None:
        self._runner = runner
        self._limits = limits
        self._connection_limit = connection_limit
        self._log_operation = log_operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket, from the upgrade to its end."""
        await receive()  # websocket.connect
        if not _welcome(scope["state"]["services"], scope["state"]["introduction"].origin):
            # Before it is accepted, this is an HTTP answer: 403.
            await send({"type": "websocket.close"})
            return
        # A browser that offered any takes an answer with none for a failure, and would not hear why it is refused.
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
            return OTHER_SUBPROTOCOL
        return TOO_MANY_SOCKETS if self._connection_limit.is_full else None


def _welcome(services: Services, origin: str | None) -> bool:
    """Whether some client has pages there. Whether the caller's has is asked again once it is known who calls."""
    return origin is None or any(origin in origins for origins in services.origins.values())


class _Over(Exception):
    """What the client sent, or that it went, ends the socket."""

    def __init__(self, close: Close) -> None:
        self.close = close


@dataclass(eq=False)
class _Operation:
    id: str
    """The client's name for it; ours is the request id."""
    context: Context
    task: asyncio.Task[None] | None = None
    changes: bool = False
    """Whether it is a mutation: one that has begun is not torn off because nobody listens any more."""
    outcome: str = "stopped"


class WebSocketConnection:
    """One socket: listens to one client, and answers each of its operations as soon as there is an answer.

    There is no queue. An operation waits until its message is taken, and does nothing meanwhile; so what a client that
    does not read can make us keep is one message an operation. When it lets one wait too long, it is sent away.
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
        """The socket's place: among those that have not signed in, and then among its client's."""
        self._log_operation = log_operation
        self._state: dict[str, Any] = scope["state"]
        self._over: asyncio.Future[Close] = asyncio.get_running_loop().create_future()
        self._closed = False
        self._background: list[asyncio.Task[None]] = []
        self._caller: Context | None = None
        self._under_way: set[_Operation] = set()
        self._listened_to: dict[str, _Operation] = {}
        """Those under way of which the client has not said that it has heard enough."""

    # From beginning to end

    async def run(self) -> None:
        """Talk until one side has had enough, and leave nothing running behind."""
        self._state["operations"] = 0
        address = self._state["introduction"].address
        self._place.enter_context(self._connection_limit.unauthenticated(address, lambda: self._end(EVICTED)))
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
            # Whoever stops the process waits no longer.
            await self._close(RESTARTING)
            raise
        finally:
            left = [*self._background, *self._tasks()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            self._place.close()

    def _end(self, close: Close) -> None:
        """Let it end like this, unless it is ending already."""
        if not self._over.done():
            self._over.set_result(close)

    def _tasks(self, *, changes: bool | None = None) -> list[asyncio.Task[None]]:
        return [each.task for each in self._under_way if each.task and changes in {None, each.changes}]

    async def _close(self, close: Close) -> None:
        if self._closed:
            return
        self._closed = True
        if close is not GONE:
            # Where the server has closed it meanwhile, or the client has gone, there is nothing left to do.
            with suppress(OSError, RuntimeError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._send({"type": "websocket.close", "code": close.code, "reason": close.reason})

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(asyncio.create_task(work))

    # Listening

    async def _listen(self) -> None:
        try:
            try:
                async with asyncio.timeout(self._limits.init_seconds):
                    credentials = await self._introduction()
            except TimeoutError:
                raise _Over(NOT_INTRODUCED) from None
            await self._sign_in(credentials)
            while True:
                await self._dispatch(await self._next())
        except _Over as over:
            self._end(over.close)
        except Exception as error:  # noqa: BLE001 - whatever it is, it stays with this socket
            self._runner.known(error, self._state["request_id"])
            self._end(OUR_FAULT)

    async def _next(self) -> Message:
        # A client may have sent thousands of messages at once: before each, the others have their turn.
        await asyncio.sleep(0)
        frame = await self._receive()
        if frame["type"] == "websocket.disconnect":
            raise _Over(RESTARTING if frame["code"] == RESTART_ORDERED else GONE)
        text = frame.get("text")
        if text is None:
            raise _Over(BINARY)
        if self._caller is None:
            if len(text) > MAX_SHORT_BYTES:
                # Parsing costs CPU time, and it is not known yet whose.
                raise _Over(TOO_LONG_BEFORE_SIGN_IN)
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
                    raise _Over(NOT_ACKNOWLEDGED)

    async def _dispatch(self, message: Message) -> None:
        match message:
            case Subscribe():
                await self._subscribe(message)
            case Complete():
                self._stop(message.id)
            case Ping():
                await self._send_message(type="pong")
            case ConnectionInit():
                raise _Over(INTRODUCED_TWICE)

    # Who calls

    async def _sign_in(self, credentials: ConnectionInit) -> None:
        # Programs can send headers with the upgrade, and some can send nothing else; browsers cannot.
        upgrade: Credentials = self._state["introduction"]
        said = upgrade._replace(
            authorization=credentials.authorization or upgrade.authorization,
            stated_brand_id=credentials.stated_brand_id or upgrade.stated_brand_id,
        )
        reauthenticate = partial(authenticate, self._state["services"], said)
        try:
            self._caller = await reauthenticate()
            self._place.close()
            self._place.enter_context(self._connection_limit.slot(self._caller.caller.client_id))
        except GatewayError as error:
            raise _Over(close_for(error)) from None
        self._state["caller"] = self._caller.caller
        if seconds_left(self._caller.caller) <= 0:
            raise _Over(TOKEN_ENDED[TokenEnd.EXPIRED])
        self._in_background(self._watch(self._caller, reauthenticate))
        await self._send_message(type="connection_ack")

    async def _watch(self, context: Context, reauthenticate: Reauthenticate) -> None:
        """End the socket when the token ends."""
        report = partial(self._runner.known, request_id=context.request_id)
        why = await watch_token(context.caller, reauthenticate, self._limits.recheck_seconds, report)
        self._end(TOKEN_ENDED[why])

    # Operations

    async def _subscribe(self, message: Subscribe) -> None:
        assert self._caller is not None, "who calls is known before anything is run"
        if message.id in self._listened_to:
            raise _Over(ID_IN_USE)
        self._state["operations"] += 1
        # A number of ours: the client's own id is any text, and this one is logged and audited.
        request_id = f"{self._state['request_id']}.{self._state['operations']}"
        context = Context(self._caller.caller, self._caller.stated_brand_id, request_id, self._caller.services)
        operation = _Operation(message.id, context)
        self._listened_to[message.id] = operation
        if len(self._under_way) >= self._limits.operations:
            # Refused on the spot, so that nothing more is heard until the refusal is taken.
            await self._run(operation, message, crowded=True)
            return
        operation.task = asyncio.create_task(self._run(operation, message))
        self._under_way.add(operation)
        operation.task.add_done_callback(lambda _: self._under_way.discard(operation))

    def _stop(self, operation_id: str) -> None:
        # One that is over already is no mistake: its last message and this one met on the way.
        operation = self._listened_to.pop(operation_id, None)
        if operation is not None and operation.task is not None and not operation.changes:
            operation.task.cancel()

    async def _run(self, operation: _Operation, message: Subscribe, *, crowded: bool = False) -> None:
        started = time.perf_counter()
        try:
            await self._answer(operation, message, crowded=crowded)
        except Exception as error:  # noqa: BLE001 - whatever it is, it stays with this operation
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
        """Give what is asked for. Raises what every door raises before it runs anything, in the same order."""
        reservation = await reserve(operation.context)
        try:
            if crowded:
                raise RateLimited(CROWDED_SECONDS)
            if message.size > self._limits.message_bytes:
                raise PayloadTooLarge("The message is larger than this gateway reads.")
            ask = parse_request(message.payload)
        except GatewayError as error:
            raise reservation.refuse(error) from None
        document, price = await charge(self._runner, ask, operation.context, reservation)
        operation.changes = price.kind is Kind.WRITES
        return ask, document

    # Speaking

    async def _tell(self, operation: _Operation, **members: Any) -> None:
        if self._listened_to.get(operation.id) is operation:
            await self._send_message(id=operation.id, **members)

    async def _finish(self, operation: _Operation, errors: list[dict[str, Any]] | None = None) -> None:
        """Say an operation's last message."""
        operation.outcome = errors[0]["extensions"]["code"] if errors else "complete"
        if self._listened_to.get(operation.id) is operation:
            # Before it is said: whoever hears it may use the id again.
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
            self._end(TOO_SLOW)
        except (OSError, RuntimeError):
            # The client has gone, or the server has sent it away on its own account.
            self._end(GONE)
