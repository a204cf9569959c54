"""GraphQL over HTTP, as an ASGI endpoint.

Source: the GraphQL over HTTP specification. With `application/graphql-response+json`, the status code reports the
outcome too. `application/json` is for older clients, which treat any status but 200 as a network failure. With it, each
request that was parsed as GraphQL is answered with 200. `text/event-stream` is for subscriptions.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from resolvers import json_text
from resolvers.context import Context, authenticate
from resolvers.errors import (
    GatewayError,
    InsufficientScope,
    MethodNotAllowed,
    NotAcceptable,
    UnsupportedMediaType,
)
from resolvers.media_ranges import media_ranges
from resolvers.request_state import state_of
from schema.charging import MAX_SHORT_BYTES, AuditRecord, Reservation, charge, reserve
from schema.documents.parse import Document
from schema.errors import phrase, refuse
from schema.execution import (
    GraphQLRequest,
    GraphQLResponse,
    Runner,
    add_marker,
    parse_request,
    serialize,
    subscription_of,
)
from schema.transport.batching import Operations, operations_of, run_batch
from schema.transport.long_lived import ConnectionLimit, LogOperation, Reauthenticate
from schema.transport.sse import EVENT_STREAM, HEADERS, EventStream, StreamLimits, at_once

GRAPHQL_RESPONSE = "application/graphql-response+json"
JSON = "application/json"

HttpForm = Callable[[GatewayError], tuple[int, Mapping[str, str]]]
"""Returns the status and the headers for a request that was refused as a whole. GraphQL and REST share it."""


class GraphQLEndpoint:
    """Serves `/graphql`."""

    def __init__(
        self,
        runner: Runner,
        http_form: HttpForm,
        *,
        limits: StreamLimits,
        connection_limit: ConnectionLimit,
        log_operation: LogOperation,
        batch_operations: int,
    ) -> None:
        self._runner = runner
        self._http_form = http_form
        self._limits = limits
        self._connection_limit = connection_limit
        self._log_operation = log_operation
        self._batch_operations = batch_operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request."""
        response = await self._respond(Request(scope, receive))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> ASGIApp:
        state = request.scope["state"]
        accepted = _accepted(state["head"].get("accept", ""))
        media_type = next(iter(accepted), None)
        try:
            reauthenticate = partial(authenticate, state["services"], state["introduction"])
            state["context"] = context = await reauthenticate()
            state["caller"] = context.caller
            note = partial(state.__setitem__, "allowance")
            reservation = await reserve(context)
            note(reservation.allowance)
            try:
                ask = await self._ask(request, context, media_type, reservation)
            except GatewayError as error:
                raise reservation.refuse(error) from None
            if not isinstance(ask, GraphQLRequest):
                # Each operation of a batch reserves its own read.
                await reservation.release()
                return await self._batch(ask, context, media_type, note)
            document, _ = await charge(self._runner, ask, context, reservation, note)
            if media_type == EVENT_STREAM or (EVENT_STREAM in accepted and subscription_of(document, ask)):
                return await self._stream(request, ask, document, context, reauthenticate)
            is_well_formed, body, _ = await self._runner.run(ask, document, context, read_only=request.method == "GET")
        except ClientDisconnect:
            raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the client gets a response in any case
            refusal = self._runner.known(error, state["request_id"])
            status, headers = self._http_form(refusal)
            known: Context | None = state.get("context")
            refused = refuse(refusal, known) if known else phrase(refusal, state["request_id"])
            body = {"errors": [refused]}
            add_marker(body, await known.marker() if known else None)
            return _answer(body, status, _of_one_answer(media_type), headers)
        return _answer(body, 200 if is_well_formed or media_type == JSON else 400, media_type, self._challenge(body))

    async def _stream(
        self,
        request: Request,
        ask: GraphQLRequest,
        document: Document,
        context: Context,
        reauthenticate: Reauthenticate,
    ) -> ASGIApp:
        begun = await self._runner.start(
            ask,
            document,
            context,
            read_only=request.method == "GET",
            last_event_id=state_of(request.scope)["head"].get("last-event-id"),
        )
        if isinstance(begun, GraphQLResponse):
            # The SSE protocol reports even refused operations as events, because a browser's EventSource hides the
            # status and the body of an error response.
            return Response(at_once(begun), 200, {**HEADERS, **self._challenge(begun.body)}, EVENT_STREAM)
        if (refusal := self._connection_limit.refusal(context.caller.client_id)) is not None:
            raise refusal
        return EventStream(
            begun,
            context,
            reauthenticate,
            runner=self._runner,
            limits=self._limits,
            connection_limit=self._connection_limit,
            log_operation=self._log_operation,
        )

    async def _ask(
        self, request: Request, context: Context, media_type: str | None, reservation: Reservation
    ) -> GraphQLRequest | Operations:
        if media_type is None:
            raise NotAcceptable
        if request.method not in {"GET", "POST"}:
            raise MethodNotAllowed(["GET", "POST"])
        if request.method == "GET":
            return _ask_of_url(request)
        body = await _json_body(request)
        if len(body) > MAX_SHORT_BYTES:
            await reservation.require_parsing()
        with context.parsing():
            sent = json_text.read(body)
        if not isinstance(sent, list):
            return parse_request(sent)
        operations = operations_of(sent, self._batch_operations)
        context.require_one_brand()
        return operations

    async def _batch(
        self, operations: Operations, context: Context, media_type: str | None, note: AuditRecord
    ) -> Response:
        bodies = await run_batch(operations, self._runner, context, note)
        # The status is always 200, because each operation's body reports its own outcome.
        challenge = self._challenge({"errors": [each for body in bodies for each in body.get("errors", ())]})
        return _answer(bodies, 200, _of_one_answer(media_type), challenge)

    def _challenge(self, body: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the headers with the RFC 6750 challenge for the first field that lacked a scope."""
        if "errors" not in body:
            return {}
        scopes = (error["extensions"].get("scopes") for error in body["errors"])
        missing = next(filter(None, scopes), None)
        return self._http_form(InsufficientScope(missing))[1] if missing else {}


@lru_cache(256)
def _accepted(accept: str) -> Sequence[str]:
    """Return the supported media types that the client accepts, in order of preference."""
    qualities = media_ranges(accept)
    if not qualities:
        return [JSON]
    accepted: list[str] = []
    for media_type in sorted(
        (each for each, quality in qualities.items() if quality), key=lambda each: -qualities[each]
    ):
        if media_type in {GRAPHQL_RESPONSE, JSON, EVENT_STREAM}:
            accepted.append(media_type)
        elif media_type in {"*/*", "application/*"} and qualities.get(JSON) != 0:
            accepted.append(JSON)
    return accepted


def _of_one_answer(media_type: str | None) -> str:
    """Return the media type of a single response, for which `text/event-stream` is not suitable."""
    return JSON if media_type in {None, EVENT_STREAM} else media_type


async def _json_body(request: Request) -> bytes:
    if not state_of(request.scope)["sends_json"]:
        raise UnsupportedMediaType
    return await request.body()


def _ask_of_url(request: Request) -> GraphQLRequest:
    members: dict[str, Any] = {name: text for name, text in request.query_params.items() if text}
    for name in members.keys() & {"variables", "extensions"}:
        members[name] = json_text.read(members[name], f"The parameter {name}")
    return parse_request(members)


def _answer(
    body: dict[str, Any] | list[dict[str, Any]],
    status: int,
    media_type: str | None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    response = Response(serialize(body), status, headers)
    response.raw_headers += _fields(media_type)
    return response


@cache
def _fields(media_type: str | None) -> Sequence[tuple[bytes, bytes]]:
    """Return the header fields common to all responses of this media type. Responses must not be cached."""
    return [(b"content-type", f"{media_type}; charset=utf-8".encode()), (b"cache-control", b"no-store")]
