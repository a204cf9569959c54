"""What every table shares: the schema it lives in, how constraints are named, column types used twice."""

from enum import StrEnum
from typing import ClassVar

from sqlalchemy import DateTime, Enum, MetaData
from sqlmodel import SQLModel

SCHEMA = "patient_graph"
"""Where everything that belongs to a brand lives; every table in it says which brand."""

PROCESS_SCHEMA = "gateway"
"""Where the process keeps what belongs to no brand: which migrations ran, who is the relay."""

# Names are given by rule, so that a migration can name a constraint it has never seen the database choose.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

INSTANT = DateTime(timezone=True)
"""A point in time to the microsecond; the offset it was sent with is not kept."""


class Table(SQLModel):
    """The base of every table. A row is trusted: a table class validates nothing."""

    # And so what would validate it is not built.
    model_config = {"defer_build": True}

    metadata: ClassVar[MetaData] = MetaData(schema=SCHEMA, naming_convention=NAMING_CONVENTION)


def words(enum: type[StrEnum], name: str) -> Enum:
    """A text column that may hold one of an enum's values, checked by the database under `name`."""
    # A native PostgreSQL enum cannot lose a value and is awkward to extend inside a transaction; a CHECK is neither.
    return Enum(
        enum,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=32,
        values_callable=lambda members: [member.value for member in members],
    )
