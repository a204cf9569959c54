"""Plans of queries: bind the arguments, run the one SQL statement, and send its JSON to the client unchanged.

`schema/plans/sql.py` compiles the statement, once for each document.

A plan handles supported queries and raises `Unplannable` otherwise; the executor then resolves the query field by
field. A plan reports no client errors. The executor reports a missing permission, an ill-typed variable or a cursor of
another list. Plan and executor return the same bytes for the same query.

Supported are `encounter`, `encounters`, `patient` and `patients` at the root, any number of them. Below them, plans
support encounters, their patients, and pages of encounters. Fragments, aliases, variables, `@skip` and `@include`
are supported everywhere.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from graphql import (
    DocumentNode,
    ExecutionResult,
    OperationDefinitionNode,
    OperationType,
    located_error,
)

from models import EncounterOrder
from resolvers.access import Permission
from resolvers.bounded_rows import are_counted
from resolvers.commands import EVERYTHING, EncounterFilter, EncountersFilter
from resolvers.context import Context
from resolvers.encounters.worklists import worklist_connection
from resolvers.errors import AnswerTooLarge, GatewayError
from resolvers.ids import id_text
from resolvers.paging import ListOf, PageLimits, window_of
from resolvers.patients import can_exist
from resolvers.sql import Connection, Row
from schema.plans.record_plan import RecordPlan
from schema.plans.selection import (
    ENUMS,
    PageNode,
    Reader,
    Root,
    Unplannable,
    Variables,
    coerced,
    conditions_of,
    filter_members,
)
from schema.plans.sql import FIRST_JSON, BoundPage, CompiledQuery, arguments_of, compile_query, may_have_bytes
from schema.selections import fragments_of

MAX_IDS = 100
MAX_CACHED_QUERIES = 16
BYTES_OF_A_TOKEN = 256
"""Maximum bytes that a variant holds for each token of the document, as measured with tracemalloc."""
NULL = [b"null"]
MOST_CONDITIONS = 4
"""Maximum number of variables in `@skip` and `@include`; each doubles the number of variants to cache."""


class Explained(NamedTuple):
    """The statement of a query, and the lines of PostgreSQL's `EXPLAIN` for its arguments."""

    statement: str
    plan: Sequence[str]


def plan_of(document: DocumentNode, operation: OperationDefinitionNode) -> "AnyPlan | None":
    """Return the plan of a valid operation, or None if no plan can serve it, whatever the variables."""
    try:
        match operation.operation:
            case OperationType.MUTATION:
                return RecordPlan(document, operation)
            case OperationType.QUERY:
                return Plan(document, operation)
    except Unplannable:
        pass
    return None


class Plan:
    """The plan of one query. It caches one variant for each set of values of the `@skip` and `@include` variables.

    Callers who may not change encounters have variants of their own: their `allowedActions` are empty.
    """

    def __init__(self, document: DocumentNode, operation: OperationDefinitionNode) -> None:
        """Read the document. Raise `Unplannable` if no plan can serve it, whatever the variables."""
        self._fragments = fragments_of(document)
        self._operation = operation
        self._definitions = operation.variable_definitions or ()
        self._conditions = conditions_of(self._definitions)
        if len(self._conditions) > MOST_CONDITIONS:
            raise Unplannable
        self._variants: dict[tuple[bool | None, ...], Variant | None] = {}

    async def run(self, sent: Variables, context: Context) -> bytes:
        """Return the JSON of `data`. Raise `Unplannable`, or the error of the database or of a size limit."""
        variant, variables = self._settled(sent, may_change=context.may(Permission.CHANGE_ENCOUNTER))
        return await variant.run(variables, context)

    def failed(self, error: Exception, sent: Variables) -> ExecutionResult:
        """Return the result of a query for which `run` raised `error` after it began."""
        variant, variables = self._settled(sent)
        return variant.failed(error, variables)

    async def explain(self, sent: Variables, context: Context) -> Explained:
        """Return PostgreSQL's execution plan for the query. Raise what `run` raises."""
        variant, variables = self._settled(sent, may_change=context.may(Permission.CHANGE_ENCOUNTER))
        return await variant.explain(variables, context)

    def weight(self, tokens: int) -> int:
        """Estimate the plan's memory in bytes: its variants beyond the first, and their statements."""
        statements = sum(each.kept_characters for each in self._variants.values() if each)
        return max(len(self._variants) - 1, 0) * BYTES_OF_A_TOKEN * tokens + 2 * statements

    def _settled(self, sent: Variables, *, may_change: bool = True) -> "tuple[Variant, dict[str, Any]]":
        variables = coerced(self._definitions, sent)
        outcome = (may_change, *(variables.get(name) for name in self._conditions))
        if None in outcome:
            raise Unplannable
        if outcome not in self._variants:
            self._variants[outcome] = self._variant(variables, may_change=may_change)
        variant = self._variants[outcome]
        if variant is None:
            raise Unplannable
        return variant, variables

    def _variant(self, variables: Variables, *, may_change: bool) -> "Variant | None":
        reader = Reader(self._fragments, variables, may_change=may_change)
        try:
            return Variant(reader.roots(self._operation.selection_set))
        except Unplannable:
            return None


