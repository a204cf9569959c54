"""Statements whose rows are bounded in bytes: PostgreSQL sends no more of them than an answer may have."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Integer, Select, bindparam, func, literal_column, select

from resolvers.answer_bytes import AnswerBytes
from resolvers.sql import Connection, Row, Statement

ROW_BYTES: Final = 500
"""Bytes of a row without its long columns, about: ids, instants, words."""


def bounded(rows: Select[Any], long: Sequence[str]) -> Select[Any]:
    """Return the first rows of a statement: those that have at most `most_bytes` together, and one more.

    The last column, `bytes`, says what a row has together with those before it. The rows are measured twice. What a
    column takes where it is stored, perhaps compressed, is known without reading it: so of a list that is far too long
    few columns are read.

    Args:
        rows: The statement, in the order in which its rows are taken.
        long: The names of the columns that are measured.
    """
    stored = _first_rows(rows, [f"pg_column_size({name})" for name in long])
    return _first_rows(stored, [f"octet_length({name}::text)" for name in long])


def _first_rows(rows: Select[Any], sizes: Sequence[str]) -> Select[Any]:
    size = literal_column(" + ".join([str(ROW_BYTES), *(f"coalesce({each}, 0)" for each in sizes)]), Integer)
    columns = [column for column, _ in rows.selected_columns.items() if column != "bytes"]
    own = rows.subquery("found")
    # The offset keeps PostgreSQL from measuring a row wherever its size is looked at.
    measured = select(*(own.c[name] for name in columns), size.label("own_bytes")).offset(literal_column("0"))
    each = measured.subquery("measured")
    running = func.sum(each.c.own_bytes).over(rows=(None, 0)).label("bytes")
    counted = select(each, running).subquery("counted")
    before = counted.c.bytes - counted.c.own_bytes
    return select(*(counted.c[name] for name in columns), counted.c.bytes).where(
        before <= bindparam("most_bytes", type_=BigInteger)
    )


async def fetch_bounded(
    answer: AnswerBytes, connection: Connection, statement: Statement, **values: object
) -> list[Row]:
    """Run a statement that is `bounded` by what is left to the answer.

    Raises `AnswerTooLarge` or `AnswerMemoryFull`.
    """
    rows = await connection.fetch(statement, most_bytes=answer.rows_left, **values)
    if rows:
        answer.add_rows(rows[-1]["bytes"])
    return rows
