"""Run one operation, from the parsed request to the response body. HTTP, SSE and WebSocket share this module."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
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
from resolvers.client_semaphores import Turns
from resolvers.commands import misspelt
from resolvers.context import Context
from resolvers.errors import (
    AnswerMemoryFull,
    AnswerTooLarge,
    CurrentVersionHidden,
    GatewayError,
    InvalidInput,
    MalformedBody,
    MethodNotAllowed,
    OutcomeUnknown,
    ServerError,
    Stopped,
    Violation,
)
from resolvers.rules import RuleId
from resolvers.spelling import near_misses
from schema.documents.cost import Cost
from schema.documents.limits import LimitViolation
from schema.documents.operation import PreparedOperation
from schema.documents.parse import Document, DocumentRules, explain_variables
from schema.documents.policy import Admission, LogBreach, LogUnknown
from schema.errors import refuse
from schema.fast_executor import QuickExecutor
from schema.loaders import Loaders
from schema.plans.query_plan import AnyPlan, Plan, plan_of
from schema.plans.selection import Unplannable
from schema.types import OperationContext

Report = Callable[[BaseException, str], None]
"""Logs an unexpected exception with the request's id."""


EVENTS_AT_ONCE = 4
"""Maximum number of subscription events of one client that this process executes concurrently."""

APOLLO_ID = "/extensions/persistedQuery/sha256Hash"


class GraphQLRequest(NamedTuple):
    """A GraphQL request: a document by its text, or by the id of a trusted document."""

    query: str | None
    variables: Mapping[str, Any]
    operation_name: str | None
    document_id: str | None = None
    apollo: bool = False
    """Whether the id came in Apollo's `persistedQuery` extension; Apollo's clients expect Apollo's error messages."""
    wants_cost: bool = False
    explain: bool = False
    """Whether the client requests PostgreSQL's execution plan; ignored unless the runner `explains`."""
    consistency: str | None = None
    """The marker of an earlier change, which the operation must see."""


# Source: GraphQL over HTTP, section 5.1; appendix A for `documentId`.
MEMBERS = frozenset({"query", "variables", "operationName", "extensions", "documentId"})


def parse_request(members: Any) -> GraphQLRequest:
    """Parse a request from its JSON members. Raise `MalformedBody` or `InvalidInput`."""
    if not isinstance(members, dict):
        raise MalformedBody("object", "The body must be a JSON object.", json_text.shape_of(members))
    query = members.get("query")
    variables = members.get("variables")
    operation_name = members.get("operationName")
    extensions = members.get("extensions")
    id_pointer, document_id = _document_id(members)
    # A misspelt member, such as `variables`, would be ignored and change the meaning of the operation.
    violations = [misspelt(right) for right in near_misses(members, MEMBERS) if right not in members]
    if not _is_text(document_id):
        violations.append(Violation(id_pointer, "string", "must be the id of a document"))
    if (query is None and document_id is None) or not _is_text(query):
        violations.append(_misfit("query", "string", "must be a GraphQL document", members))
    if variables is not None and not isinstance(variables, dict):
        violations.append(_misfit("variables", "object", "must be an object", members))
    if not _is_text(operation_name):
        violations.append(_misfit("operationName", "string", "must be a name", members))
    if extensions is not None and not isinstance(extensions, dict):
        violations.append(_misfit("extensions", "object", "must be an object", members))
    consistency = extensions.get("consistency") if isinstance(extensions, dict) else None
    if not _is_text(consistency):
        received = json_text.shape_of(consistency)
        violations.append(Violation("/extensions/consistency", "string", "must be a marker", received=received))
    if violations:
        raise InvalidInput(violations)
    wants_cost = (extensions or {}).get("cost") is True
    explain = (extensions or {}).get("explain") is True
    return GraphQLRequest(
        query, variables or {}, operation_name, document_id, id_pointer == APOLLO_ID, wants_cost, explain, consistency
    )


def _is_text(value: Any) -> bool:
    """Whether `value` is None or a string that JSON can represent."""
    return value is None or (isinstance(value, str) and not json_text.problem_with(value))


