"""The GraphQL door as an ASGI endpoint: reads a request, runs it, phrases the answer.

Source: the GraphQL over HTTP specification. Two media types are spoken. `application/graphql-response+json` tells the
outcome by its status too; `application/json` is for older clients, which take any status but 200 for a broken network:
there, whatever was understood as GraphQL is answered with 200.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson
import strawberry
from graphql import ExecutionResult, GraphQLError, OperationType, execute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from strawberry.execution import optimized_is_awaitable

from resolvers import json_text
from resolvers.context import Context, sign_in
from resolvers.errors import (
    GatewayError,
    InvalidInput,
    MalformedBody,
    MethodNotAllowed,
    NotAcceptable,
    ServerError,
    UnsupportedMediaType,
    Violation,
)
from schema.documents import Documents, explain_variables, operation_of
from schema.errors import phrase
from schema.loaders import Loaders
from schema.types import Operation

GRAPHQL_RESPONSE = "application/graphql-response+json"
JSON = "application/json"

HttpForm = Callable[[GatewayError], tuple[int, Mapping[str, str]]]
"""Gives the status and the headers of a request that was refused as a whole: the same at both doors."""

Report = Callable[[BaseException, str], None]
"""Writes down an exception that nobody expected, under the request's id."""


class Ask(NamedTuple):
    """What a client asks for."""

    query: str
    variables: Mapping[str, Any]
    operation_name: str | None


class GraphQLEndpoint:
    """Serves `/graphql`."""

    def __init__(self, schema: strawberry.Schema, http_form: HttpForm, report: Report) -> None:
        self._schema = schema._schema  # noqa: SLF001 - Strawberry builds graphql-core's schema; we run it ourselves
        self._documents = Documents(self._schema)
        self._http_form = http_form
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        request = Request(scope, receive)
        response = await self._respond(request)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        media_type = _accepted(request.headers.get("accept", ""))
        try:
            context = await self._signed_in(request)
            if media_type is None:
                raise NotAcceptable
            if request.method not in {"GET", "POST"}:
                raise MethodNotAllowed(["GET", "POST"])
            ask = _ask_of_url(request) if request.method == "GET" else _ask_of_body(await _json_body(request))
            understood, body = await self._run(ask, context, read_only=request.method == "GET")
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer in GraphQL's shape
            refusal = self._known(error, request.state.request_id)
            status, headers = self._http_form(refusal)
            return _answer({"errors": [phrase(refusal, request.state.request_id)]}, status, media_type or JSON, headers)
        return _answer(body, 200 if understood or media_type == JSON else 400, media_type)

    async def _signed_in(self, request: Request) -> Context:
        context = await sign_in(
            request.state.services,
            authorization=request.headers.get("authorization"),
            stated_brand_id=request.headers.get("x-brand-id"),
            request_id=request.state.request_id,
            origin=request.state.foreign_origin,
        )
        request.state.caller = context.caller
        return context

    async def _run(self, ask: Ask, context: Context, *, read_only: bool) -> tuple[bool, dict[str, Any]]:
        """Run an operation. Gives whether it could be run at all, and the body of the answer."""
        document = self._documents.read(ask.query)
        if document.ast is None or document.errors:
            return False, {"errors": [_document_error(error, context) for error in document.errors]}
        try:
            operation = operation_of(document.ast, ask.operation_name)
        except InvalidInput as error:
            return False, {"errors": [phrase(error, context.request_id)]}
        if read_only and operation.operation is not OperationType.QUERY:
            raise MethodNotAllowed(["POST"])
        result = execute(
            self._schema,
            document.ast,
            context_value=Operation(context, Loaders(context)),
            variable_values=dict(ask.variables),
            operation_name=ask.operation_name,
            is_awaitable=optimized_is_awaitable,  # type: ignore[arg-type]
        )
        if not isinstance(result, ExecutionResult):
            result = await result
        if result.data is None and all(error.path is None for error in result.errors or ()):
            violations = explain_variables(self._schema, operation, ask.variables)
            refusal = InvalidInput(violations or [Violation("/variables", "type", "do not fit their types")])
            return False, {"errors": [phrase(refusal, context.request_id)]}
        body: dict[str, Any] = {"data": result.data}
        if result.errors:
            body = {"errors": [self._field_error(error, context) for error in result.errors]} | body
        return True, body

    def _field_error(self, error: GraphQLError, context: Context) -> dict[str, Any]:
        # With nothing behind it, graphql-core itself refused an argument, in words that may quote it.
        argument = InvalidInput([Violation("", "type", "An argument does not fit its type.")])
        refusal = self._known(error.original_error or argument, context.request_id)
        return phrase(refusal, context.request_id) | {"path": error.path, "locations": _locations(error)}

    def _known(self, error: BaseException, request_id: str) -> GatewayError:
        """Give the error itself if it is one of ours; else write it down and give `ServerError`."""
        if isinstance(error, GatewayError):
            return error
        self._report(error, request_id)
        return ServerError()


def _document_error(error: GraphQLError, context: Context) -> dict[str, Any]:
    refusal = InvalidInput([Violation("/query", "document", error.message)])
    return phrase(refusal, context.request_id) | {"message": error.message, "locations": _locations(error)}


def _locations(error: GraphQLError) -> list[dict[str, int]]:
    return [{"line": each.line, "column": each.column} for each in error.locations or ()]


def _accepted(accept: str) -> str | None:
    """Choose the media type of the answer, or None where the client takes neither."""
    ranges = [part.partition(";")[0].strip().lower() for part in accept.split(",") if part.strip()]
    if not ranges:
        return JSON
    for media_type in ranges:
        if media_type in {GRAPHQL_RESPONSE, JSON}:
            return media_type
    return JSON if any(each in {"*/*", "application/*"} for each in ranges) else None


async def _json_body(request: Request) -> Any:
    media_type, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].partition(";")[0].strip('" ')
    if media_type.strip() != JSON or charset not in {"", "utf-8"}:
        raise UnsupportedMediaType
    return json_text.read(await request.body())


def _ask_of_url(request: Request) -> Ask:
    members: dict[str, Any] = dict(request.query_params)
    if "variables" in members:
        members["variables"] = json_text.read(members["variables"])
    return _ask_of_body(members)


def _ask_of_body(members: Any) -> Ask:
    if not isinstance(members, dict):
        raise MalformedBody("object", "The body must be a JSON object.")
    query = members.get("query")
    variables = members.get("variables")
    operation_name = members.get("operationName")
    violations: list[Violation] = []
    if not isinstance(query, str) or json_text.problem_with(query):
        violations.append(Violation("/query", "string", "must be a GraphQL document"))
    if not isinstance(variables, dict | None):
        violations.append(Violation("/variables", "object", "must be an object"))
    if not isinstance(operation_name, str | None) or json_text.problem_with(operation_name or ""):
        violations.append(Violation("/operationName", "string", "must be a name"))
    if not isinstance(members.get("extensions"), dict | None):
        violations.append(Violation("/extensions", "object", "must be an object"))
    if violations:
        raise InvalidInput(violations)
    return Ask(query, variables or {}, operation_name)  # type: ignore[arg-type]


def _answer(
    body: dict[str, Any], status: int, media_type: str | None, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        orjson.dumps(body, default=str),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        f"{media_type}; charset=utf-8",
    )
