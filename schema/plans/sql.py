"""Compile a tree of selections into one SQL statement.

The statement returns one row for each encounter or patient at the root, with its JSON.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from models.base import PROCESS_SCHEMA
from resolvers.encounters.json_sql import (
    ENCOUNTERS,
    WITH_JSON,
    FeedMark,
    Literal,
    Piece,
    SqlExpr,
    SqlRows,
    bytes_of,
    items_of,
    members_of,
    merge_adjacent,
    object_of,
    string_of,
)
from resolvers.encounters.read import arguments_of as arguments_of_places
from resolvers.encounters.read import places_of
from resolvers.encounters.worklists import MOST_COUNTED
from resolvers.list_sql import CRITERIA, ORDERS, Order, beyond, conditions, of_brand
from resolvers.paging import ListOf, Window, digest_of, sql_cursor, sql_digest
from resolvers.sql import Statement
from schema.plans.selection import Member, PageNode, Root


class BoundPage(NamedTuple):
    """The evaluated arguments of a page."""

    window: Window
    of: ListOf

    @property
    def shape(self) -> tuple[Any, ...]:
        """The part of the page that determines the statement's text; the rest is passed as arguments."""
        window = self.window
        criteria = frozenset(self.of.filters.criteria())
        return window.forward, window.after is None, window.before is None, self.of.order, criteria

    @property
    def order(self) -> Order:
        """The order of the list."""
        return ORDERS[self.of.order]