def _document_id(members: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the JSON pointer of a trusted document's id, and the id or None.

    Sources: GraphQL over HTTP, appendix A; `extensions.persistedQuery` of Apollo's clients; `doc_id` and `id`, the
    names in Relay's examples. The last two are read as ids only if the request has no document text.
    """
    extensions = members.get("extensions")
    persisted = extensions.get("persistedQuery") if isinstance(extensions, dict) else None
    if isinstance(persisted, dict) and persisted.get("sha256Hash") is not None and members.get("documentId") is None:
        return APOLLO_ID, persisted["sha256Hash"]
    names = ["documentId"] if members.get("query") is not None else ["documentId", "doc_id", "id"]
    return next(((f"/{name}", members[name]) for name in names if members.get(name) is not None), ("/documentId", None))


def _misfit(name: str, rule: RuleId, message: str, members: Mapping[str, Any]) -> Violation:
    received = json_text.shape_of(members[name]) if name in members else None
    return Violation(f"/{name}", rule, message, received=received)


class GraphQLResponse(NamedTuple):
    """The response to an operation: its body, and whether the operation was executed or refused as a whole."""

    is_well_formed: bool
    body: dict[str, Any]
    cursor: str | None = None
    """The feed cursor of the event from which a subscriber resumes; None if the response is not for an event."""


def serialize(body: Any) -> bytes:
    """Serialize a response body, or a message that contains one, as JSON. Date-times are in UTC, with `Z`."""
    return orjson.dumps(body, default=str, option=orjson.OPT_UTC_Z)


class Runner:
    """Runs the operations of one schema for all transports. Each operation or event has its own loaders."""

    def __init__(
        self,
        schema: strawberry.Schema,
        report: Report,
        rules: DocumentRules,
        log_breach: LogBreach,
        log_unknown: LogUnknown,
        *,
        explains: bool = False,
    ) -> None:
        self._schema = schema._schema  # noqa: SLF001 - Strawberry builds graphql-core's schema; `Runner` executes it
        self._admission = Admission(self._schema, rules, log_breach, log_unknown)
        self._report = report
        self._explains = explains
        self._event_turns = Turns(EVENTS_AT_ONCE)

    def read(self, ask: GraphQLRequest, context: Context) -> Document:
        """Return the requested document, with its errors for this caller.

        Raises `InsufficientScope` if the document introspects the schema and the caller has no permission to do so.
        """
        return self._admission.find(ask.query, ask.document_id, context, apollo=ask.apollo)

    def knows(self, ask: GraphQLRequest) -> bool:
        """Whether the requested document can be run or refused without parsing."""
        return self._admission.knows(ask.query, ask.document_id)

    async def run(
        self, ask: GraphQLRequest, document: Document, context: Context, *, read_only: bool = False
    ) -> GraphQLResponse:
        """Run a query or a mutation. Raise `MethodNotAllowed` for a mutation if `read_only`."""
        answer = await self._run(ask, document, context, read_only=read_only)
        add_marker(answer.body, await context.marker())
        return answer

    async def _run(
        self, ask: GraphQLRequest, document: Document, context: Context, *, read_only: bool
    ) -> GraphQLResponse:
        if document.ast is None or document.errors:
            return GraphQLResponse(False, {"errors": [_document_error(error, context) for error in document.errors]})
        try:
            prepared = document.operation(ask.operation_name)
        except InvalidInput as error:
            return _refused(error, context)
        operation = prepared.node
        if operation.operation is OperationType.SUBSCRIPTION:
            return _refused(
                InvalidInput([Violation("/query", "subscription", "requires WebSocket or server-sent events")]), context
            )
        if read_only and operation.operation is not OperationType.QUERY:
            raise MethodNotAllowed(["POST"])
        if operation.operation is OperationType.MUTATION:
            context.begin_change()
        cost = _cost(prepared, ask, context)
        if over_cost := self._refuse_cost(cost, ask, context):
            return over_cost
        written = context.answer.written
        result: ExecutionResult | None = None
        if plan := self._plan(document.ast, prepared, context):
            try:
                body: dict[str, Any] = {}
                if ask.explain and self._explains and isinstance(plan, Plan):
                    body["extensions"] = {"explain": (await plan.explain(ask.variables, context))._asdict()}
                body = {"data": orjson.Fragment(await plan.run(ask.variables, context))} | body
                return _with_cost(cost, ask, GraphQLResponse(True, body))
            except Unplannable:
                pass
            except (AnswerTooLarge, AnswerMemoryFull) as error:
                context.answer.keep(written)
                return self._unsendable(error, context, changes=not isinstance(plan, Plan))
            except Exception as error:  # noqa: BLE001 - `_answer` reports the error
                if isinstance(plan, Plan) and not isinstance(error, GatewayError):
                    # A bug in a query plan: log it and run the query with the executor, which is safe for reads.
                    self._report(error, context.request_id)
                else:
                    result = plan.failed(error, ask.variables)
        if result is None:
            result = await self._execute(ask, document.ast, context)
        if result.data is None and all(error.path is None for error in result.errors or ()):
            return self._variables_refused(operation, ask, context)
        changes = operation.operation is OperationType.MUTATION
        try:
            if not changes and (unsendable := _unsendable_part(result)):
                raise unsendable
            answer = _with_cost(cost, ask, self._answer(result, context, changes=changes))
        except (AnswerTooLarge, AnswerMemoryFull) as error:
            context.answer.keep(written)
            return self._unsendable(error, context, changes=changes)
        context.answer.keep(context.answer.written)
        if changes and result.data is None and not _is_one_field(operation):
            # An earlier mutation field may have been recorded, although the error of a later one set `data` to null.
            for each in answer.body["errors"]:
                each["extensions"]["recorded"] = "unknown"
        return answer

    async def _execute(self, ask: GraphQLRequest, document: DocumentNode, context: Context) -> ExecutionResult:
        operation = OperationContext(context, Loaders(context))
        result = execute(
            self._schema,
            document,
            context_value=operation,
            variable_values=dict(ask.variables),
            operation_name=ask.operation_name,
            executor_class=QuickExecutor,
            is_awaitable=optimized_is_awaitable,  # type: ignore[arg-type]
        )
        if not isinstance(result, ExecutionResult):
            result = await result
        result.extensions = operation.extensions
        return result

    def _unsendable(self, error: GatewayError, context: Context, *, changes: bool) -> GraphQLResponse:
        """Return the refusal of an operation whose response is too large.

        If the operation `changes` data, the refusal reports the outcome as unknown, because the change may have
        happened. Raises `AnswerMemoryFull`, or `OutcomeUnknown` for a change, if the client can retry shortly.
        """
        if isinstance(error, AnswerMemoryFull):
            raise OutcomeUnknown(error.message) if changes else error
        answer = _refused(error, context)
        if changes:
            answer.body["errors"][0]["extensions"]["recorded"] = "unknown"
        return answer

    def _plan(self, document: DocumentNode, prepared: PreparedOperation, context: Context) -> AnyPlan | None:
        if not prepared.planned:
            prepared.planned = True
            try:
                prepared.plan = plan_of(document, prepared.node)
            except Exception as error:  # noqa: BLE001 - a bug in planning: the executor runs the operation
                self._report(error, context.request_id)
        return prepared.plan

    async def start(
        self,
        ask: GraphQLRequest,
        document: Document,
        context: Context,
        *,
        read_only: bool = False,
        last_event_id: str | None = None,
    ) -> GraphQLResponse | AsyncGenerator[GraphQLResponse, None]:
        """Run a query or a mutation, or start a subscription.

        Raises what `run` raises; iterating over the responses raises the errors of the event source.

        Args:
            ask: The request.
            document: The requested document, as `read` returned it.
            context: The caller's context.
            read_only: Whether mutations are refused.
            last_event_id: The cursor after which a subscription resumes, from outside the operation; None for none.

        Returns:
            One response, also for a refused subscription; or a generator with a response for each event.
        """
        prepared = subscription_of(document, ask)
        if prepared is None:
            return await self.run(ask, document, context, read_only=read_only)
        assert document.ast is not None, "the document contains a subscription"
        cost = _cost(prepared, ask, context)
        if over_cost := self._refuse_cost(cost, ask, context):
            return over_cost
        executor = QuickExecutor.build(
            self._schema,
            document.ast,
            context_value=OperationContext(context, Loaders(context), last_event_id=last_event_id),
            raw_variable_values=dict(ask.variables),
            operation_name=ask.operation_name,
            is_awaitable=optimized_is_awaitable,  # type: ignore[arg-type]
        )
        if not isinstance(executor, Executor):
            return self._variables_refused(prepared.node, ask, context)
        source = create_source_event_stream(executor)
        if executor.is_awaitable(source):
            source = await source
        if isinstance(source, ExecutionResult):
            return self._answer(source, context)._replace(is_well_formed=False)
        return self._answers(executor, source, context, ask=ask, cost=cost)  # type: ignore[arg-type]

    async def _answers(
        self, executor: Executor[Any], source: AsyncIterable[Any], context: Context, *, ask: GraphQLRequest, cost: Cost
    ) -> AsyncGenerator[GraphQLResponse, None]:
        cursor: str | None = None
        turns = self._event_turns.of(context.caller.client_id)

        async def execute_event(event: Executor[Any]) -> Any:
            nonlocal cursor
            cursor = getattr(event.root_value, "cursor", None)
            # Loaders cache their results. Shared by the stream, they would return the first event's data for all.
            of_event = replace(context, reads=getattr(event.root_value, "reads", None))
            event.context_value = OperationContext(of_event, Loaders(of_event))
            async with turns:
                result = execute_subscription_event(event)
                return await result if event.is_awaitable(result) else result

        async with aclosing(map_source_to_response_event(executor, source, execute_event)) as results:
            async for result in results:
                try:
                    answer = _with_cost(cost, ask, self._event(result, context))._replace(cursor=cursor)
                    if context.consistency is not None:
                        # A read after the event must not be older than the event.
                        add_marker(answer.body, await context.consistency.current())
                    yield answer
                finally:
                    # The consumer requests the next response after sending this one, so its memory can be released.
                    context.release_answer()

    def _event(self, result: ExecutionResult, context: Context) -> GraphQLResponse:
        """Return the response for an event, or an error response if it is too large, since a retry would not help.

        Raise any other error of a field. A partial response would lose the event for a client that resumes after its
        cursor.
        """
        try:
            if result.errors:
                raise self.known(_cause(result.errors[0]), context.request_id)
            return self._answer(result, context)
        except AnswerTooLarge as error:
            return GraphQLResponse(True, {"errors": [refuse(error, context)], "data": None})

    def known(self, error: BaseException, request_id: str) -> GatewayError:
        """Return a `GatewayError` unchanged, and `Stopped` for a cancellation. Log others and return `ServerError`."""
        if isinstance(error, GatewayError):
            return error
        if isinstance(error, asyncio.CancelledError):
            # Shutdown timeout: answer 503 so that the client need not interpret a dropped connection.
            return Stopped()
        self._report(error, request_id)
        return ServerError()

    def _refuse_cost(self, cost: Cost, ask: GraphQLRequest, context: Context) -> GraphQLResponse | None:
        if cost.requested <= cost.limit:
            return None
        if self._admission.log_if_measuring(LimitViolation("cost", cost.limit, cost.requested), context):
            return None
        message = f"could return {cost.requested:,} objects; the limit is {cost.limit:,}; request smaller pages"
        return _with_cost(
            cost, ask, _refused(InvalidInput([Violation("/query", "cost", message, maximum=cost.limit)]), context)
        )

    def _answer(self, result: ExecutionResult, context: Context, *, changes: bool = False) -> GraphQLResponse:
        body: dict[str, Any] = {"data": result.data}
        if result.errors:
            # Error paths contain the client's aliases, which may be long, and there may be many errors.
            for error in result.errors:
                context.answer.add(sum(len(str(each)) for each in error.path or ()))
            body = {"errors": [self._field_error(error, context, changes=changes) for error in result.errors]} | body
        if result.extensions:
            body["extensions"] = result.extensions
        return GraphQLResponse(True, body)

    def _variables_refused(
        self, operation: OperationDefinitionNode, ask: GraphQLRequest, context: Context
    ) -> GraphQLResponse:
        violations = explain_variables(self._schema, operation, ask.variables)
        return _refused(
            InvalidInput(violations or [Violation("/variables", "type", "must have the declared types")]), context
        )

    def _field_error(self, error: GraphQLError, context: Context, *, changes: bool) -> dict[str, Any]:
        refusal = self.known(_cause(error), context.request_id)
        refused = refuse(refusal, context)
        path = error.path or ()
        below = len(path) > 1 and not isinstance(path[-1], int)
        if changes and below and not isinstance(refusal, CurrentVersionHidden):
            # The error is below the mutation field, so the change itself may be committed. An error of a batch item,
            # whose path ends with an index, and a stale version state their own outcome.
            refused["extensions"]["recorded"] = "unknown"
        return refused | {"path": error.path} | _located(error)


def _cause(error: GraphQLError) -> BaseException:
    """Return the exception that a resolver raised, or `InvalidInput` if graphql-core itself refused an argument."""
    cause = error.original_error
    if cause is None or isinstance(cause, GraphQLError):
        # graphql-core's message is replaced because it may quote the argument's value.
        return InvalidInput([Violation("", "type", "An argument does not have the declared type.")])
    return cause


def _unsendable_part(result: ExecutionResult) -> AnswerTooLarge | AnswerMemoryFull | None:
    """Return the first field error that was raised because of the response's size, or None."""
    for error in result.errors or ():
        if isinstance(error.original_error, AnswerTooLarge | AnswerMemoryFull):
            return error.original_error
    return None


def _is_one_field(operation: OperationDefinitionNode) -> bool:
    selections = operation.selection_set.selections
    return len(selections) == 1 and isinstance(selections[0], FieldNode)


def subscription_of(document: Document, ask: GraphQLRequest) -> PreparedOperation | None:
    """Return the requested operation if it is a valid subscription, else None."""
    if document.ast is None or document.errors:
        return None
    try:
        prepared = document.operation(ask.operation_name)
    except InvalidInput:
        return None
    return prepared if prepared.node.operation is OperationType.SUBSCRIPTION else None


def _cost(prepared: PreparedOperation, ask: GraphQLRequest, context: Context) -> Cost:
    """Return the maximum cost of an operation; for a subscription, of one event."""
    services = context.services
    return Cost(prepared.costing.cost(ask.variables, services.page_limits), services.max_cost)


def _with_cost(cost: Cost, ask: GraphQLRequest, answer: GraphQLResponse) -> GraphQLResponse:
    """Add the cost to the response's extensions, if the client requested it."""
    if ask.wants_cost:
        answer.body["extensions"] = answer.body.get("extensions", {}) | {"cost": cost._asdict()}
    return answer


def add_marker(body: dict[str, Any], marker: str | None) -> None:
    """Add the marker of a change, if there is one, to the extensions of a response or of an error."""
    if marker is not None:
        body["extensions"] = body.get("extensions", {}) | {"consistency": marker}


def _refused(error: GatewayError, context: Context) -> GraphQLResponse:
    return GraphQLResponse(False, {"errors": [refuse(error, context)]})


def _document_error(error: GraphQLError, context: Context) -> dict[str, Any]:
    details = error.extensions or {}
    message = details.get("explained", error.message)
    violation = Violation("/query", details.get("rule", "document"), message, allowed=details.get("allowed", ()))
    refusal = InvalidInput([violation])
    return refuse(refusal, context) | {"message": error.message} | _located(error)


def _located(error: GraphQLError) -> dict[str, Any]:
    # `locations` must not be empty (GraphQL specification, section 7.1.2), so it is omitted if there is none.
    locations = [{"line": each.line, "column": each.column} for each in error.locations or ()]
    return {"locations": locations} if locations else {}
