"""SQL that serializes encounters to JSON, byte for byte as Python does, at a twentieth of the CPU time.

A piece is an SQL expression of type text, or a literal text; `joined` concatenates pieces into one expression. No piece
is ever null.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from models import MEMBERS, EncounterStatus, Kind, Member
from resolvers.encounters.lifecycle import allowed_actions
from resolvers.encounters.published import PUBLISHED


class Literal(NamedTuple):
    """A text that is part of every answer."""

    text: str


class SqlExpr(NamedTuple):
    """An SQL expression of type text, never null."""

    sql: str


class Long(NamedTuple):
    """An SQL expression of a text that may be long, never null: its bytes are counted where a list is bounded."""

    sql: str


class SqlRows(NamedTuple):
    """An SQL expression of a list's rows as one text, never null. It may be long, and each `||` would copy it."""

    sql: str


class FeedMark(NamedTuple):
    """An SQL expression of a position in the feed, as text. The caller writes its cursor."""

    sql: str


Piece = Literal | SqlExpr | Long | SqlRows | FeedMark


def joined(pieces: Iterable[Piece]) -> str:
    """Return the SQL that concatenates the pieces."""
    parts: list[str] = []
    text = ""
    for piece in (*pieces, SqlExpr("")):
        if isinstance(piece, Literal):
            text += piece.text
            continue
        if text:
            parts.append("'" + text.replace("'", "''") + "'")
            text = ""
        if piece.sql:
            parts.append(piece.sql)
    return " || ".join(parts)


def merge_adjacent(pieces: Iterable[Piece]) -> list[Piece]:
    """Merge the pieces between those that need a column of their own; adjacent literals stay a literal."""
    parts: list[Piece] = []
    for stay, each in groupby(pieces, key=lambda piece: isinstance(piece, SqlRows | FeedMark)):
        together = list(each)
        literals = [piece.text for piece in together if isinstance(piece, Literal)]
        if stay:
            parts += together
        elif len(literals) == len(together):
            parts.append(Literal("".join(literals)))
        else:
            parts.append(SqlExpr(joined(together)))
    return parts


def object_of(members: Sequence[tuple[str, Sequence[Piece]]]) -> list[Piece]:
    """Return the pieces of a JSON object. The names must not need an escape."""
    pieces: list[Piece] = []
    for number, (name, value) in enumerate(members):
        pieces += [Literal(f'{"," if number else "{"}"{name}":'), *value]
    return [*pieces, Literal("}" if members else "{}")]


def items_of(item: Sequence[Piece], *, order_by: str | None = None, only: str = "") -> str:
    """Return the SQL of a list's items, joined by commas: one for each row for which `only` holds.

    Without `order_by` the items have the order of the rows, which a subquery must then define. Source: PostgreSQL
    documentation, 9.21 "Aggregate Functions".
    """
    ordered = f" ORDER BY {order_by}" if order_by else ""
    filtered = f" FILTER (WHERE {only})" if only else ""
    return f"coalesce(string_agg({joined(item)}, ','{ordered}){filtered}, '')"


USUAL_BYTES = 40
"""Approximate bytes of a member that is not long: an id or an instant with its quotation marks."""


def bytes_of(items: Sequence[Piece]) -> str:
    """Return SQL for the approximate bytes of one row's items."""
    literal_bytes = sum(len(piece.text) if isinstance(piece, Literal) else USUAL_BYTES for piece in items)
    return " + ".join(
        [str(literal_bytes), *(f"octet_length({piece.sql})" for piece in items if isinstance(piece, Long))]
    )


# The members of an encounter, by their columns


def string_of(column: str) -> list[Piece]:
    """Return a string that is never null."""
    return [SqlExpr(f"to_json({column})::text")]


_AS_JSON = ", ".join(
    f"{f'e.{name}' if member.kind is Kind.JSON else f'to_json(e.{name})'}::text AS {name}_json"
    for name, member in MEMBERS.items()
    if member.is_long or member.kind is Kind.INSTANT
)
WITH_JSON = f"SELECT e.*, {_AS_JSON}"
"""Selects rows `e` of encounters, with instants and long members also as JSON: these are used twice or measured, and so
computed once.
"""

ENCOUNTERS = f"{WITH_JSON} FROM patient_graph.encounters e"
"""Encounters with these columns."""


# The ending for each length of the text: PostgreSQL drops trailing zeros of microseconds, and `json_text.instant` does
# not. A text without microseconds, or with six digits of them, only needs the `Z`.
_ENDINGS = " ".join(f"WHEN {34 - zeros} THEN '{'0' * zeros}Z'" for zeros in range(6))


def instant_of(row: str, name: str) -> list[Piece]:
    """Return an instant of a row of `ENCOUNTERS`, in UTC because the session is, with microseconds if it has any."""
    written = f"{row}.{name}_json"
    text = f"replace({written}, '+00:00', CASE octet_length({written}) {_ENDINGS} ELSE 'Z' END)"
    return [SqlExpr(f"coalesce({text}, 'null')")]


def members_of(row: str, *, upper: bool) -> dict[str, list[Piece]]:
    """Return each column of a row of `ENCOUNTERS` as JSON; `upper` for the values of GraphQL's enums."""
    members = {name: _member_of(row, member, upper=upper) for name, member in MEMBERS.items()}
    return members | {"allowed_actions": _allowed_actions(f"{row}.status")}


def published_json(row: str) -> list[Piece]:
    """Return a row of `ENCOUNTERS` as the object of the REST door, byte for byte as `published` serializes it."""
    members = members_of(row, upper=False)
    return object_of([(name, members[name]) for name in PUBLISHED])


def _member_of(row: str, member: Member, *, upper: bool) -> list[Piece]:
    column = f"{row}.{member.name}"
    match member.kind:
        case Kind.STRING:
            return string_of(column)
        case Kind.TEXT:
            return [Long(f"coalesce({column}_json, 'null')")]
        case Kind.UUID if member.optional:
            return [SqlExpr(f"""coalesce('"' || {column}::text || '"', 'null')""")]
        case Kind.UUID:
            return [Literal('"'), SqlExpr(f"{column}::text"), Literal('"')]
        case Kind.ENUM:
            # The outer collation is the column's own: a cluster requires the same one on every node.
            word = f'(upper({column} COLLATE "C") COLLATE "default")' if upper else column
            return [Literal('"'), SqlExpr(word), Literal('"')]
        case Kind.INSTANT:
            return instant_of(row, member.name)
        case Kind.JSON:
            return [Long(f"{column}_json")]
        case Kind.INTEGER:
            return [SqlExpr(f"{column}::text")]


def _allowed_actions(status: str) -> list[Piece]:
    cases = " ".join(
        f"WHEN '{each}' THEN '[{','.join(f'{chr(34)}{action.name}{chr(34)}' for action in allowed_actions(each))}]'"
        for each in EncounterStatus
    )
    return [SqlExpr(f"CASE {status} {cases} END")]
