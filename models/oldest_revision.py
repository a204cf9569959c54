"""The oldest revision of the schema whose gateway may serve this database: one row."""

from sqlalchemy import String
from sqlmodel import Field

from models.base import PROCESS_SCHEMA, Table

SCHEMA_REVISION = "schema_revision"
"""The table in which Alembic stores the revision of the schema itself."""


class OldestRevision(Table, table=True):
    """A gateway that knows this revision may serve, although a newer gateway has migrated the database.

    The name is that of the table in which gateway 0.1.0 looks for the revision of the schema. Only a migration that
    removes what an earlier gateway uses changes the row (docs/releasing.md).
    """

    __tablename__ = "alembic_version"
    __table_args__ = {"schema": PROCESS_SCHEMA}  # noqa: RUF012 - the form that SQLAlchemy documents

    version_num: str = Field(primary_key=True, sa_type=String(32))
