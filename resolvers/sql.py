"""A SQLAlchemy statement compiled once, to be sent to PostgreSQL many times."""

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

    Building and hashing a SQLAlchemy statement costs fourteen times what sending its text costs, so each is built when
    its module is imported and compiled when it is first sent; after that a request only fills in the arguments.
    """

    def __init__(self, clause: ClauseElement | str, names: Sequence[str] = ()) -> None:
        """Take a statement to compile; or a text whose placeholders `$1`, `$2` … stand for what is named."""
        self._clause = clause
        self._text_names = names

    @cached_property
    def text(self) -> str:
        """What is sent."""
        return self._compiled[0]

    @cached_property
    def _compiled(self) -> tuple[str, Sequence[str], Mapping[str, object]]:
        """The text, the names of its placeholders, and the arguments that are always the same."""
        if isinstance(self._clause, str):
            return self._clause, self._text_names, {}
        compiled = self._clause.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        fixed = {name: value for name, value in compiled.params.items() if value is not None}
        return str(compiled), compiled.positiontup or (), fixed  # type: ignore[attr-defined]

    def explaining(self) -> Self:
        """Give the statement that says how PostgreSQL goes about this one."""
        _, names, _ = self._compiled
        return type(self)(f"EXPLAIN {self.text}", names)

    def arguments(self, values: dict[str, object]) -> list[object]:
        """Order the values by the statement's placeholders. Raises `KeyError` when one is missing."""
        _, names, fixed = self._compiled
        return [values[name] if name in values else fixed[name] for name in names]


class Connection(Protocol):
    """One connection in use, inside a transaction or out of one. Raises `Locked` where a lock is not waited for."""

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        """Run the statement and give its rows."""

    async def fetch_at_most(self, most_bytes: int, statement: Statement, /, **values: object) -> list[Row]:
        """Run the statement and give its rows, whose columns of JSON have at most so many bytes together.

        Raises `AnswerTooLarge` as soon as there are more, and asks the server to stop.
        """

    async def fetch_one(self, statement: Statement, **values: object) -> Row | None:
        """Run the statement and give its first row, or None."""


class Database(Protocol):
    """What the resolvers need of a database. Every use is for one brand."""

    def connection(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Borrow a connection for one statement or a few that need not agree with each other."""

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
        """Find the row whose `key` is a value, to the letter. Those who look at the same time may be served together.

        The statement takes `brand_id`, by the name `by` a list of such values, and what else is `given`, all of which
        can be hashed; to make its row it reads about so many `rows`. The row's columns of JSON have at most
        `most_bytes`, which the statement may take too. Raises `AnswerTooLarge` or `TemporarilyUnavailable`.
        """

    def autocommit(self, brand_id: str, within_seconds: float) -> AbstractAsyncContextManager[Connection]:
        """Borrow a connection for one statement that changes something, and commits by itself.

        Raises `OutcomeUnknown` when the connection is lost on the way, `TemporarilyUnavailable` when the server says
        that it did not happen, or none is free within that time.
        """

    def transaction(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Borrow a connection in a transaction that commits at the end of the block, or rolls back on an error.

        Raises `OutcomeUnknown` when the connection is lost at the commit, `TemporarilyUnavailable` when it is lost
        earlier or none is free.
        """


class RelayDatabase(Protocol):
    """What the relay and the periodic jobs need of a database: statements for all brands."""

    def unscoped(self) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection that no brand bounds. Raises `TemporarilyUnavailable`."""

    def transaction(self, brand_id: None) -> AbstractAsyncContextManager[Connection]:
        """Acquire a connection in a transaction, as `Database.transaction` does."""
