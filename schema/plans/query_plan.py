"""Plans: a query is compiled once into one SQL statement, whose JSON goes to the client untouched.

A plan serves what it knows and declines everything else; then the ordinary way answers, field by field. So a plan never
refuses anything: what is not as it should be, a missing right, an odd variable, a cursor of another list, is for the
ordinary way to tell. Both give the same bytes for the same question.

What plans know: `encounter`, `patient` and `patients` at the root, any number of them; encounters and their patients,
and pages of a patient's encounters; fragments, aliases, variables, `@skip` and `@include`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FragmentDefinitionNode,
    OperationDefinitionNode,
    OperationType,
)

from resolvers.access import Permission
from resolvers.bounded_rows import are_counted
from resolvers.commands import EVERYTHING, EncounterFilter
from resolvers.context import Context
from resolvers.errors import AnswerTooLarge, GatewayError
from resolvers.ids import id_text
from resolvers.paging import PageLimits, cursor_scope, window_of
from resolvers.patients import can_exist
from resolvers.sql import Row
from schema.plans.record_plan import RecordPlan
from schema.plans.selection import (
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

MAX_IDS = 100
KEPT_QUESTIONS = 16
BYTES_OF_A_TOKEN = 256
"""What a variant keeps of a document's token at most, as measured with tracemalloc."""
NULL = [b"null"]
MOST_CONDITIONS = 4
"""Variables that `@skip` and `@include` depend on: each doubles what there is to keep."""


class Explained(NamedTuple):
    """How a query is answered: the statement, and the lines of PostgreSQL's `EXPLAIN` for these arguments."""

    statement: str
    plan: Sequence[str]


def plan_of(document: DocumentNode, operation: OperationDefinitionNode) -> "AnyPlan | None":
    """Make the plan of a valid operation, or None where no plan will ever serve it."""
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
    """The plan of one query. What `@skip` and `@include` leave of it is worked out once for each of their outcomes."""

    def __init__(self, document: DocumentNode, operation: OperationDefinitionNode) -> None:
        """Read the document. Raises `Unplannable` where no plan will ever serve it."""
        self._fragments = {
            each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)
        }
        self._operation = operation
        self._definitions = operation.variable_definitions or ()
        # Those of the document's other operations are not this one's.
        own = {each.variable.name.value for each in self._definitions}
        self._conditions = sorted(conditions_of(document) & own)
        if len(self._conditions) > MOST_CONDITIONS:
            raise Unplannable
        self._variants: dict[tuple[bool | None, ...], Variant | None] = {}

    async def run(self, sent: Variables, context: Context) -> bytes:
        """Answer the query: the JSON of `data`. Raises `Unplannable`, or what kept the database from answering."""
        variant, variables = self._settled(sent)
        return await variant.run(variables, context)

    async def explain(self, sent: Variables, context: Context) -> Explained:
        """Say how PostgreSQL goes about the query. Raises what `run` raises."""
        variant, variables = self._settled(sent)
        return await variant.explain(variables, context)

    def weight(self, tokens: int) -> int:
        """Estimate how many bytes it takes: what it keeps for each outcome of the conditions, and the statements."""
        statements = sum(each.kept_characters for each in self._variants.values() if each)
        return max(len(self._variants) - 1, 0) * BYTES_OF_A_TOKEN * tokens + 2 * statements

    def _settled(self, sent: Variables) -> "tuple[Variant, dict[str, Any]]":
        variables = coerced(self._definitions, sent)
        outcome = tuple(variables.get(name) for name in self._conditions)
        if None in outcome:
            raise Unplannable
        if outcome not in self._variants:
            self._variants[outcome] = self._variant(variables)
        variant = self._variants[outcome]
        if variant is None:
            raise Unplannable
        return variant, variables

    def _variant(self, variables: Variables) -> "Variant | None":
        try:
            return Variant(Reader(self._fragments, variables).roots(self._operation.selection_set))
        except Unplannable:
            return None


class BoundQuery(NamedTuple):
    """What the database is asked."""

    question: CompiledQuery
    ids: Mapping[str, list[Any]]
    """Of the root with this number."""
    pages: Mapping[str, Any]
    """The arguments of all pages."""
    rows: int
    """How many rows it reads for one of the ids, about."""


