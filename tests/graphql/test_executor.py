"""The executor returns the same results as graphql-core's and keeps nothing from one event to the next."""

from typing import Any

from graphql import Executor, execute, parse
from hypothesis import given
from hypothesis import strategies as st

from schema import build_schema
from schema.fast_executor import QuickExecutor

SCHEMA = build_schema()._schema
DOCUMENT = parse("""
query ($id: ID!) { encounter(id: $id) { a: id patientId encounterType ...more notes scheduledAt metadata version } }
fragment more on Encounter { status notes b: id }
""")


class ArbitraryEncounter:
    """An encounter whose members may have any type."""

    def __init__(self, **members: Any) -> None:
        self.__dict__ |= members


anything = st.none() | st.integers() | st.text(max_size=3) | st.floats() | st.lists(st.integers(), max_size=1)
members = ("id", "patient_id", "encounter_type", "status", "notes", "scheduled_at", "metadata", "version")


@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(members, anything)), max_size=3))
def test_both_executors_return_the_same_for_any_object(rows: list[dict[str, Any]]) -> None:
    field = SCHEMA.query_type.fields["encounter"]
    ours = field.resolve
    for row in rows:
        field.resolve = lambda *_args, row=row, **_: ArbitraryEncounter(**row)
        try:
            quick, stock = (
                execute(SCHEMA, DOCUMENT, variable_values={"id": "x"}, executor_class=kind)
                for kind in (QuickExecutor, Executor)
            )
        finally:
            field.resolve = ours
        assert quick.data == stock.data
        assert list(quick.data["encounter"] or ()) == list(stock.data["encounter"] or ())
        assert [each.formatted for each in quick.errors or ()] == [each.formatted for each in stock.errors or ()]


LIST = parse("query { patients(ids: []) { id brandId b: brandId } }")
patient = (
    st.none() | st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "brand_id"), anything)) | st.builds(object)
)


@given(st.lists(patient, max_size=4) | st.tuples(patient))
def test_both_executors_return_the_same_for_any_list(rows: Any) -> None:
    field = SCHEMA.query_type.fields["patients"]
    ours = field.resolve
    field.resolve = lambda *_args, **_: type(rows)(
        ArbitraryEncounter(**row) if isinstance(row, dict) else row for row in rows
    )
    try:
        quick, stock = (execute(SCHEMA, LIST, executor_class=kind) for kind in (QuickExecutor, Executor))
    finally:
        field.resolve = ours
    assert quick.data == stock.data
    assert [each.formatted for each in quick.errors or ()] == [each.formatted for each in stock.errors or ()]


def test_fields_collected_for_one_event_are_not_reused_for_the_next() -> None:
    executor = QuickExecutor.build(SCHEMA, parse("subscription { encounterEvents { __typename } }"))
    assert isinstance(executor, QuickExecutor)

    events = [executor.build_per_event_executor(number) for number in range(2)]

    assert len({id(each._relevant_sub_fields) for each in (executor, *events)}) == 3
