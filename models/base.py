"""The base of all tables: the schema, the naming of constraints, and shared column types."""

from enum import StrEnum
from typing import ClassVar

import sqlalchemy
from sqlalchemy import DateTime, Enum, MetaData
from sqlmodel import SQLModel

SCHEMA = "patient_graph"
"""The schema of all data that belongs to a brand; every table in it has a brand column."""

PROCESS_SCHEMA = "gateway"
"""The schema of process data without a brand: the applied migrations and the leases."""

# Constraint names follow a rule, so that a migration can name a constraint without querying the database.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

INSTANT = DateTime(timezone=True)
"""An instant to the microsecond; the offset that was sent is not stored."""


class Table(SQLModel):
    """The base of every table. A row is trusted: a table class validates nothing."""

    # So the validator is not built either.
    model_config = {"defer_build": True}

    metadata: ClassVar[MetaData] = MetaData(schema=SCHEMA, naming_convention=NAMING_CONVENTION)


def table_of(model: type[SQLModel]) -> sqlalchemy.Table:
    """Return the table of a model. SQLModel leaves `__table__` undeclared."""
    return model.__table__  # type: ignore[attr-defined,no-any-return]


def words(enum: type[StrEnum], name: str) -> Enum:
    """Return a text column type for an enum's values, checked by the database constraint `name`."""
    # A native PostgreSQL enum cannot drop a value, and is awkward to extend within a transaction. A CHECK has neither
    # limit.
    return Enum(
        enum,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )
