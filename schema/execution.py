"""One operation, from what a client asks for to the body of its answer: the same over HTTP and over a socket."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import orjson
import strawberry
from graphql import (
    DocumentNode,
    ExecutionResult,
    Executor,
    FieldNode,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    create_source_event_stream,
    execute,
    execute_subscription_event,
    map_source_to_response_event,
)
from strawberry.execution import optimized_is_awaitable

from resolvers import json_text
from resolvers.context import Context
from resolvers.errors import GatewayError, InvalidInput, MalformedBody, MethodNotAllowed, ServerError, Violation
from resolvers.rules import RuleId
from schema.cost import cost_of
from schema.documents import Document, Documents, explain_variables, operation_of
from schema.errors import refuse
from schema.loaders import Loaders
from schema.types import Operation

Report = Callable[[BaseException, str], None]
"""Writes down an exception that nobody expected, under the request's id."""


class Ask(NamedTuple):
    """What a client asks for."""

    query: str
    variables: Mapping[str, Any]
    operation_name: str | None


def ask_of(members: Any) -> Ask:
    """Read what a client asks for. Raises `MalformedBody` or `InvalidInput`."""
    if not isinstance(members, dict):
        raise MalformedBody("object", "The body must be a JSON object.", json_text.shape_of(members))
    query = members.get("query")
    variables = members.get("variables")
    operation_name = members.get("operationName")
    violations: list[Violation] = []
    if not isinstance(query, str) or json_text.problem_with(query):
        violations.append(_misfit("query", "string", "must be a GraphQL document", members))
    if not isinstance(variables, dict | None):
        violations.append(_misfit("variables", "object", "must be an object", members))
    if not isinstance(operation_name, str | None) or json_text.problem_with(operation_name or ""):
        violations.append(_misfit("operationName", "string", "must be a name", members))
    if not isinstance(members.get("extensions"), dict | None):
        violations.append(_misfit("extensions", "object", "must be an object", members))
    if violations:
        raise InvalidInput(violations)
    return Ask(query, variables or {}, operation_name)  # type: ignore[arg-type]


def _misfit(name: str, rule: RuleId, message: str, members: Mapping[str, Any]) -> Violation:
    received = json_text.shape_of(members[name]) if name in members else None
    return Violation(f"/{name}", rule, message, received=received)


class Answer(NamedTuple):
    """What came of an operation: whether it could be run at all, and the body that says so."""

    understood: bool
    body: dict[str, Any]


def written(body: Any) -> bytes:
    """Write a body, or what is wrapped around it, as JSON."""
    return orjson.dumps(body, default=str)


