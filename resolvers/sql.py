"""A SQLAlchemy statement that is compiled once and sent to PostgreSQL many times."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import Any, Protocol, Self

from sqlalchemy import ClauseElement
from sqlalchemy.dialects.postgresql.asyncpg import dialect

Row = Any
"""One row, its columns by name (an `asyncpg.Record`)."""


class Statement:
    """The text of a statement and the order of its arguments.

    Building and hashing a SQLAlchemy statement costs fourteen times as much as sending its text. Each statement is
    therefore built when its module is imported, and compiled when it is first sent. After that a request only supplies
    the arguments.
    """

    def __init__(self, clause: ClauseElement | str, names: Sequence[str] = ()) -> None:
        """Take a clause to compile, or a text whose placeholders `$1`, `$2` … stand for `names` in order."""
        self._clause = clause
        self._text_names = names

    @cached_property
    def text(self) -> str:
        """The SQL text that is sent."""
        return self._compiled[0]

    @cached_property
    def _compiled(self) -> tuple[str, Sequence[str], Mapping[str, object]]:
        """The text, the names of its placeholders, and the arguments that are constant."""
        if isinstance(self._clause, str):
            return self._clause, self._text_names, {}
        compiled = self._clause.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        fixed = {name: value for name, value in compiled.params.items() if value is not None}
        return str(compiled), compiled.positiontup or (), fixed  # type: ignore[attr-defined]

    def explaining(self) -> Self:
        """Return the EXPLAIN statement of this one."""
        _, names, _ = self._compiled
        return type(self)(f"EXPLAIN {self.text}", names)

    def arguments(self, values: dict[str, object]) -> list[object]:
        """Return the values in the order of the statement's placeholders. Raises `KeyError` if one is missing."""
        _, names, fixed = self._compiled
        return [values[name] if name in values else fixed[name] for name in names]


class Connection(Protocol):
    """A connection in use, inside or outside a transaction.

    Raises `Locked` when the wait for a lock times out, and `PatientErased` for an encounter whose patient is deleted.
    """

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        """Run the statement and return its rows."""

    async def fetch_at_most(self, most_bytes: int, statement: Statement, /, **values: object) -> list[Row]:
        """Run the statement and return its rows, whose JSON columns have at most `most_bytes` together.

        Raises `AnswerTooLarge` as soon as there are more, and asks the server to cancel the statement.
        """

    async def fetch_one(self, statement: Statement, **values: object) -> Row | None:
        """Run the statement and return its first row, or None."""


class Database(Protocol):
    """The database, as the resolvers use it. Every use is scoped to one brand."""

    def connection(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection for one statement, or for several without a common snapshot."""

    async def fetch_one_batched(
        self,
        brand_id: str,
        statement: Statement,
        by: str,
        value: str,
        *,
        rows: int = 1,
        most_bytes: int,
        **given: object,
    ) -> Row | None:
        """Return the row whose `key` equals `value` exactly. Concurrent calls may be batched into one statement.

        Args:
            brand_id: The brand, which the statement takes as `brand_id`.
            statement: The statement, which returns one row for each value.
            by: The name by which the statement takes the list of values.
            value: The value of the row's `key`.
            rows: Approximate number of rows that the statement reads to build one row.
            most_bytes: Maximum bytes of the row's JSON columns; the statement may take it too.
            given: Further hashable arguments of the statement.

        Raises `AnswerTooLarge` or `TemporarilyUnavailable`.
        """

    def autocommit(self, brand_id: str, within_seconds: float) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection for one writing statement, which commits by itself.

        Raises `OutcomeUnknown` if the connection is lost during the statement. Raises `TemporarilyUnavailable` if the
        server reports that the statement had no effect, or if no connection is free within `within_seconds`.
        """

    def transaction(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection in a transaction that commits at the end of the block, or rolls back on an error.

        Raises `OutcomeUnknown` if the connection is lost at the commit, `TemporarilyUnavailable` if it is lost earlier
        or none is free.
        """


class RelayDatabase(Protocol):
    """The database, as the relay and the periodic jobs use it: statements across all brands."""

    def unscoped(self) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection that is not scoped to a brand. Raises `TemporarilyUnavailable`."""

    def transaction(self, brand_id: None) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection in a transaction, as `Database.transaction` does."""
