"""The description of a record's members, from which tables, statements and interfaces are derived."""

from enum import Enum, StrEnum, auto
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

from sqlalchemy import Column, Integer, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from models.base import INSTANT, words


class Kind(Enum):
    """The kind of a member's values, which determines its SQL type and its form in JSON."""

    STRING = auto()
    """A short string that is never null."""
    TEXT = auto()
    """An optional string, which may be long."""
    UUID = auto()
    ENUM = auto()
    """A value of an enum, stored as text."""
    INSTANT = auto()
    JSON = auto()
    """A JSON object, in Python as its own text; may be long."""
    INTEGER = auto()


SQL_TYPES = {
    Kind.STRING: "text",
    Kind.TEXT: "text",
    Kind.UUID: "uuid",
    Kind.ENUM: "text",
    Kind.INSTANT: "timestamptz",
    Kind.JSON: "jsonb",
    Kind.INTEGER: "integer",
}

COLUMN_TYPES: dict[Kind, TypeEngine[Any]] = {
    Kind.STRING: Text(),
    Kind.TEXT: Text(),
    Kind.UUID: Uuid(),
    Kind.INSTANT: INSTANT,
    Kind.JSON: JSONB(),
    Kind.INTEGER: Integer(),
}


class Member(NamedTuple):
    """One member of a record: an annotation of a field of the record's class."""

    kind: Kind
    description: str = ""
    """The description in the OpenAPI document."""
    example: Any = None
    """An example of the value in JSON, or None."""
    published: bool = True
    """Whether REST shows it. GraphQL shows every member."""
    clinical: bool = False
    """Whether it holds what a caller says about a patient. Its values never appear in logs, audit details or events."""
    server_default: str | None = None
    """The column's default, as SQL."""
    # The annotated field itself has these; `members_of` fills them in.
    name: str = ""
    """The name in Python, in the database and in REST."""
    optional: bool = False
    """Whether the value may be null."""
    enum: type[StrEnum] | None = None
    """The enum of a member of this kind."""

    @property
    def graphql_name(self) -> str:
        """The name in GraphQL: `chiefComplaint` for `chief_complaint`."""
        first, *rest = self.name.split("_")
        return first + "".join(map(str.capitalize, rest))

    @property
    def sql_type(self) -> str:
        """The SQL type as which statements send the value."""
        return SQL_TYPES[self.kind]

    @property
    def is_long(self) -> bool:
        """Whether the value may be long, so that lists count its bytes."""
        return self.kind in {Kind.TEXT, Kind.JSON}

    def column(self) -> Column[Any]:
        """Return a new column for the member."""
        return Column(
            self.name,
            words(self.enum, self.name) if self.enum else COLUMN_TYPES[self.kind],
            nullable=self.optional,
            server_default=None if self.server_default is None else text(self.server_default),
        )


def members_of(record: type) -> dict[str, Member]:
    """Return the members of a record's class by name, in order: each field is annotated with its `Member`."""
    members = {}
    for name, hint in get_type_hints(record, include_extras=True).items():
        annotated, member = get_args(hint)
        types = get_args(annotated) or (annotated,)
        enum = types[0] if member.kind is Kind.ENUM else None
        members[name] = member._replace(name=name, optional=NoneType in types, enum=enum)
    return members
