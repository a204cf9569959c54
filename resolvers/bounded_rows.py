"""Statements whose rows are bounded in bytes: PostgreSQL sends at most as many as one answer may have."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Integer, Select, bindparam, func, literal_column, select

from models import MEMBERS
from resolvers.answer_bytes import AnswerBytes
from resolvers.sql import Connection, Row, Statement

LONG: Final = tuple(member.name for member in MEMBERS.values() if member.is_long)
"""The columns of an encounter that may be long."""

LONG_BYTES: Final = 75_000
"""Approximate maximum bytes of a long column: the average of those of an encounter, by their limits."""

ROW_BYTES: Final = 500
"""Approximate bytes of a row without its long columns: ids, instants, enum values."""


def are_counted(may_have_bytes: int, most_bytes: int) -> bool:
    """Return whether a row's lists may far exceed the limit, so that PostgreSQL must count their bytes as it builds it.

    A hundred encounters with all their members stay below the usual limit. Counting costs a microsecond for each
    encounter.
    """
    return may_have_bytes > 2 * most_bytes


class BoundedStatement:
    """A statement in two forms: `plain`, for a few rows, and `counted`, which stops at the limit of an answer."""

    def __init__(self, rows: Select[Any], long: Sequence[str]) -> None:
        """Take an ordered statement and the names of its long columns."""
        self._long = long
        self.plain = Statement(rows)
        self.counted = Statement(_counted(rows, long))

    async def fetch(self, answer: AnswerBytes, connection: Connection, rows: int, **values: object) -> list[Row]:
        """Run it for at most `rows` rows and count their bytes. Raises `AnswerTooLarge` or `AnswerMemoryFull`."""
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

    The last column, `bytes`, is the running total up to the row. The rows are measured twice, first by their stored,
    perhaps compressed, size. PostgreSQL knows that size without reading the column, so that it reads few columns of a
    list that is far too long.
    """
    stored = _first_rows(rows, [f"pg_column_size({name})" for name in long])
    return _first_rows(stored, [f"octet_length({name}::text)" for name in long])


def _first_rows(rows: Select[Any], sizes: Sequence[str]) -> Select[Any]:
    size = literal_column(" + ".join([str(ROW_BYTES), *(f"coalesce({each}, 0)" for each in sizes)]), Integer)
    columns = [column for column, _ in rows.selected_columns.items() if column != "bytes"]
    own = rows.subquery("found")
    # The OFFSET prevents PostgreSQL from measuring a row at each use of its size.
    measured = select(*(own.c[name] for name in columns), size.label("own_bytes")).offset(literal_column("0"))
    each = measured.subquery("measured")
    running = func.sum(each.c.own_bytes).over(rows=(None, 0)).label("bytes")
    counted = select(each, running).subquery("counted")
    before = counted.c.bytes - counted.c.own_bytes
    return select(*(counted.c[name] for name in columns), counted.c.bytes).where(
        before <= bindparam("most_bytes", type_=BigInteger)
    )
