"""The number of statements of an operation is independent of the size of its result; reads by id."""

import json
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest

from gateway.database.database import PoolConnection
from resolvers.sql import Statement
from schema.plans.query_plan import Plan
from schema.plans.selection import Unplannable
from tests.cast import Cast
from tests.doors import Service

MARKER = "tuberculosis"


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the statements sent from now on that read patients or encounters, by their text.

    Plans are disabled, so that the executor is measured; test_plans.py covers the one statement of a plan.
    """
    sent: Counter[str] = Counter()

    async def decline(*_: object) -> bytes:
        raise Unplannable

    monkeypatch.setattr(Plan, "run", decline)

    def counted(name: str) -> Any:
        original = getattr(PoolConnection, name)

        async def send(self: PoolConnection, statement: Statement, **values: object) -> Any:
            # Background jobs send statements too, on other tables.
            if "FROM patient_graph.patients" in statement.text or "FROM patient_graph.encounters" in statement.text:
                sent[statement.text] += 1
            return await original(self, statement, **values)

        return send

    for name in ("fetch", "fetch_one"):
        monkeypatch.setattr(PoolConnection, name, counted(name))
    return sent


async def ask(service: Service, query: str, **variables: Any) -> Any:
    body = await service.graphql(query, variables)
    assert "errors" not in body, body
    return body["data"]


EVERYTHING = """query ($ids: [ID!]!) {
  patients(ids: $ids) {
    id brandId
    encounters(first: 5) {
      totalCount
      edges { cursor node { id patient { id encounters(first: 5) { totalCount } } } }
      nodes { id notes metadata patient { id brandId } }
      pageInfo { hasNextPage endCursor }
    }
  }
}"""


@pytest.mark.parametrize("count", [1, 2, 20, 100])
async def test_any_number_of_patients_with_pages_and_counts_is_three_statements(
    service: Service, cast: Cast, statements: Counter[str], count: int
) -> None:
    ids = await cast.patients(count)

    data = await ask(service, EVERYTHING, ids=ids)

    assert [len(patient["encounters"]["nodes"]) for patient in data["patients"]] == [5] * count
    assert [patient["encounters"]["totalCount"] for patient in data["patients"]] == [5] * count
    assert {node["patient"]["id"] for each in data["patients"] for node in each["encounters"]["nodes"]} == set(ids)
    # The patients, their pages and their counts. The patient of an encounter comes from the encounter's row.
    assert statements.total() <= 3


async def test_a_count_that_is_not_selected_is_not_read(service: Service, cast: Cast, statements: Counter[str]) -> None:
    ids = await cast.patients(3)

    await ask(service, "query ($ids: [ID!]!) { patients(ids: $ids) { encounters { nodes { id } } } }", ids=ids)

    assert statements.total() == 2
    assert not [text for text in statements if "count(" in text]


async def test_a_page_that_is_not_selected_is_not_read(service: Service, cast: Cast, statements: Counter[str]) -> None:
    ids = await cast.patients(3)

    data = await ask(service, "query ($ids: [ID!]!) { patients(ids: $ids) { encounters { totalCount } } }", ids=ids)

    assert [patient["encounters"]["totalCount"] for patient in data["patients"]] == [5, 5, 5]
    assert statements.total() == 2


async def test_the_same_page_under_several_aliases_is_read_once(
    service: Service, cast: Cast, statements: Counter[str]
) -> None:
    (patient_id,) = await cast.patients(1)
    page = "encounters(first: 2) { nodes { id } pageInfo { hasNextPage } edges { cursor } }"

    await ask(service, f"query ($id: ID!) {{ patient(id: $id) {{ a: {page} b: {page} {page} }} }}", id=patient_id)

    assert statements.total() == 2


async def test_many_encounters_by_id_are_read_by_one_statement(
    service: Service, cast: Cast, statements: Counter[str]
) -> None:
    (patient_id,) = await cast.patients(1, visits=["lab"] * 30)
    ids = [str(row["id"]) for row in await cast.rows(patient_id)]
    fields = " ".join(f'e{place}: encounter(id: "{each}") {{ id patient {{ id }} }}' for place, each in enumerate(ids))

    data = await ask(service, f"{{ {fields} }}")

    assert [each["id"] for each in data.values()] == ids
    assert statements.total() == 1


async def test_many_patients_by_id_are_read_by_one_statement(
    service: Service, cast: Cast, statements: Counter[str]
) -> None:
    ids = await cast.patients(10, visits=())
    fields = " ".join(f'p{place}: patient(id: "{each}") {{ id }}' for place, each in enumerate(ids))

    await ask(service, f"{{ {fields} }}")

    assert statements.total() == 1


async def test_representations_are_read_by_one_statement_for_each_type(
    subgraph: Service, cast: Cast, statements: Counter[str]
) -> None:
    (patient_id,) = await cast.patients(1, visits=["lab"] * 50)
    encounters = [("Encounter", str(row["id"])) for row in await cast.rows(patient_id)]
    others = [("Patient", each) for each in await cast.patients(50, visits=())]
    # Alternating, and half of them repeated: neither order nor repetition adds a statement.
    asked = [each for pair in zip(encounters, others, strict=True) for each in pair] + encounters

    data = await ask(
        subgraph,
        """query ($asked: [_Any!]!) { _entities(representations: $asked) {
          __typename ... on Encounter { id notes provider { id } } ... on Patient { id brandId } } }""",
        asked=[{"__typename": name, "id": each} for name, each in asked],
    )

    assert [(each["__typename"], each["id"]) for each in data["_entities"]] == asked
    assert statements.total() == 2


async def test_rows_read_for_one_operation_are_not_reused_by_the_next(service: Service, cast: Cast) -> None:
    (patient_id,) = await cast.patients(1, visits=["lab"])
    count = "query ($id: ID!) { patient(id: $id) { encounters { totalCount nodes { id } } } }"
    before = await ask(service, count, id=patient_id)
    await service.rest(
        "POST", f"/v1/patients/{patient_id}/encounters", json={"brand_id": "loop", "encounter_type": "lab"}
    )

    after = await ask(service, count, id=patient_id)

    assert [each["patient"]["encounters"]["totalCount"] for each in (before, after)] == [1, 2]
    assert len(after["patient"]["encounters"]["nodes"]) == 2


# Patients by their ids

PATIENTS = "query ($ids: [ID!]!) { patients(ids: $ids) { id } }"


async def test_patients_are_in_the_order_of_the_ids_with_null_for_unknown_ones(service: Service, cast: Cast) -> None:
    first, second = await cast.patients(2, visits=())
    foreign = await cast.patient("loopbio")
    asked = [second, "nobody", first, second, foreign, "", "\x00", "\ud800", "x" * 300, first]

    data = await ask(service, PATIENTS, ids=asked)

    shown = [second, None, first, second, None, None, None, None, None, first]
    assert [patient and patient["id"] for patient in data["patients"]] == shown


async def test_0_to_100_ids_of_patients_are_allowed(service: Service) -> None:
    assert await ask(service, PATIENTS, ids=[]) == {"patients": []}
    assert await ask(service, PATIENTS, ids=["nobody"] * 100) == {"patients": [None] * 100}


async def test_more_than_100_ids_are_refused_before_any_read(service: Service, statements: Counter[str]) -> None:
    body = await service.graphql(PATIENTS, {"ids": ["nobody"] * 101})

    assert [error["extensions"]["code"] for error in body["errors"]] == ["validation_error"]
    (violation,) = body["errors"][0]["extensions"]["violations"]
    assert (violation["pointer"], violation["rule"]) == ("/ids", "too_many")
    assert statements.total() == 0


async def test_a_null_id_is_refused_with_its_pointer(service: Service) -> None:
    body = await service.graphql(PATIENTS, {"ids": [MARKER, None]})

    (violation,) = body["errors"][0]["extensions"]["violations"]
    assert (violation["pointer"], violation["rule"]) == ("/variables/ids/1", "null")
    assert MARKER not in json.dumps(body)


# An encounter by its id

ENCOUNTER = "query ($id: ID!) { encounter(id: $id) { id patientId } }"


async def insert_encounter(cast: Cast, brand_id: str) -> str:
    (patient_id,) = await cast.patients(1, brand_id, visits=["lab"])
    (row,) = await cast.rows(patient_id)
    return str(row["id"])


async def test_an_encounter_is_found_by_its_id(service: Service, cast: Cast) -> None:
    encounter_id = await insert_encounter(cast, "loop")

    assert (await ask(service, ENCOUNTER, id=encounter_id))["encounter"]["id"] == encounter_id


async def test_an_encounter_of_another_brand_is_null_like_an_unknown_one(service: Service, cast: Cast) -> None:
    theirs = await insert_encounter(cast, "loopbio")

    assert await ask(service, ENCOUNTER, id=theirs) == await ask(service, ENCOUNTER, id=str(uuid4()))


@pytest.mark.parametrize(
    "malformed", ["", "nobody", "5", "\x00", "\ud800", "٣" * 32, "g" * 32, "0" * 31, "0" * 33, "é", "x" * 10_000, 5]
)
async def test_a_malformed_id_is_null_after_at_most_one_statement(
    service: Service, statements: Counter[str], malformed: str | int
) -> None:
    assert await ask(service, ENCOUNTER, id=malformed) == {"encounter": None}
    assert statements.total() <= 1