class BoundQuery(NamedTuple):
    """A compiled query and its arguments."""

    compiled: CompiledQuery
    ids: Mapping[str, list[Any]]
    """The ids to read, by the name of the statement's argument: `ids_` and the number of the root field."""
    pages: Mapping[str, Any]
    """The arguments of all pages, and `patient_` with the number of the root field that names a patient."""
    rows: int
    """The estimated number of rows that the statement reads for one id."""


class Variant:
    """A tree of selections and its compiled queries, one for each combination of page shapes seen so far."""

    def __init__(self, roots: Sequence[Root]) -> None:
        self._roots = roots
        self._needed = _needed(roots)
        self._is_of_one = [root.name for root in roots] in (["encounter"], ["patient"])
        self._compiled_queries: dict[tuple[Any, ...], CompiledQuery | None] = {}
        self.kept_characters = 0
        """Total characters of the cached statements."""

    async def run(self, variables: Variables, context: Context) -> bytes:
        """Return the JSON of `data`. Raise `Unplannable`, or the error of the database or of a size limit."""
        brand_id = self._admitted(context)
        asked = [self._ids(root, variables) for root in self._roots]
        asking = self._asking(brand_id, asked, variables, context)
        found: dict[tuple[int, Any], list[bytes]] = {}
        given: dict[tuple[str, str], int] = {}
        listed = Counter[str]()
        if asking is not None:
            cursors = await context.services.feed.cursors() if any(asking.compiled.marks.values()) else None
            for row in await self._rows(asking, brand_id, context):
                parts = list(asking.compiled.forms[row["root"]])
                parts[1::2] = row[FIRST_JSON : FIRST_JSON + len(parts) // 2]
                if row["bytes"] > context.answer.maximum:
                    raise AnswerTooLarge(context.answer.maximum)
                for slot in asking.compiled.marks[row["root"]]:
                    assert cursors is not None, "read above"
                    parts[slot] = b'"%b"' % cursors.write(int(parts[slot]), brand_id, salted=True).encode()
                found[row["root"], row["key"]] = parts
                if row["given"] and self._roots[row["root"]].name == "encounters":
                    listed.update(row["patient_id"].split("\n"))
                elif row["given"]:
                    owner = (brand_id, row["patient_id"])
                    given[owner] = given.get(owner, 0) + row["given"]
        parts = self._parts(asked, found)
        context.answer.add(sum(map(len, parts)))
        context.note_given(given)
        context.note_worklist(brand_id, listed)
        return b"".join(parts)

    def failed(self, error: Exception, variables: Variables) -> ExecutionResult:
        """Return the result with `error` at each root field that reads. A list is not nullable, so it nulls `data`."""
        asked = [self._ids(root, variables) for root in self._roots]
        reading = [root for root, ids in zip(self._roots, asked, strict=True) if ids]
        lists = [root for root in reading if root.name in {"patients", "encounters"}]
        failed = [root for root in reading if root not in lists] + lists[:1]
        data = None if lists else orjson.Fragment(b"".join(self._parts(asked, {})))
        return ExecutionResult(data, [located_error(error, root.nodes, [root.key]) for root in failed])  # type: ignore[arg-type]

    async def explain(self, variables: Variables, context: Context) -> Explained:
        """Return PostgreSQL's execution plan. Raise what `run` raises."""
        brand_id = self._admitted(context)
        asked = [self._ids(root, variables) for root in self._roots]
        asking = self._asking(brand_id, asked, variables, context)
        if asking is None:
            return Explained("", [])
        statement = asking.compiled.statement
        async with self._connection(context, brand_id) as connection:
            values = {"brand_id": brand_id, "most_bytes": context.answer.maximum, **asking.ids, **asking.pages}
            lines = await connection.fetch(statement.explaining(), **values)
        return Explained(statement.text, [line[0] for line in lines])

    async def _rows(self, asking: BoundQuery, brand_id: str, context: Context) -> Sequence[Row]:
        statement, most_bytes = asking.compiled.statement, context.answer.maximum
        if not self._is_of_one:
            async with self._connection(context, brand_id) as connection:
                values = {"brand_id": brand_id, **asking.ids, **asking.pages}
                return await connection.fetch_at_most(most_bytes, statement, **values, most_bytes=most_bytes)
        # Concurrent requests for single objects are frequent, so they are batched into one round trip.
        ((by, ids),) = asking.ids.items()
        if not ids:
            return ()
        row = await context.database.fetch_one_batched(
            brand_id, statement, by, ids[0], rows=asking.rows, most_bytes=most_bytes, **asking.pages
        )
        return () if row is None else (row,)

    def _connection(self, context: Context, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        is_worklist = any(root.name == "encounters" for root in self._roots)
        return worklist_connection(context, brand_id) if is_worklist else context.database.connection(brand_id)

    def _asking(
        self, brand_id: str, asked: Sequence[list[Any]], variables: Variables, context: Context
    ) -> BoundQuery | None:
        """Return the compiled query with its arguments, or None if no root field needs the database."""
        bound: dict[int, BoundPage] = {}
        pages: dict[str, Any] = {}
        rows = 0
        for root, ids in zip(self._roots, asked, strict=True):
            for page in root.pages:
                owner: tuple[str, str | None] | None = None
                if root.name != "patients":
                    owner = brand_id, ids[0] if root.name == "patient" else None
                bound[page.number], values = _bind(page, owner, variables, context)
                pages |= values
                rows += bound[page.number].window.size
        patients = {number: root.patient(variables) for number, root in enumerate(self._roots) if asked[number]}
        patients = {number: patient_id for number, patient_id in patients.items() if patient_id is not None}
        pages |= {f"patient_{number}": patient_id for number, patient_id in patients.items()}
        compiled = self._compiled_query(bound, tuple(patients), context.answer.maximum)
        if compiled is None:
            return None
        ids_of = {
            f"ids_{number}": ids if root.name in {"encounter", "encounters"} else _searched(root, ids)
            for number, (root, ids) in enumerate(zip(self._roots, asked, strict=True))
        }
        return BoundQuery(compiled, ids_of, pages, max(1, rows))

    def _admitted(self, context: Context) -> str:
        try:
            for operation in self._needed:
                context.require(operation)
            return context.acting_brand()
        except GatewayError:
            raise Unplannable from None

    def _ids(self, root: Root, variables: Variables) -> list[Any]:
        value = root.argument(variables)
        match root.name:
            case "__typename":
                return []
            case "encounters":
                return [value]
            case "encounter":
                patient_id = root.patient(variables)
                if not isinstance(value, str) or not isinstance(patient_id, str | None):
                    raise Unplannable
                id_ = id_text(value)
                return [] if id_ is None or not (patient_id is None or can_exist(patient_id)) else [id_]
            case "patient":
                ids = [value]
            case _:
                ids = value
        if not isinstance(ids, list) or len(ids) > MAX_IDS or not all(isinstance(each, str) for each in ids):
            raise Unplannable
        return ids

    def _compiled_query(
        self, bound: Mapping[int, BoundPage], of_patients: tuple[int, ...], most_bytes: int
    ) -> CompiledQuery | None:
        counted = are_counted(may_have_bytes(self._roots, bound), most_bytes)
        shape = (counted, of_patients, *(each.shape for each in bound.values()))
        if shape not in self._compiled_queries:
            if len(self._compiled_queries) >= MAX_CACHED_QUERIES:
                self._compiled_queries.clear()
                self.kept_characters = 0
            self._compiled_queries[shape] = compiled = compile_query(self._roots, bound, of_patients, counted=counted)
            self.kept_characters += len(compiled.statement.text) if compiled else 0
        return self._compiled_queries[shape]

    def _parts(self, asked: Sequence[list[Any]], found: Mapping[tuple[int, Any], list[bytes]]) -> list[bytes]:
        # The caller joins the parts once: a list may be long, and the same id may be requested many times.
        parts = [b"{"]
        for number, (root, ids) in enumerate(zip(self._roots, asked, strict=True)):
            items = [found.get((number, each), NULL) for each in ids]
            parts += [b"," if number else b"", b'"' + root.key.encode() + b'":']
            match root.name:
                case "__typename":
                    parts.append(b'"Query"')
                case "patients":
                    for place, item in enumerate(items):
                        parts += [b"," if place else b"[", *item]
                    parts.append(b"]" if items else b"[]")
                case _:
                    parts += items[0] if items else NULL
        return [*parts, b"}"]


def _searched(root: Root, ids: Sequence[str]) -> list[str]:
    """Return the ids of patients to search. Citus refuses this statement if it concerns no shard."""
    possible = [each for each in ids if can_exist(each)]
    return possible or ([""] if root.name == "patients" else [])


def _needed(roots: Sequence[Root]) -> list[Permission]:
    """Return the permissions that the caller needs."""
    names = {root.name for root in roots}
    needed = []
    if names & {"patient", "patients"} or any(_shows_patients(root) for root in roots):
        needed.append(Permission.READ_PATIENTS)
    if "encounter" in names or any(root.pages for root in roots):
        needed.append(Permission.READ_ENCOUNTERS)
    return needed


def _shows_patients(root: Root) -> bool:
    """Whether the query selects the patient of an encounter, which needs a permission of its own."""

    def shown(fields: Sequence[Any]) -> bool:
        for each in fields:
            below = each[-1]
            if isinstance(below, PageNode):
                if any(shown_below(name, inner) for _, name, inner in below.fields):
                    return True
            elif isinstance(below, list):
                return True
        return False

    def shown_below(name: str, inner: Sequence[Any]) -> bool:
        if name == "nodes":
            return shown(inner)
        return name == "edges" and any(shown(of) for _, each, of in inner if each == "node")

    return shown(root.fields)


Settled = tuple[BoundPage, Mapping[str, Any]]
"""A page with its evaluated arguments, and the arguments of its statement."""


def _bind(page: PageNode, owner: tuple[str, str | None] | None, variables: Variables, context: Context) -> Settled:
    """Evaluate a page's arguments. Raise `Unplannable` if they are invalid or unsupported.

    Args:
        page: The page in the tree.
        owner: The brand and the patient of the list, which is None for the brand's list. None if the page is read for
            several patients.
        variables: The operation's variables.
        context: The caller's context, for the page limits and input limits.
    """
    given = page.arguments(variables)
    limits = context.services.page_limits
    if given.get("where", EVERYTHING) is None:
        raise Unplannable
    where, order_by = given.pop("where", None), given.pop("orderBy", EncounterOrder.CREATED_AT_DESC.name)
    relay = {name: value for name, value in given.items() if value is not None}
    if order_by not in ENUMS["EncounterOrder"] or (owner is None and not relay.keys().isdisjoint({"after", "before"})):
        raise Unplannable
    order = EncounterOrder[order_by]
    try:
        if where is None and not page.of_brand and relay.keys() <= {"first", "last"}:
            return _of_size(page.number, order, limits, **relay)
        kind = EncountersFilter if page.of_brand else EncounterFilter
        filters = kind.read(filter_members(kind.__name__, where), context.services.input_limits)
        of = ListOf(*(owner or SEVERAL), filters, order)
        bound = BoundPage(window_of(limits, of, **relay), of)
    except GatewayError:
        raise Unplannable from None
    return bound, arguments_of(page.number, bound)


SEVERAL = ("", "")
"""The owner of the lists of several patients, none of which has a cursor."""


@lru_cache(256)
def _of_size(
    number: int, order: EncounterOrder, limits: PageLimits, *, first: int | None = None, last: int | None = None
) -> Settled:
    """Evaluate a patient's page without cursor or filter, as most are. Raise `InvalidInput` for an invalid size."""
    of = ListOf(*SEVERAL, order=order)
    bound = BoundPage(window_of(limits, of, first=first, last=last), of)
    return bound, arguments_of(number, bound)


AnyPlan = Plan | RecordPlan
