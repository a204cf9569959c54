"""Statements whose rows are bounded in bytes: PostgreSQL sends no more of them than an answer may have."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Integer, Select, bindparam, func, literal_column, select

from resolvers.answer_bytes import AnswerBytes
from resolvers.sql import Connection, Row, Statement

LONG: Final = ("chief_complaint", "notes", "metadata")
"""The columns of an encounter that may be long."""

LONG_BYTES: Final = 100_000
"""Bytes that a long column may have, about."""

ROW_BYTES: Final = 500
"""Bytes of a row without its long columns, about: ids, instants, words."""


def are_counted(may_have_bytes: int, most_bytes: int) -> bool:
    """Say whether the bytes of a row's lists are counted while it is put together: they may pass the limit by far.

    A hundred encounters do not, with all their members, under the usual limit. To count costs a microsecond for each.
    """
    return may_have_bytes > 2 * most_bytes


class BoundedStatement:
    """A statement in two forms: as it is, for a few rows, and `counted`, which ends where an answer's limit does."""

    def __init__(self, rows: Select[Any], long: Sequence[str]) -> None:
        """Take a statement, in the order in which its rows are taken, and the names of its long columns."""
        self._long = long
        self.plain = Statement(rows)
        self.counted = Statement(_counted(rows, long))

    async def fetch(self, answer: AnswerBytes, connection: Connection, rows: int, **values: object) -> list[Row]:
        """Run it for so many rows at most, and count their bytes. Raises `AnswerTooLarge` or `AnswerMemoryFull`."""
        if are_counted(rows * len(self._long) * LONG_BYTES, answer.maximum):
            found = await connection.fetch(self.counted, most_bytes=answer.rows_left, **values)
            count = found[-1]["bytes"] if found else 0
        else:
            found = await connection.fetch(self.plain, **values)
            count = ROW_BYTES * len(found) + sum(len(row[name] or "") for row in found for name in self._long)
        answer.add_rows(count)
        return found


def _counted(rows: Select[Any], long: Sequence[str]) -> Select[Any]:
    """Return the first rows of a statement: those that have at most `most_bytes` together, and one more.

    The last column, `bytes`, says what a row has together with those before it. The rows are measured twice. What a
    column takes where it is stored, perhaps compressed, is known without reading it: so of a list that is far too long
    few columns are read.
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
