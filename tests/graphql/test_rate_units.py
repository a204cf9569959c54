"""The rate units of a document."""

import pytest

from resolvers.rate_limits import Kind
from schema import build_schema
from schema.documents.parse import DocumentRules, Documents
from schema.documents.rate_units import ONE_READ, RateUnits

DOCUMENTS = Documents(build_schema()._schema, DocumentRules())

RECORD = 'recordEncounter(patientId: "p", input: {brandId: "loop", encounterType: LAB}) { __typename }'
POWERS_OF_TWO = (
    "{ ...f0 } "
    + " ".join(f"fragment f{n} on Query {{ ...f{n + 1} ...f{n + 1} }}" for n in range(30))
    + " fragment f30 on Query { __typename }"
)


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ('{ patient(id: "a") { id encounters { nodes { id } } } }', RateUnits(Kind.READS, 1)),
        ('{ a: patient(id: "a") { id } b: patient(id: "a") { id } __typename }', RateUnits(Kind.READS, 3)),
        ("{ __schema { types { name } } }", RateUnits(Kind.READS, 1)),
        (f"mutation {{ {RECORD} }}", RateUnits(Kind.WRITES, 1)),
        (f"mutation {{ a: {RECORD} b: {RECORD} }}", RateUnits(Kind.WRITES, 2)),
        (f"mutation {{ ...two }} fragment two on Mutation {{ a: {RECORD} b: {RECORD} }}", RateUnits(Kind.WRITES, 2)),
        (f"mutation {{ ... {{ a: {RECORD} }} ... on Mutation {{ b: {RECORD} }} }}", RateUnits(Kind.WRITES, 2)),
        # Executed once, counted once.
        (
            f"mutation {{ a: {RECORD} ...again }} fragment again on Mutation {{ a: {RECORD} }}",
            RateUnits(Kind.WRITES, 1),
        ),
        (POWERS_OF_TWO, RateUnits(Kind.READS, 1)),
        # A field under a condition counts.
        ("{ __typename @skip(if: true) a: __typename }", RateUnits(Kind.READS, 2)),
        ("{", ONE_READ),
        ("{ nothing }", ONE_READ),
        ("mutation { nothing }", ONE_READ),
        ("query a { __typename } query b { __typename }", ONE_READ),
    ],
)
def test_an_operation_counts_its_root_fields_and_an_invalid_one_one_read(text: str, price: RateUnits) -> None:
    assert DOCUMENTS.read(text).price(None, {}) == price


def test_of_several_operations_the_named_one_counts() -> None:
    document = DOCUMENTS.read(f"query look {{ __typename }} mutation record {{ a: {RECORD} b: {RECORD} }}")

    assert document.price("look", {}) == RateUnits(Kind.READS, 1)
    assert document.price("record", {}) == RateUnits(Kind.WRITES, 2)
    assert document.price("nobody", {}) == ONE_READ


ITEM = '{patientId: "p", input: {brandId: "loop", encounterType: LAB}}'
MANY = "mutation ($many: [RecordEncountersItem!]!) { recordEncounters(input: $many) { __typename } }"


@pytest.mark.parametrize(
    ("text", "many", "units"),
    [
        (f"mutation {{ recordEncounters(input: [{ITEM}, {ITEM}, {ITEM}]) {{ __typename }} {RECORD} }}", None, 4),
        (f"mutation {{ recordEncounters(input: {ITEM}) {{ __typename }} }}", None, 1),
        ("mutation { recordEncounters(input: []) { __typename } }", None, 1),
        (MANY, [{}] * 7, 7),
        # More than 100 are refused, so the count is bounded by 100.
        (MANY, [{}] * 5_000, 100),
    ],
)
def test_record_encounters_counts_one_write_for_each_item(text: str, many: list[object] | None, units: int) -> None:
    assert DOCUMENTS.read(text).price(None, {"many": many}) == RateUnits(Kind.WRITES, units)
