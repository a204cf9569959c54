"""A SQLAlchemy statement compiled once, to be sent to PostgreSQL many times."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from sqlalchemy import ClauseElement
from sqlalchemy.dialects.postgresql.asyncpg import dialect

Row = Any
"""One row, its columns by name (an `asyncpg.Record`)."""


class Statement:
    """The text of a statement and the order of its arguments.

    Building and hashing a SQLAlchemy statement costs fourteen times what sending its text costs, so each is made when
    its module is imported; a request only fills in the arguments.
    """

    def __init__(self, clause: ClauseElement | str, names: Sequence[str] = ()) -> None:
        """Compile a statement; or take a text whose placeholders `$1`, `$2` … stand for what is named."""
        if isinstance(clause, str):
            self.text, self._names, self._fixed = clause, names, {}
            return
        compiled = clause.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        self.text = str(compiled)
        self._names = compiled.positiontup or ()  # type: ignore[attr-defined]
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}

    def arguments(self, values: dict[str, object]) -> list[object]:
        """Order the values by the statement's placeholders. Raises `KeyError` when one is missing."""
        return [values[name] if name in values else self._fixed[name] for name in self._names]


class Connection(Protocol):
    """One connection in use, inside a transaction or out of one. Raises `Locked` where a lock is not waited for."""

    async def fetch(self, statement: Statement, **values: object) -> list[Row]:
        """Run the statement and give its rows."""

    async def fetch_one(self, statement: Statement, **values: object) -> Row | None:
        """Run the statement and give its first row, or None."""


class Database(Protocol):
    """What the resolvers need of a database. Every use is for one brand."""

    def reading(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Borrow a connection for one statement or a few that need not agree with each other."""

    async def find(self, brand_id: str, statement: Statement, by: str, value: object) -> Row | None:
        """Find the row whose `key` is a value, as text. Those who look at the same time may be served together.

        The statement takes `brand_id` and, by the name `by`, a list of such values. Raises `TemporarilyUnavailable`.
        """

    def at_once(self, brand_id: str, within_seconds: float) -> AbstractAsyncContextManager[Connection]:
        """Borrow a connection for one statement that changes something, and commits by itself.

        Raises `OutcomeUnknown` when the connection is lost on the way, `TemporarilyUnavailable` when the server says
        that it did not happen, or none is free within that time.
        """

    def transaction(self, brand_id: str) -> AbstractAsyncContextManager[Connection]:
        """Borrow a connection in a transaction that commits at the end of the block, or rolls back on an error.

        Raises `OutcomeUnknown` when the connection is lost at the commit, `TemporarilyUnavailable` when it is lost
        earlier or none is free.
        """
