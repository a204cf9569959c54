"""The orders and criteria of encounter lists as SQL, for the executor's statements and for plans.

An order is a sequence of keys, all in one direction, and then the id. A key that may be null is replaced by a value
that sorts last. So one row comparison finds the items after a cursor, and one index serves the order
(`models/encounter.py`).
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from models import EncounterOrder
from models.encounter import FIRST_INSTANT, LAST_INSTANT, LAST_PROVIDER, OF_BRAND, or_else


class Key(NamedTuple):
    """A sort key: a column, its SQL type, and the SQL that replaces null; empty if the column is never null."""

    column: str
    kind: str = "timestamptz"
    null: str = ""

    @property
    def null_value(self) -> str:
        """The text of the value that replaces null."""
        return self.null.split("'")[1]

    def sql(self, row: str) -> str:
        """Return the SQL expression of the key."""
        column = f"{row}.{self.column}"
        return or_else(column, self.null) if self.null else column


class Order(NamedTuple):
    """An order of encounters: its keys, which the id follows, and their common direction."""

    keys: tuple[Key, ...]
    descending: bool = False

    def place(self, row: str) -> str:
        """Return the SQL of a row's place in the order."""
        return ", ".join([*(key.sql(row) for key in self.keys), f"{row}.id"])

    def by(self, row: str, *, forward: bool) -> str:
        """Return the SQL of `ORDER BY`, in the order itself (`forward`) or in reverse."""
        direction = "DESC" if self.descending is forward else "ASC"
        return ", ".join(f"{each} {direction}" for each in [*(key.sql(row) for key in self.keys), f"{row}.id"])

    def scheduled(self, row: str) -> str:
        """Return the SQL of the scheduled time in the form that the order's index has, or else another index."""
        return next((key.sql(row) for key in self.keys if key.column == "scheduled_at"), SCHEDULED_FIRST.sql(row))


CREATED, UPDATED = Key("created_at"), Key("updated_at")
SCHEDULED_FIRST = Key("scheduled_at", null=LAST_INSTANT)
SCHEDULED_LAST = Key("scheduled_at", null=FIRST_INSTANT)
PROVIDER = Key("provider_id", "uuid", null=LAST_PROVIDER)

ORDERS: Mapping[EncounterOrder, Order] = {
    EncounterOrder.CREATED_AT_ASC: Order((CREATED,)),
    EncounterOrder.CREATED_AT_DESC: Order((CREATED,), descending=True),
    EncounterOrder.SCHEDULED_AT_ASC: Order((SCHEDULED_FIRST,)),
    EncounterOrder.SCHEDULED_AT_DESC: Order((SCHEDULED_LAST,), descending=True),
    EncounterOrder.UPDATED_AT_DESC: Order((UPDATED,), descending=True),
    EncounterOrder.PROVIDER_THEN_SCHEDULED_AT_ASC: Order((PROVIDER, SCHEDULED_FIRST)),
}
NEWEST_FIRST = ORDERS[EncounterOrder.CREATED_AT_DESC]


class Criterion(NamedTuple):
    """A criterion of a filter: its SQL, with the row, its scheduled time and the argument's placeholder."""

    sql: str
    kind: str


CRITERIA: Mapping[str, Criterion] = {
    "encounter_type": Criterion("{row}.encounter_type = ANY({value})", "text[]"),
    "status": Criterion("{row}.status = ANY({value})", "text[]"),
    # One value by `=`: an index with the column first then has the order of its other columns.
    "one_status": Criterion("{row}.status = {value}", "text"),
    "provider_id": Criterion("{row}.provider_id = {value}", "uuid"),
    "one_provider": Criterion(f"{PROVIDER.sql('{row}')} = {{value}} AND {{row}}.provider_id IS NOT NULL", "uuid"),
    "providers": Criterion(f"{PROVIDER.sql('{row}')} = ANY({{value}}) AND {{row}}.provider_id IS NOT NULL", "uuid[]"),
    "patients": Criterion("{row}.patient_id = ANY({value})", "text[]"),
    "scheduled_from": Criterion("{scheduled} >= {value} AND {row}.scheduled_at IS NOT NULL", "timestamptz"),
    "scheduled_until": Criterion("{scheduled} < {value} AND {row}.scheduled_at IS NOT NULL", "timestamptz"),
} | {
    f"{name}_{side}": Criterion(f"{{row}}.{name}_at {sign} {{value}}", "timestamptz")
    for name in ("started", "created", "updated")
    for side, sign in (("from", ">="), ("until", "<"))
}
"""The criteria of `EncounterFilter` and `EncountersFilter` (`resolvers/commands.py`), by their names."""


def of_brand(row: str, value: str, criteria: Collection[str]) -> str:
    """Return the SQL condition of a brand's list, which lets PostgreSQL use the indexes of brands.

    Not if the list has a criterion of patients, which few of the brand's encounters may satisfy: their own index finds
    them, and in an index of the brand PostgreSQL could search all encounters for one page.
    """
    return f"{row}.{'brand_id' if 'patients' in criteria else OF_BRAND} = {value}"


def conditions(row: str, order: Order, values: Mapping[str, str]) -> list[str]:
    """Return the SQL of the criteria, given the placeholder of each."""
    scheduled = order.scheduled(row)
    return [CRITERIA[name].sql.format(row=row, scheduled=scheduled, value=values[name]) for name in sorted(values)]


def beyond(row: str, order: Order, places: Mapping[str, Collection[str]]) -> list[str]:
    """Return the SQL for the items after and before positions, given the placeholders of each.

    `places` maps `after` and `before` to the placeholders of the position's keys and id.
    """
    signs = {"after": "<" if order.descending else ">", "before": ">" if order.descending else "<"}
    return [f"({order.place(row)}) {signs[side]} ({', '.join(place)})" for side, place in places.items()]
