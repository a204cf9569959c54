"""Encounters as JSON that PostgreSQL writes: to the letter as Python would, and a twentieth of the work.

A piece is SQL of type text, or text that is there already; `joined` puts pieces into one expression. Every piece is
never null.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from models import EncounterStatus
from resolvers.encounters.lifecycle import allowed_actions


class Literal(NamedTuple):
    """A text that is part of every answer."""

    text: str


class SqlExpr(NamedTuple):
    """SQL that gives a text, never null."""

    sql: str


class Long(NamedTuple):
    """SQL that gives a text that may be long, never null: its bytes are counted where a list is bounded."""

    sql: str


class SqlRows(NamedTuple):
    """SQL that gives the rows of a list as one text, never null: it may be long, and each `||` would copy it."""

    sql: str


Piece = Literal | SqlExpr | Long | SqlRows


def joined(pieces: Iterable[Piece]) -> str:
    """Give the SQL of all the pieces, one after the other."""
    parts: list[str] = []
    said = ""
    for piece in (*pieces, SqlExpr("")):
        if isinstance(piece, Literal):
            said += piece.text
            continue
        if said:
            parts.append("'" + said.replace("'", "''") + "'")
            said = ""
        if piece.sql:
            parts.append(piece.sql)
    return " || ".join(parts)


def merge_adjacent(pieces: Iterable[Piece]) -> list[Piece]:
    """Join what lies between the lists, so that each list can be a column to itself; what is only said stays said."""
    parts: list[Piece] = []
    for are_lists, each in groupby(pieces, key=lambda piece: isinstance(piece, SqlRows)):
        together = list(each)
        said = [piece.text for piece in together if isinstance(piece, Literal)]
        if are_lists:
            parts += together
        elif len(said) == len(together):
            parts.append(Literal("".join(said)))
        else:
            parts.append(SqlExpr(joined(together)))
    return parts


def object_of(members: Sequence[tuple[str, Sequence[Piece]]]) -> list[Piece]:
    """Give the pieces of a JSON object. The names are plain: nothing in them needs an escape."""
    pieces: list[Piece] = []
    for number, (name, value) in enumerate(members):
        pieces += [Literal(f'{"," if number else "{"}"{name}":'), *value]
    return [*pieces, Literal("}" if members else "{}")]


def items_of(item: Sequence[Piece], *, order_by: str | None = None, only: str = "") -> str:
    """Give the SQL of a list's items with commas between them: one for each row that `only` lets through.

    With no `order_by` in the order of the rows, which a subquery alone has to give. Source: PostgreSQL documentation,
    9.21 "Aggregate Functions".
    """
    ordered = f" ORDER BY {order_by}" if order_by else ""
    filtered = f" FILTER (WHERE {only})" if only else ""
    return f"coalesce(string_agg({joined(item)}, ','{ordered}){filtered}, '')"


USUAL_BYTES = 40
"""Bytes of a member that is not long, about: an id or an instant with its quotation marks."""


def bytes_of(items: Sequence[Piece]) -> str:
    """Return SQL for about the bytes of one row's items."""
    said = sum(len(piece.text) if isinstance(piece, Literal) else USUAL_BYTES for piece in items)
    return " + ".join([str(said), *(f"octet_length({piece.sql})" for piece in items if isinstance(piece, Long))])


# The members of an encounter, by their columns


def text_of(row: str, name: str) -> list[Piece]:
    """A string of a row of `ENCOUNTERS` that may be null."""
    return [Long(f"coalesce({row}.{name}_json, 'null')")]


def string_of(column: str) -> list[Piece]:
    """A string that is never null."""
    return [SqlExpr(f"to_json({column})::text")]


INSTANTS = ("scheduled_at", "started_at", "ended_at", "created_at", "updated_at")
TEXTS = ("chief_complaint", "notes")
_AS_JSON = ", ".join(f"to_json(e.{name})::text AS {name}_json" for name in (*INSTANTS, *TEXTS))
COLUMNS = f"SELECT e.*, {_AS_JSON}, e.metadata::text AS metadata_json"
"""Columns of encounters, instants and long members also as JSON: which is looked at twice, or measured, and so made
once."""

ENCOUNTERS = f"{COLUMNS} FROM patient_graph.encounters e"
"""Encounters with these columns."""


# How a text of each length goes on after its seconds: PostgreSQL leaves out the zeros at the end of microseconds, and
# `json_text.instant` does not. The others, without microseconds or with six digits of them, only need the `Z`.
_ENDINGS = " ".join(f"WHEN {34 - zeros} THEN '{'0' * zeros}Z'" for zeros in range(6))


def instant_of(row: str, name: str) -> list[Piece]:
    """An instant of a row of `ENCOUNTERS`: in UTC because the session is, its microseconds where it has any."""
    written = f"{row}.{name}_json"
    text = f"replace({written}, '+00:00', CASE octet_length({written}) {_ENDINGS} ELSE 'Z' END)"
    return [SqlExpr(f"coalesce({text}, 'null')")]


def word_of(column: str, *, upper: bool) -> list[Piece]:
    """One of an enum's words."""
    return [Literal('"'), SqlExpr(f'upper({column} COLLATE "C")' if upper else column), Literal('"')]


def members_of(row: str, *, upper: bool) -> dict[str, list[Piece]]:
    """Give each column of a row of `ENCOUNTERS` as JSON; `upper` for the words of GraphQL's enums."""
    return {
        "id": [Literal('"'), SqlExpr(f"{row}.id::text"), Literal('"')],
        "patient_id": string_of(f"{row}.patient_id"),
        "provider_id": [SqlExpr(f"""coalesce('"' || {row}.provider_id::text || '"', 'null')""")],
        "brand_id": string_of(f"{row}.brand_id"),
        "encounter_type": word_of(f"{row}.encounter_type", upper=upper),
        "status": word_of(f"{row}.status", upper=upper),
        "scheduled_at": instant_of(row, "scheduled_at"),
        "started_at": instant_of(row, "started_at"),
        "ended_at": instant_of(row, "ended_at"),
        "chief_complaint": text_of(row, "chief_complaint"),
        "notes": text_of(row, "notes"),
        "metadata": [Long(f"{row}.metadata_json")],
        "created_at": instant_of(row, "created_at"),
        "updated_at": instant_of(row, "updated_at"),
        "version": [SqlExpr(f"{row}.version::text")],
        "allowed_actions": _allowed_actions(f"{row}.status"),
    }


def _allowed_actions(status: str) -> list[Piece]:
    cases = " ".join(
        f"WHEN '{each}' THEN '[{','.join(f'{chr(34)}{action.name}{chr(34)}' for action in allowed_actions(each))}]'"
        for each in EncounterStatus
    )
    return [SqlExpr(f"CASE {status} {cases} END")]
