"""The GraphQL door as an ASGI endpoint: reads a request, runs it, phrases the answer.

Source: the GraphQL over HTTP specification. Two media types are spoken. `application/graphql-response+json` tells the
outcome by its status too; `application/json` is for older clients, which take any status but 200 for a broken network:
there, whatever was understood as GraphQL is answered with 200.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from resolvers import json_text
from resolvers.context import Context, sign_in
from resolvers.errors import GatewayError, InsufficientScope, MethodNotAllowed, NotAcceptable, UnsupportedMediaType
from schema.errors import phrase, refuse
from schema.execution import Ask, Runner, ask_of, written
from schema.rates import ONE_READ, Price, price_of

GRAPHQL_RESPONSE = "application/graphql-response+json"
JSON = "application/json"

HttpForm = Callable[[GatewayError], tuple[int, Mapping[str, str]]]
"""Gives the status and the headers of a request that was refused as a whole: the same at both doors."""


class GraphQLEndpoint:
    """Serves `/graphql`."""

    def __init__(self, runner: Runner, http_form: HttpForm) -> None:
        self._runner = runner
        self._http_form = http_form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        request = Request(scope, receive)
        response = await self._respond(request)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        media_type = _accepted(request.headers.get("accept", ""))
        try:
            context = await self._signed_in(request)
            try:
                ask = await _ask(request, media_type)
            except GatewayError:
                # How often comes before what was sent, which here tells whether it is a read or a write.
                await _admit(request, context, ONE_READ)
                raise
            document = self._runner.read(ask.query)
            await _admit(request, context, price_of(document, ask.operation_name))
            understood, body = await self._runner.run(ask, document, context, read_only=request.method == "GET")
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer in GraphQL's shape
            refusal = self._runner.known(error, request.state.request_id)
            status, headers = self._http_form(refusal)
            known: Context | None = getattr(request.state, "context", None)
            told = refuse(refusal, known) if known else phrase(refusal, request.state.request_id)
            return _answer({"errors": [told]}, status, media_type or JSON, headers)
        return _answer(body, 200 if understood or media_type == JSON else 400, media_type, self._challenge(body))

    def _challenge(self, body: Mapping[str, Any]) -> Mapping[str, str]:
        """Give the challenge of RFC 6750 for the first field that a scope was missing for."""
        scopes = (error["extensions"].get("scopes") for error in body.get("errors", ()))
        missing = next(filter(None, scopes), None)
        return self._http_form(InsufficientScope(missing))[1] if missing else {}

    async def _signed_in(self, request: Request) -> Context:
        context = await sign_in(
            request.state.services,
            authorization=request.headers.get("authorization"),
            stated_brand_id=request.headers.get("x-brand-id"),
            request_id=request.state.request_id,
            origin=request.state.foreign_origin,
            address=request.client.host if request.client else None,
        )
        request.state.caller = context.caller
        request.state.context = context
        return context


def _accepted(accept: str) -> str | None:
    """Choose the media type of the answer, the one liked best, or None where the client takes neither."""
    liked: dict[str, float] = {}
    for part in filter(str.strip, accept.split(",")):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((each[2:] for each in parameters if re.fullmatch(r"q=[01](\.[0-9]{0,3})?", each)), "1")
        liked[media_type] = float(quality)
    if not liked:
        return JSON
    for media_type in sorted((each for each, quality in liked.items() if quality), key=lambda each: -liked[each]):
        if media_type in {GRAPHQL_RESPONSE, JSON}:
            return media_type
        if media_type in {"*/*", "application/*"} and liked.get(JSON) != 0:
            return JSON
    return None


async def _admit(request: Request, context: Context, price: Price) -> None:
    """Return if the caller does not ask too often, nor for a brand that its token is not for."""
    request.state.allowance = allowance = await context.spend(price.kind, price.units)
    allowance.require()
    context.require_one_brand()


async def _ask(request: Request, media_type: str | None) -> Ask:
    if media_type is None:
        raise NotAcceptable
    if request.method not in {"GET", "POST"}:
        raise MethodNotAllowed(["GET", "POST"])
    return _ask_of_url(request) if request.method == "GET" else ask_of(await _json_body(request))


async def _json_body(request: Request) -> Any:
    media_type, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].partition(";")[0].strip('" ')
    coding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if media_type.strip() != JSON or charset not in {"", "utf-8"} or coding not in {"", "identity"}:
        raise UnsupportedMediaType
    return json_text.read(await request.body())


def _ask_of_url(request: Request) -> Ask:
    members: dict[str, Any] = {name: text for name, text in request.query_params.items() if text}
    for name in members.keys() & {"variables", "extensions"}:
        members[name] = json_text.read(members[name])
    return ask_of(members)


def _answer(
    body: dict[str, Any], status: int, media_type: str | None, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        written(body),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        f"{media_type}; charset=utf-8",
    )