class Runner:
    """Runs the operations of one schema, whichever way they came. Loaders live as long as one operation or event."""

    def __init__(self, schema: strawberry.Schema, report: Report) -> None:
        self._schema = schema._schema  # noqa: SLF001 - Strawberry builds graphql-core's schema; we run it ourselves
        self._documents = Documents(self._schema)
        self._report = report

    def read(self, text: str) -> Document:
        """Parse and validate a document."""
        return self._documents.read(text)

    async def run(self, ask: Ask, document: Document, context: Context, *, read_only: bool = False) -> Answer:
        """Run a query or a mutation. Raises `MethodNotAllowed` for a mutation where only reading is allowed."""
        if document.ast is None or document.errors:
            return Answer(False, {"errors": [_document_error(error, context) for error in document.errors]})
        try:
            operation = operation_of(document.ast, ask.operation_name)
        except InvalidInput as error:
            return _refused(error, context)
        if operation.operation is OperationType.SUBSCRIPTION:
            return _refused(InvalidInput([Violation("/query", "subscription", "needs a WebSocket")]), context)
        if read_only and operation.operation is not OperationType.QUERY:
            raise MethodNotAllowed(["POST"])
        if too_dear := _too_dear(document.ast, operation, ask, context):
            return too_dear
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
            return self._variables_refused(operation, ask, context)
        changes = operation.operation is OperationType.MUTATION
        answer = self._answer(result, context, changes=changes)
        if changes and result.data is None and not _is_one_field(operation):
            # The first of several may have been kept although the last one's refusal leaves nothing to show for it.
            for told in answer.body["errors"]:
                told["extensions"]["recorded"] = "unknown"
        return answer

    async def stream(self, ask: Ask, document: Document, context: Context) -> AsyncGenerator[Answer, None]:
        """Run an operation of any kind: a query or a mutation gives one answer, a subscription one for each event.

        Raises what the source of the events raises.
        """
        operation = _subscription(document, ask)
        if operation is None:
            yield await self.run(ask, document, context)
            return
        assert document.ast is not None, "a document that has a subscription was read"
        if too_dear := _too_dear(document.ast, operation, ask, context):
            yield too_dear
            return
        executor = Executor.build(
            self._schema,
            document.ast,
            context_value=Operation(context, Loaders(context)),
            raw_variable_values=dict(ask.variables),
            operation_name=ask.operation_name,
            is_awaitable=optimized_is_awaitable,  # type: ignore[arg-type]
        )
        if not isinstance(executor, Executor):
            yield self._variables_refused(operation, ask, context)
            return
        source = create_source_event_stream(executor)
        if executor.is_awaitable(source):
            source = await source
        if isinstance(source, ExecutionResult):
            yield self._answer(source, context)._replace(understood=False)
            return

        def execute_event(event: Executor[Any]) -> Any:
            # A loader that lived as long as the stream would show to each event what it read for the first.
            event.context_value = Operation(context, Loaders(context))
            return execute_subscription_event(event)

        async with aclosing(map_source_to_response_event(executor, source, execute_event)) as results:  # type: ignore[arg-type]
            async for result in results:
                yield self._answer(result, context)

    def known(self, error: BaseException, request_id: str) -> GatewayError:
        """Give the error itself if it is one of ours; else write it down and give `ServerError`."""
        if isinstance(error, GatewayError):
            return error
        self._report(error, request_id)
        return ServerError()

    def _answer(self, result: ExecutionResult, context: Context, *, changes: bool = False) -> Answer:
        body: dict[str, Any] = {"data": result.data}
        if result.errors:
            body = {"errors": [self._field_error(error, context, changes=changes) for error in result.errors]} | body
        return Answer(True, body)

    def _variables_refused(self, operation: OperationDefinitionNode, ask: Ask, context: Context) -> Answer:
        violations = explain_variables(self._schema, operation, ask.variables)
        return _refused(
            InvalidInput(violations or [Violation("/variables", "type", "do not fit their types")]), context
        )

    def _field_error(self, error: GraphQLError, context: Context, *, changes: bool) -> dict[str, Any]:
        # With nothing behind it, graphql-core itself refused an argument, in words that may quote it.
        argument = InvalidInput([Violation("", "type", "An argument does not fit its type.")])
        refusal = self.known(error.original_error or argument, context.request_id)
        told = refuse(refusal, context)
        if changes and len(error.path or ()) > 1:
            # The change itself is done: what was refused is to read on from what it gave.
            told["extensions"]["recorded"] = "unknown"
        return told | {"path": error.path} | _located(error)


def _is_one_field(operation: OperationDefinitionNode) -> bool:
    selections = operation.selection_set.selections
    return len(selections) == 1 and isinstance(selections[0], FieldNode)


def _subscription(document: Document, ask: Ask) -> OperationDefinitionNode | None:
    """Give the operation that is asked for if it is a subscription that can be run."""
    if document.ast is None or document.errors:
        return None
    try:
        operation = operation_of(document.ast, ask.operation_name)
    except InvalidInput:
        return None
    return operation if operation.operation is OperationType.SUBSCRIPTION else None


def _too_dear(document: DocumentNode, operation: OperationDefinitionNode, ask: Ask, context: Context) -> Answer | None:
    """Refuse an operation that could give too many objects; of a subscription, for one event."""
    cost, most = cost_of(document, operation, ask.variables, context.services.page_limits), context.services.max_cost
    if cost <= most:
        return None
    told = f"could give {cost:,} objects, and {most:,} is the most; ask for smaller pages"
    return _refused(InvalidInput([Violation("/query", "cost", told, maximum=most)]), context)


def _refused(error: GatewayError, context: Context) -> Answer:
    return Answer(False, {"errors": [refuse(error, context)]})


def _document_error(error: GraphQLError, context: Context) -> dict[str, Any]:
    refusal = InvalidInput([Violation("/query", "document", error.message)])
    return refuse(refusal, context) | {"message": error.message} | _located(error)


def _located(error: GraphQLError) -> dict[str, Any]:
    # A list of locations must not be empty (GraphQL specification, section 7.1.2): without one there is no member.
    locations = [{"line": each.line, "column": each.column} for each in error.locations or ()]
    return {"locations": locations} if locations else {}
