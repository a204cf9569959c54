"""The cost of nested pages is bounded: a short document cannot request more objects than the limit."""

import pytest

from tests.cast import Cast
from tests.doors import Service


def nested(times: int, size: str = "first: 100") -> str:
    """Return a selection of a patient's encounters, with the patient's encounters nested in each, and so on."""
    return f"encounters({size}) {{ nodes {{ patient {{ {nested(times - 1, size)} }} }} }}" if times else "id"


@pytest.mark.parametrize(
    "query",
    [
        f"query ($id: ID!) {{ patient(id: $id) {{ {nested(3)} }} }}",
        f"query ($id: ID!) {{ patient(id: $id) {{ ...F }} }} fragment F on Patient {{ {nested(3)} }}",
        f"query ($id: ID!, $n: Int = 100) {{ patient(id: $id) {{ {nested(2, 'last: $n')} }} }}",
        f"query ($id: ID!) {{ a: patient(id: $id) {{ {nested(2)} }} b: patient(id: $id) {{ {nested(2)} }} }}",
        f"query ($id: ID!) {{ patient(id: $id) {{ {nested(4, '')} }} }}".replace("()", ""),
    ],
    ids=["nested", "in a fragment", "by a variable's default", "side by side", "of the default size"],
)
async def test_a_query_above_the_cost_limit_is_refused_before_any_read(
    service: Service, cast: Cast, query: str
) -> None:
    body = await service.graphql(query, {"id": await cast.patient()})

    (error,) = body["errors"]
    assert error["extensions"]["violations"][0]["rule"] == "cost"
    assert "data" not in body


async def test_100_encounters_of_each_of_100_patients_are_within_the_cost_limit(service: Service) -> None:
    query = "query ($ids: [ID!]!) { patients(ids: $ids) { encounters(first: 100) { nodes { id } } } }"

    body = await service.graphql(query, {"ids": [f"nobody-{number}" for number in range(100)]})

    assert body == {"data": {"patients": [None] * 100}}


async def test_if_one_of_two_mutations_is_refused_recorded_is_unknown(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    query = """mutation ($id: ID!) {
      a: recordEncounter(patientId: $id, input: {brandId: "loop", encounterType: LAB}) { __typename }
      b: recordEncounter(patientId: $id, input: {brandId: "loopbio", encounterType: LAB}) { __typename }
    }"""

    body = await service.graphql(query, {"id": patient_id})

    assert body["data"] is None
    assert [error["extensions"]["recorded"] for error in body["errors"]] == ["unknown"]
    assert await cast.count("encounters", patient_id) == 1