class Variant:
    """A tree of what is asked for, and its questions: one for each shape that its pages have had."""

    def __init__(self, roots: Sequence[Root]) -> None:
        self._roots = roots
        self._needed = _needed(roots)
        self._is_of_one = [root.name for root in roots] in (["encounter"], ["patient"])
        self._questions: dict[tuple[Any, ...], CompiledQuery | None] = {}
        self.kept_characters = 0
        """Of the statements of its questions."""

    async def run(self, variables: Variables, context: Context) -> bytes:
        """Answer it. Raises `Unplannable`, or what kept the database from answering."""
        brand_id = self._admitted(context)
        asked = [self._ids(root, variables) for root in self._roots]
        asking = self._asking(brand_id, asked, variables, context)
        found: dict[tuple[int, Any], list[bytes]] = {}
        given: dict[tuple[str, str], int] = {}
        if asking is not None:
            for row in await self._rows(asking, brand_id, context):
                parts = list(asking.question.forms[row["root"]])
                parts[1::2] = row[FIRST_JSON : FIRST_JSON + len(parts) // 2]
                if row["bytes"] > context.answer.maximum:
                    raise AnswerTooLarge(context.answer.maximum)
                found[row["root"], row["key"]] = parts
                if row["given"]:
                    owner = (brand_id, row["patient_id"])
                    given[owner] = given.get(owner, 0) + row["given"]
        parts = self._parts(asked, found)
        context.answer.add(sum(map(len, parts)))
        context.note_given(given)
        return b"".join(parts)

    async def explain(self, variables: Variables, context: Context) -> Explained:
        """Say how PostgreSQL goes about it. Raises what `run` raises."""
        brand_id = self._admitted(context)
        asked = [self._ids(root, variables) for root in self._roots]
        asking = self._asking(brand_id, asked, variables, context)
        if asking is None:
            return Explained("", [])
        statement = asking.question.statement
        async with context.database.connection(brand_id) as connection:
            values = {"brand_id": brand_id, "most_bytes": context.answer.maximum, **asking.ids, **asking.pages}
            lines = await connection.fetch(statement.explaining(), **values)
        return Explained(statement.text, [line[0] for line in lines])

    async def _rows(self, asking: BoundQuery, brand_id: str, context: Context) -> Sequence[Row]:
        statement, most_bytes = asking.question.statement, context.answer.maximum
        if not self._is_of_one:
            async with context.database.connection(brand_id) as connection:
                values = {"brand_id": brand_id, **asking.ids, **asking.pages}
                return await connection.fetch_at_most(most_bytes, statement, **values, most_bytes=most_bytes)
        # Many ask for one of these at a time: those of one moment share the way to the database and back.
        ((by, ids),) = asking.ids.items()
        if not ids:
            return ()
        row = await context.database.fetch_one_batched(
            brand_id, statement, by, ids[0], rows=asking.rows, most_bytes=most_bytes, **asking.pages
        )
        return () if row is None else (row,)

    def _asking(
        self, brand_id: str, asked: Sequence[list[Any]], variables: Variables, context: Context
    ) -> BoundQuery | None:
        """Say what the database is asked; None where that is nothing."""
        bound: dict[int, BoundPage] = {}
        pages: dict[str, Any] = {}
        rows = 0
        for root, ids in zip(self._roots, asked, strict=True):
            for page in root.pages:
                list_owner = (brand_id, ids[0]) if root.name == "patient" else None
                bound[page.number], values = _bind(page, list_owner, variables, context)
                pages |= values
                rows += bound[page.number].window.size
        question = self._question(bound, context.answer.maximum)
        if question is None:
            return None
        ids_of = {
            f"ids_{number}": ids if root.name == "encounter" else [each for each in ids if can_exist(each)]
            for number, (root, ids) in enumerate(zip(self._roots, asked, strict=True))
        }
        return BoundQuery(question, ids_of, pages, max(1, rows))

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
            case "encounter":
                if not isinstance(value, str):
                    raise Unplannable
                id_ = id_text(value)
                return [] if id_ is None else [id_]
            case "patient":
                ids = [value]
            case _:
                ids = value
        if not isinstance(ids, list) or len(ids) > MAX_IDS or not all(isinstance(each, str) for each in ids):
            raise Unplannable
        return ids

    def _question(self, bound: Mapping[int, BoundPage], most_bytes: int) -> CompiledQuery | None:
        counted = are_counted(may_have_bytes(self._roots, bound), most_bytes)
        shape = (counted, *(each.shape for each in bound.values()))
        if shape not in self._questions:
            if len(self._questions) >= KEPT_QUESTIONS:
                self._questions.clear()
                self.kept_characters = 0
            self._questions[shape] = question = compile_query(self._roots, bound, counted=counted)
            self.kept_characters += len(question.statement.text) if question else 0
        return self._questions[shape]

    def _parts(self, asked: Sequence[list[Any]], found: Mapping[tuple[int, Any], list[bytes]]) -> list[bytes]:
        # Put together once, by the caller: a list may be long, and the same id may be asked for many times.
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


def _needed(roots: Sequence[Root]) -> list[Permission]:
    """Give what the caller must be allowed to do."""
    names = {root.name for root in roots}
    needed = []
    if names & {"patient", "patients"} or any(_shows_patients(root) for root in roots):
        needed.append(Permission.READ_PATIENTS)
    if "encounter" in names or any(root.pages for root in roots):
        needed.append(Permission.READ_ENCOUNTERS)
    return needed


def _shows_patients(root: Root) -> bool:
    """Whether the patient of an encounter is asked for, which is a right of its own."""

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
"""A page whose arguments are known, and the arguments of its statement."""


def _bind(page: PageNode, list_owner: tuple[str, str] | None, variables: Variables, context: Context) -> Settled:
    """Settle a page's arguments. `list_owner` is the brand and patient whose list it is, None for several."""
    given = page.arguments(variables)
    limits = context.services.page_limits
    if given.get("where", EVERYTHING) is None:
        raise Unplannable
    where = given.pop("where", None)
    relay = {name: value for name, value in given.items() if value is not None}
    has_cursor = not relay.keys().isdisjoint({"after", "before"})
    if has_cursor and list_owner is None:
        raise Unplannable
    try:
        if where is None and not has_cursor:
            return _of_size(page.number, limits, **relay)
        filters = EncounterFilter.read(filter_members(where), context.services.input_limits)
        in_list = cursor_scope(*list_owner, filters) if has_cursor and list_owner else ""
        bound = BoundPage(window_of(limits, in_list, **relay), filters)
    except GatewayError:
        raise Unplannable from None
    return bound, arguments_of(page.number, bound)


@lru_cache(256)
def _of_size(number: int, limits: PageLimits, *, first: int | None = None, last: int | None = None) -> Settled:
    """Settle a page that is told apart by nothing but its size, as most are. Raises `InvalidInput`."""
    bound = BoundPage(window_of(limits, "", first=first, last=last), EVERYTHING)
    return bound, arguments_of(number, bound)


AnyPlan = Plan | RecordPlan
