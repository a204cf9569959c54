"""One operation, from what a client asks for to the body of its answer: the same over HTTP and over a socket."""

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
from resolvers.commands import misspelt
from resolvers.context import Context
from resolvers.errors import (
    AnswerMemoryFull,
    AnswerTooLarge,
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
from schema.client_semaphores import Turns
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
"""Writes down an exception that nobody expected, under the request's id."""


EVENTS_AT_ONCE = 4
"""Events of one client's subscriptions that are executed at the same time in this process."""

APOLLO_ID = "/extensions/persistedQuery/sha256Hash"


class GraphQLRequest(NamedTuple):
    """What a client asks for: a document by its text, or by the id of a trusted one."""

    query: str | None
    variables: Mapping[str, Any]
    operation_name: str | None
    document_id: str | None = None
    apollo: bool = False
    """Whether the id came in Apollo's form, whose clients wait for answers in Apollo's words."""
    tell_cost: bool = False
    explain: bool = False
    """Whether it is to be told how the database goes about it: where that may be asked."""


# Source: GraphQL over HTTP, section 5.1, and appendix A for the last.
MEMBERS = frozenset({"query", "variables", "operationName", "extensions", "documentId"})


def parse_request(members: Any) -> GraphQLRequest:
    """Read what a client asks for. Raises `MalformedBody` or `InvalidInput`."""
    if not isinstance(members, dict):
        raise MalformedBody("object", "The body must be a JSON object.", json_text.shape_of(members))
    query = members.get("query")
    variables = members.get("variables")
    operation_name = members.get("operationName")
    extensions = members.get("extensions")
    id_pointer, document_id = _document_id(members)
    # A member that is lost by a misspelling changes what the operation means, as its variables do.
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
    if violations:
        raise InvalidInput(violations)
    tell_cost = (extensions or {}).get("cost") is True
    explain = (extensions or {}).get("explain") is True
    return GraphQLRequest(
        query, variables or {}, operation_name, document_id, id_pointer == APOLLO_ID, tell_cost, explain
    )


def _is_text(value: Any) -> bool:
    """Whether it is a text that can be told further, or nothing."""
    return value is None or (isinstance(value, str) and not json_text.problem_with(value))


def _document_id(members: Mapping[str, Any]) -> tuple[str, Any]:
    """Give where the id of a trusted document stands, and the id, or None.

    Sources: GraphQL over HTTP, appendix A; `extensions.persistedQuery` of Apollo's clients; `doc_id` and `id`, the
    names in Relay's examples, which are taken for ids only where there is no text.
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
    """What came of an operation: whether it could be run at all, and the body that says so."""

    is_well_formed: bool
    body: dict[str, Any]
    cursor: str | None = None
    """Where to go on from, if it tells of an event."""


def serialize(body: Any) -> bytes:
    """Write a body, or what is wrapped around it, as JSON. Instants are in UTC, with `Z`."""
    return orjson.dumps(body, default=str, option=orjson.OPT_UTC_Z)


class Runner:
    """Runs the operations of one schema, whichever way they came. Loaders live as long as one operation or event."""

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
        self._schema = schema._schema  # noqa: SLF001 - Strawberry builds graphql-core's schema; we run it ourselves
        self._admission = Admission(self._schema, rules, log_breach, log_unknown)
        self._report = report
        self._explains = explains
        self._event_turns = Turns(EVENTS_AT_ONCE)

    def read(self, ask: GraphQLRequest, context: Context) -> Document:
        """Find the document that is asked for, with all that is wrong with it for this caller.

        Raises `InsufficientScope` where the schema is asked for that this caller may not be told.
        """
        return self._admission.find(ask.query, ask.document_id, context, apollo=ask.apollo)

    def knows(self, ask: GraphQLRequest) -> bool:
        """Whether the document that is asked for need not be parsed, to be run or refused."""
        return self._admission.knows(ask.query, ask.document_id)

    async def run(
        self, ask: GraphQLRequest, document: Document, context: Context, *, read_only: bool = False
    ) -> GraphQLResponse:
        """Run a query or a mutation. Raises `MethodNotAllowed` for a mutation where only reading is allowed."""
        if document.ast is None or document.errors:
            return GraphQLResponse(False, {"errors": [_document_error(error, context) for error in document.errors]})
        try:
            prepared = document.operation(ask.operation_name)
        except InvalidInput as error:
            return _refused(error, context)
        operation = prepared.node
        if operation.operation is OperationType.SUBSCRIPTION:
            return _refused(
                InvalidInput([Violation("/query", "subscription", "needs a WebSocket or server-sent events")]), context
            )
        if read_only and operation.operation is not OperationType.QUERY:
            raise MethodNotAllowed(["POST"])
        cost = _cost(prepared, ask, context)
        if too_dear := self._too_dear(cost, ask, context):
            return too_dear
        written = context.answer.written
        met: Exception | None = None
        if plan := self._plan(document.ast, prepared, context):
            try:
                body: dict[str, Any] = {}
                if ask.explain and self._explains and isinstance(plan, Plan):
                    body["extensions"] = {"explain": (await plan.explain(ask.variables, context))._asdict()}
                body = {"data": orjson.Fragment(await plan.run(ask.variables, context))} | body
                return _telling(cost, ask, GraphQLResponse(True, body))
            except Unplannable:
                pass
            except (AnswerTooLarge, AnswerMemoryFull) as error:
                context.answer.keep(written)
                return self._unsendable(error, context, changes=not isinstance(plan, Plan))
            except Exception as error:  # noqa: BLE001 - whatever it is, the ordinary way tells it
                met = error
                if isinstance(plan, Plan) and not isinstance(error, GatewayError):
                    # A fault of the plan's own harms nobody: reading may be tried another way.
                    self._report(error, context.request_id)
                    met = None
        result = execute(
            self._schema,
            document.ast,
            context_value=OperationContext(context, Loaders(context, met), met),
            variable_values=dict(ask.variables),
            operation_name=ask.operation_name,
            executor_class=QuickExecutor,
            is_awaitable=optimized_is_awaitable,  # type: ignore[arg-type]
        )
        if not isinstance(result, ExecutionResult):
            result = await result
        if result.data is None and all(error.path is None for error in result.errors or ()):
            return self._variables_refused(operation, ask, context)
        changes = operation.operation is OperationType.MUTATION
        try:
            if not changes and (unsendable := _unsendable_part(result)):
                raise unsendable
            answer = _telling(cost, ask, self._answer(result, context, changes=changes))
        except (AnswerTooLarge, AnswerMemoryFull) as error:
            context.answer.keep(written)
            return self._unsendable(error, context, changes=changes)
        context.answer.keep(context.answer.written)
        if changes and result.data is None and not _is_one_field(operation):
            # The first of several may have been kept although the last one's refusal leaves nothing to show for it.
            for told in answer.body["errors"]:
                told["extensions"]["recorded"] = "unknown"
        return answer

    def _unsendable(self, error: GatewayError, context: Context, *, changes: bool) -> GraphQLResponse:
        """Refuse what was asked for as a whole, because of its size. A change has happened, or perhaps not.

        Raises `AnswerMemoryFull` or `OutcomeUnknown`: what may be asked again shortly is no fault of the request.
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
            except Exception as error:  # noqa: BLE001 - a fault of planning harms nobody: there is another way
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
        """Run a query or a mutation, or begin a subscription, which gives an answer for each event.

        A subscription that is refused is an answer too. `last_event_id` is where a client goes on that says so beside
        the operation. Raises what `run` raises; the answers raise what the source of the events raises.
        """
        prepared = subscription_of(document, ask)
        if prepared is None:
            return await self.run(ask, document, context, read_only=read_only)
        assert document.ast is not None, "a document that has a subscription was read"
        cost = _cost(prepared, ask, context)
        if too_dear := self._too_dear(cost, ask, context):
            return too_dear
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
            # A loader that lived as long as the stream would show to each event what it read for the first.
            of_event = replace(context, reads=getattr(event.root_value, "reads", None))
            event.context_value = OperationContext(of_event, Loaders(of_event))
            async with turns:
                result = execute_subscription_event(event)
                return await result if event.is_awaitable(result) else result

        async with aclosing(map_source_to_response_event(executor, source, execute_event)) as results:
            async for result in results:
                try:
                    yield _telling(cost, ask, self._event(result, context))._replace(cursor=cursor)
                finally:
                    # The next one is asked for when the client has taken this one.
                    context.release_answer()

    def _event(self, result: ExecutionResult, context: Context) -> GraphQLResponse:
        """Return the answer for an event; where that is too large, one that says so, because it always will be.

        Raise what else a field met: told in part, the event would be lost to a client that goes on after its cursor.
        """
        try:
            if result.errors:
                raise self.known(_cause(result.errors[0]), context.request_id)
            return self._answer(result, context)
        except AnswerTooLarge as error:
            return GraphQLResponse(True, {"errors": [refuse(error, context)], "data": None})

    def known(self, error: BaseException, request_id: str) -> GatewayError:
        """Give the error itself if it is one of ours; else write it down and give `ServerError`."""
        if isinstance(error, GatewayError):
            return error
        if isinstance(error, asyncio.CancelledError):
            # The server stops, and waits no longer. Whoever is told so need not guess from a connection that broke.
            return Stopped()
        self._report(error, request_id)
        return ServerError()

    def _too_dear(self, cost: Cost, ask: GraphQLRequest, context: Context) -> GraphQLResponse | None:
        if cost.requested <= cost.limit:
            return None
        if self._admission.log_if_measuring(LimitViolation("cost", cost.limit, cost.requested), context):
            return None
        told = f"could give {cost.requested:,} objects, and {cost.limit:,} is the most; ask for smaller pages"
        return _telling(
            cost, ask, _refused(InvalidInput([Violation("/query", "cost", told, maximum=cost.limit)]), context)
        )

    def _answer(self, result: ExecutionResult, context: Context, *, changes: bool = False) -> GraphQLResponse:
        body: dict[str, Any] = {"data": result.data}
        if result.errors:
            # Each names its place, by the client's own names: these may be long, and the errors many.
            for error in result.errors:
                context.answer.add(sum(len(str(each)) for each in error.path or ()))
            body = {"errors": [self._field_error(error, context, changes=changes) for error in result.errors]} | body
        return GraphQLResponse(True, body)

    def _variables_refused(
        self, operation: OperationDefinitionNode, ask: GraphQLRequest, context: Context
    ) -> GraphQLResponse:
        violations = explain_variables(self._schema, operation, ask.variables)
        return _refused(
            InvalidInput(violations or [Violation("/variables", "type", "do not fit their types")]), context
        )

    def _field_error(self, error: GraphQLError, context: Context, *, changes: bool) -> dict[str, Any]:
        refusal = self.known(_cause(error), context.request_id)
        told = refuse(refusal, context)
        path = error.path or ()
        if changes and len(path) > 1 and not isinstance(path[-1], int):
            # The change itself is done: what was refused is to read on from what it gave. Only one of many changes,
            # which has a number for a name, speaks for itself.
            told["extensions"]["recorded"] = "unknown"
        return told | {"path": error.path} | _located(error)


def _cause(error: GraphQLError) -> BaseException:
    """Return what a field met, where it was an error of ours or a fault."""
    met = error.original_error
    if met is None or isinstance(met, GraphQLError):
        # Nothing of ours: graphql-core itself refused an argument, in words that may quote it.
        return InvalidInput([Violation("", "type", "An argument does not fit its type.")])
    return met


def _unsendable_part(result: ExecutionResult) -> AnswerTooLarge | AnswerMemoryFull | None:
    """Give the error of the first field that was not answered because of the answer's size."""
    for error in result.errors or ():
        if isinstance(error.original_error, AnswerTooLarge | AnswerMemoryFull):
            return error.original_error
    return None


def _is_one_field(operation: OperationDefinitionNode) -> bool:
    selections = operation.selection_set.selections
    return len(selections) == 1 and isinstance(selections[0], FieldNode)


def subscription_of(document: Document, ask: GraphQLRequest) -> PreparedOperation | None:
    """Give the operation that is asked for if it is a subscription that can be run."""
    if document.ast is None or document.errors:
        return None
    try:
        prepared = document.operation(ask.operation_name)
    except InvalidInput:
        return None
    return prepared if prepared.node.operation is OperationType.SUBSCRIPTION else None


def _cost(prepared: PreparedOperation, ask: GraphQLRequest, context: Context) -> Cost:
    """Say what an operation could give; of a subscription, for one event."""
    services = context.services
    return Cost(prepared.costing.cost(ask.variables, services.page_limits), services.max_cost)


def _telling(cost: Cost, ask: GraphQLRequest, answer: GraphQLResponse) -> GraphQLResponse:
    """Tell the client the cost, if it asked for that."""
    if ask.tell_cost:
        answer.body["extensions"] = answer.body.get("extensions", {}) | {"cost": cost._asdict()}
    return answer


def _refused(error: GatewayError, context: Context) -> GraphQLResponse:
    return GraphQLResponse(False, {"errors": [refuse(error, context)]})


def _document_error(error: GraphQLError, context: Context) -> dict[str, Any]:
    told = error.extensions or {}
    said = told.get("explained", error.message)
    violation = Violation("/query", told.get("rule", "document"), said, allowed=told.get("allowed", ()))
    refusal = InvalidInput([violation])
    return refuse(refusal, context) | {"message": error.message} | _located(error)


def _located(error: GraphQLError) -> dict[str, Any]:
    # A list of locations must not be empty (GraphQL specification, section 7.1.2): without one there is no member.
    locations = [{"line": each.line, "column": each.column} for each in error.locations or ()]
    return {"locations": locations} if locations else {}