def arguments_of(number: int, bound: BoundPage) -> dict[str, Any]:
    """Return the statement arguments of the page with this number."""
    window = bound.window
    prefix = f"page_{number}_"
    values: dict[str, Any] = {"size": window.size, "limit": window.size + 1}
    # The lists of several patients have the narrowing in common; the digest of one list is computed once.
    values |= (
        {"narrowed": bound.of.narrowed} if bound.of.patient_id is not None else {"digest": digest_of(bound.of.scope)}
    )
    values |= arguments_of_places(places_of(window, bound.order)) | bound.of.filters.criteria()
    # Calls with the same statement and arguments are batched under a key, so each value must be hashable.
    return {prefix + name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


Placeholder = Callable[[str, str], str]
"""Returns the placeholder of an argument, given its name and its SQL type."""


class CompiledQuery(NamedTuple):
    """A statement, and the templates that turn a row of its result into the JSON of a root field."""

    statement: Statement
    forms: Mapping[int, Sequence[bytes]]
    """Templates by the number of the root field: fixed texts, alternating with slots for the JSON columns."""
    marks: Mapping[int, Sequence[int]]
    """The slots of each template that get a position in the feed, and must show its cursor."""


FIRST_JSON = 5
"""Index of a row's first JSON column.

The columns before it are `root`, `key`, `patient_id`, `given` and `bytes`. `root` is the number of the root field,
`given` the number of encounters returned, and `bytes` the estimated size of their pages. `patient_id` is their patient;
for a brand's list, it is the patient of each, separated by line breaks. Pages that exceed `most_bytes` are returned in
part.
"""


class Select(NamedTuple):
    """The statement of one root field: the text before its JSON columns, the parts of its JSON, the text after."""

    head: str
    parts: Sequence[Piece]
    tail: str

    @property
    def columns(self) -> list[str]:
        """The SQL of each part that is not a literal."""
        return [part.sql for part in self.parts if not isinstance(part, Literal)]

    @property
    def form(self) -> list[bytes]:
        """The template of this root field in a `CompiledQuery`."""
        form = [b""]
        for part in self.parts:
            if isinstance(part, Literal):
                form[-1] += part.text.encode()
            else:
                form += [b"", b""]
        return form

    @property
    def marks(self) -> list[int]:
        """The slots of feed positions in the template."""
        columns = [part for part in self.parts if not isinstance(part, Literal)]
        return [2 * place + 1 for place, part in enumerate(columns) if isinstance(part, FeedMark)]

    def text(self, width: int) -> str:
        """Return the statement, padded with NULL to `width` JSON columns."""
        padded = [*self.columns, *["NULL"] * (width - len(self.columns))]
        return self.head + "".join(f", ({sql})::bpchar AS json_{place}" for place, sql in enumerate(padded)) + self.tail


def may_have_bytes(roots: Sequence[Root], bound: Mapping[int, BoundPage]) -> int:
    """Estimate the maximum size of the pages of one row, in bytes."""
    sizes = (sum(bound[page.number].window.size * page.item_bytes for page in root.pages) for root in roots)
    # No root field is left if `@skip` excludes them all.
    return max(sizes, default=0)


def compile_query(
    roots: Sequence[Root], bound: Mapping[int, BoundPage], of_patients: Collection[int] = (), *, counted: bool
) -> CompiledQuery | None:
    """Return one statement for all root fields, or None if no root field needs the database.

    `of_patients` are the numbers of the root fields that name the patient of their encounter.

    If `counted`, the statement measures its pages and truncates them once a row's pages exceed `most_bytes`.
    """
    put = Arguments()
    selects = {
        number: _encounter(number, root, put, of_patient=number in of_patients)
        if root.name == "encounter"
        else _select(number, root, bound, put, counted=counted)
        for number, root in enumerate(roots)
        if root.name != "__typename"
    }
    if not selects:
        return None
    # UNION ALL requires the same number of columns for each root field.
    width = max(len(select.columns) for select in selects.values())
    text = " UNION ALL ".join(select.text(width) for select in selects.values())
    return CompiledQuery(
        Statement(text, put.names),
        {number: select.form for number, select in selects.items()},
        {number: select.marks for number, select in selects.items()},
    )


class Arguments:
    """The arguments of a statement, numbered in order of first use."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, kind: str) -> str:
        """Return the placeholder of an argument."""
        if name not in self.names:
            self.names.append(name)
        return f"${self.names.index(name) + 1}::{kind}"


def _encounter(number: int, root: Root, put: Placeholder, *, of_patient: bool) -> Select:
    owner = f" AND e.patient_id = {put(f'patient_{number}', 'text')}" if of_patient else ""
    return Select(
        head=f"SELECT {number} AS root, e.id::text AS key, e.patient_id, 1 AS given, 0::bigint AS bytes",
        parts=merge_adjacent(_encounter_pieces("e", root.fields)),
        tail=f" FROM ({ENCOUNTERS}"
        f" WHERE e.id = ANY({put(f'ids_{number}', 'uuid[]')}) AND e.brand_id = {put('brand_id', 'text')}{owner}) e",
    )


def _select(number: int, root: Root, bound: Mapping[int, BoundPage], put: Placeholder, *, counted: bool) -> Select:
    members: list[tuple[str, Sequence[Piece]]] = []
    pages = ""
    before: list[str] | None = [] if counted else None
    for key, each in root.fields:
        if isinstance(each, PageNode):
            select, pieces = _page(each, bound[each.number], number, put, before)
            total = _total(each, bound[each.number], number, put)
            pages += f"{total} LEFT JOIN LATERAL ({select}) page_{each.number} ON true"
            members.append((key, pieces))
        else:
            members.append((key, _of_patient("p", each)))
    given = " + ".join(f"page_{page.number}.given" for page in root.pages if page.reads) or "0"
    bytes_ = " + ".join(before or ["0"])
    if root.name == "encounters":
        ((_, parts),) = members
        patients = f"page_{root.pages[0].number}.patients" if root.pages[0].reads else "''"
        return Select(
            head=f"SELECT {number} AS root, '' AS key, {patients} AS patient_id, ({given})::integer AS given,"
            f" ({bytes_})::bigint AS bytes",
            parts=merge_adjacent(parts),
            tail=f" FROM (SELECT 1) one{pages}",
        )
    return Select(
        head=f"SELECT {number} AS root, p.id AS key, p.id AS patient_id, ({given})::integer AS given,"
        f" ({bytes_})::bigint AS bytes",
        parts=merge_adjacent(object_of(members)),
        tail=f" FROM patient_graph.patients p{pages}"
        f" WHERE p.id = ANY({_ids(number, put)}) AND p.brand_id = {put('brand_id', 'text')}",
    )


def _page(
    page: PageNode, bound: BoundPage, root: int, arguments: Placeholder, before: list[str] | None
) -> tuple[str, list[Piece]]:
    """Return the statement of a page and the pieces of its JSON, which refer to the statement's columns.

    Args:
        page: The page in the tree.
        bound: The page's evaluated arguments.
        root: The number of the root field.
        arguments: Returns the placeholder of an argument.
        before: The SQL expressions for the bytes of the preceding pages, in order. The page's own is appended.
            None if bytes are not counted.
    """

    def put(name: str, kind: str) -> str:
        return arguments(f"page_{page.number}_{name}", kind)

    order = bound.order
    items = {key: _item(name, put, bound, below) for key, name, below in page.fields if name in {"nodes", "edges"}}
    left = None if before is None else " - ".join([arguments("most_bytes", "bigint"), *before])
    shown: list[tuple[str, Sequence[Piece]]] = []
    for key, name, below in page.fields:
        match name:
            case "__typename":
                shown.append((key, [Literal('"EncounterConnection"')]))
            case "total_count" if page.of_brand:
                shown.append((key, [SqlExpr(f"least(total_{page.number}.found, {MOST_COUNTED})::text")]))
            case "total_count":
                where = _where(page, bound, root, arguments)
                shown.append((key, [SqlExpr(f"(SELECT count(*)::text FROM patient_graph.encounters e WHERE {where})")]))
            case "total_count_is_exact" if page.of_brand:
                shown.append((key, [SqlExpr(f"(total_{page.number}.found <= {MOST_COUNTED})::text")]))
            case "total_count_is_exact":
                shown.append((key, [Literal("true")]))
            case "feed_cursor":
                # In the snapshot of the rows: it shows every event up to the watermark.
                shown.append((key, [FeedMark(f"(SELECT position::text FROM {PROCESS_SCHEMA}.watermark)")]))
            case "page_info":
                shown.append((key, _page_info(put, bound, below)))
            case "nodes" | "edges":
                shown.append((key, _rows(page, put, bound, items[key], left)))
    columns, pieces = _named(f"page_{page.number}", merge_adjacent(object_of(shown)))
    if not page.reads:
        return f"SELECT {', '.join(columns)}", pieces
    numbered = _is_numbered(page, bound)
    places = {
        side: [*(f"{put(f'{side}_{key.column}', 'text')}::{key.kind}" for key in order.keys), put(f"{side}_id", "uuid")]
        for side in places_of(bound.window, order)
    }
    within = " AND ".join([_where(page, bound, root, arguments), *beyond("e", order, places)])
    in_order = f"ORDER BY {order.by('e', forward=bound.window.forward)}"
    rows = (
        f"FROM patient_graph.encounters e WHERE {within}"
        f" {in_order} LIMIT {put('limit' if numbered else 'size', 'bigint')}"
    )
    if numbered:
        # Rows are numbered before JSON is built, because PostgreSQL materializes the whole page for `count(*) OVER ()`.
        # `OFFSET 0` prevents the planner from inlining the subquery and evaluating a column at each reference.
        place = f"row_number() OVER ({in_order}) AS place"
        rows = f"FROM (SELECT e.*, {place}, count(*) OVER () AS found FROM (SELECT e.* {rows}) e) e OFFSET 0"
    rows = f"{WITH_JSON} {rows}"
    shown_rows = f" FILTER (WHERE e.place <= {put('size', 'bigint')})" if numbered else ""
    if before is not None:
        # The rows are in page order, so `bytes` is a running total: the row's own bytes and those of all rows before.
        own_bytes = bytes_of([piece for item in items.values() for piece in item])
        running = f"sum({own_bytes}) OVER (ROWS UNBOUNDED PRECEDING) AS bytes"
        rows = f"SELECT e.*, {running} FROM ({rows}) e"
        columns.append(f"coalesce(max(e.bytes){shown_rows}, 0) AS bytes")
        before.append(f"page_{page.number}.bytes")
    if page.of_brand:
        columns.append(f"coalesce(string_agg(e.patient_id, E'\\n'){shown_rows}, '') AS patients")
    # The page may have no other column: `hasNextPage` of the last encounters is false without reading them.
    columns.append(f"count(*){shown_rows} AS given")
    return f"SELECT {', '.join(columns)} FROM ({rows}) e", pieces


def _named(table: str, parts: Sequence[Piece]) -> tuple[list[str], list[Piece]]:
    """Return a column for each non-literal part, and the parts with references to these columns."""
    columns: list[str] = []
    pieces: list[Piece] = []
    for part in parts:
        if isinstance(part, Literal):
            pieces.append(part)
        else:
            name = f"json_{len(columns)}"
            columns.append(f"{part.sql} AS {name}")
            pieces.append(part._replace(sql=f"{table}.{name}"))
    return columns, pieces


def _is_numbered(page: PageNode, bound: BoundPage) -> bool:
    """Whether rows need numbers: if the page is returned in reverse reading order, or selects `pageInfo`."""
    return not bound.window.forward or any(name == "page_info" for _, name, _ in page.fields)


def _where(page: PageNode, bound: BoundPage, root: int, arguments: Placeholder) -> str:
    # Of a patient's list, the second condition says nothing new: a cluster infers the shards from it.
    owner = (
        of_brand("e", arguments("brand_id", "text"), bound.of.filters.criteria())
        if page.of_brand
        else f"e.patient_id = p.id AND e.patient_id = ANY({_ids(root, arguments)}) AND e.brand_id = p.brand_id"
    )
    criteria = bound.of.filters.criteria()
    values = {name: arguments(f"page_{page.number}_{name}", CRITERIA[name].kind) for name in criteria}
    return " AND ".join([owner, *conditions("e", bound.order, values)])


def _ids(root: int, put: Placeholder) -> str:
    """Return the placeholder of the ids of a root field's patients."""
    return put(f"ids_{root}", "text[]")


def _total(page: PageNode, bound: BoundPage, root: int, arguments: Placeholder) -> str:
    """Return the join that counts a brand's list, up to one more than `MOST_COUNTED`; empty if it is not selected."""
    if not (page.of_brand and any(name.startswith("total_count") for _, name, _ in page.fields)):
        return ""
    where = _where(page, bound, root, arguments)
    found = f"SELECT 1 FROM patient_graph.encounters e WHERE {where} LIMIT {MOST_COUNTED + 1}"
    return f" CROSS JOIN (SELECT count(*) AS found FROM ({found}) e) total_{page.number}"


def _rows(page: PageNode, put: Placeholder, bound: BoundPage, item: Sequence[Piece], left: str | None) -> list[Piece]:
    """Return the pieces of a JSON list of items.

    Args:
        page: The page in the tree.
        put: Returns the placeholder of an argument.
        bound: The page's evaluated arguments.
        item: The pieces of one item.
        left: The SQL expression for the bytes still available; items beyond are dropped. None if bytes are not counted.
    """
    order_by = None
    only = [f"e.bytes <= {left}"] if left else []
    if _is_numbered(page, bound):
        # A backward page is read oldest first but returned newest first. A numbered page has one extra row, which
        # shows whether the list continues and is not returned.
        order_by = "e.place" if bound.window.forward else "e.place DESC"
        only.append(f"e.place <= {put('size', 'bigint')}")
    listed = items_of(item, order_by=order_by, only=" AND ".join(only))
    return [Literal("["), SqlRows(listed), Literal("]")]


def _item(name: str, put: Placeholder, bound: BoundPage, fields: Sequence[Any]) -> list[Piece]:
    return _encounter_pieces("e", fields) if name == "nodes" else _edge_pieces(put, bound, fields)


def _page_info(put: Placeholder, bound: BoundPage, fields: Sequence[Any]) -> list[Piece]:
    return object_of([(key, [_of_page_info(name, put, bound)]) for key, name in fields])


def _of_page_info(name: str, put: Placeholder, bound: BoundPage) -> Piece:
    window = bound.window
    # PostgreSQL cannot infer the type of an unused parameter, so only the selected fields are built.
    size = put("size", "bigint")
    match name:
        case "hasNextPage" if not window.forward:
            return Literal("true" if window.before is not None else "false")
        case "hasPreviousPage" if window.forward:
            return Literal("true" if window.after is not None else "false")
        case "hasNextPage" | "hasPreviousPage":
            return SqlExpr(f"CASE WHEN count(*) > {size} THEN 'true' ELSE 'false' END")
        case "startCursor" | "endCursor":
            is_first_read = (name == "startCursor") is window.forward
            return _cursor_at(put, bound, "1" if is_first_read else f"least(e.found, {size})")
    return Literal('"PageInfo"')


def _cursor_at(put: Placeholder, bound: BoundPage, place: str) -> Piece:
    cursor = _cursor(put, bound)
    only = f"e.place = {place} AND e.place <= {put('size', 'bigint')}"
    return SqlExpr(f"""coalesce('"' || max({cursor}) FILTER (WHERE {only}) || '"', 'null')""")


def _cursor(put: Placeholder, bound: BoundPage) -> str:
    in_brand = bound.of.patient_id is None
    digest = put("digest", "bytea") if in_brand else sql_digest("e", put("narrowed", "text"))
    return sql_cursor("e", bound.order, digest)


def _edge_pieces(put: Placeholder, bound: BoundPage, fields: Sequence[tuple[str, str, Sequence[Any]]]) -> list[Piece]:
    members: list[tuple[str, Sequence[Piece]]] = []
    for key, name, below in fields:
        match name:
            case "cursor":
                members.append((key, [Literal('"'), SqlExpr(_cursor(put, bound)), Literal('"')]))
            case "node":
                members.append((key, _encounter_pieces("e", below)))
            case _:
                members.append((key, [Literal('"EncounterEdge"')]))
    return object_of(members)


def _encounter_pieces(row: str, fields: Sequence[tuple[str, Any]]) -> list[Piece]:
    columns = members_of(row, upper=True) | {"no_actions": [Literal("[]")]}
    members: list[tuple[str, Sequence[Piece]]] = []
    for key, each in fields:
        if isinstance(each, Member):
            members.append((key, [Literal('"Encounter"')] if each.name == "__typename" else columns[each.name]))
        else:
            # A foreign key guarantees that the patient exists in the encounter's brand, so the row is not read.
            of_row = {"id": string_of(f"{row}.patient_id"), "brand_id": string_of(f"{row}.brand_id")}
            patient = [
                (name, [Literal('"Patient"')] if of.name == "__typename" else of_row[of.name]) for name, of in each
            ]
            members.append((key, object_of(patient)))
    return object_of(members)


def _of_patient(row: str, member: Member) -> list[Piece]:
    return [Literal('"Patient"')] if member.name == "__typename" else string_of(f"{row}.{member.name}")
