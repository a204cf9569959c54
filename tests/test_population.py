"""The driver of the synthetic population: it accepts unchanged encounters and reports differences."""

import argparse
from decimal import Decimal
from typing import Any

import pytest

from tests.cast import Cast
from tests.doors import Service
from tests.population import GRAPHQL_PAGE, Encounter, Journal, Patient, changed, drive, read_back, record
from tests.population import _loopback as loopback

VISIT: Encounter = {
    "brand_id": "loop",
    "encounter_type": "lab",
    "scheduled_at": "1926-12-24T02:30:00.123456-03:30",
    "notes": "Two\nlines",
    "metadata": {"cost": Decimal("125.0"), "finished": True},
}
KEPT = VISIT | {"status": "scheduled", "scheduled_at": "1926-12-24T06:00:00.123456Z"}
KEPT |= dict.fromkeys(("provider_id", "chief_complaint", "started_at", "ended_at"))


async def registered_patient(cast: Cast, visits: int) -> Patient:
    return Patient(await cast.patient(), {}, [VISIT | {"notes": f"Visit {number}"} for number in range(visits)])


async def test_a_population_is_read_back_through_both_doors_over_several_pages(service: Service, cast: Cast) -> None:
    journal = await drive(
        service, [await registered_patient(cast, GRAPHQL_PAGE + 1), await registered_patient(cast, 1)]
    )

    assert journal.problems == []
    assert journal.recorded == {"REST": 22, "GraphQL": 21}
    assert journal.pages == {"REST": 3, "GraphQL": 3}


async def test_a_refused_visit_is_a_problem(service: Service) -> None:
    journal = Journal()

    answers = await record(service, Patient("nobody", {}, [VISIT, VISIT]), journal)

    assert answers == []
    assert journal.problems == ["nobody, visit 0, REST: not_found", "nobody, visit 1, GraphQL: not_found"]


@pytest.mark.parametrize(
    "change", ["DELETE FROM patient_graph.encounters", "UPDATE patient_graph.encounters SET notes = 'Another'"]
)
async def test_a_lost_or_altered_encounter_is_found(service: Service, cast: Cast, change: str) -> None:
    patient, journal = await registered_patient(cast, 2), Journal()
    answers = await record(service, patient, journal)
    await cast.connection.execute(f"{change} WHERE patient_id = $1 AND notes = 'Visit 1'", patient.id)

    await read_back(service, patient, answers, journal)

    assert {problem.split(": ")[0] for problem in journal.problems} == {f"{patient.id}, REST", f"{patient.id}, GraphQL"}


@pytest.mark.parametrize(
    ("member", "shown"),
    [
        ("scheduled_at", "1926-12-24T06:00:00.123457Z"),
        ("scheduled_at", "1926-12-24T02:30:00.123456-03:30"),
        ("scheduled_at", None),
        ("notes", "Two lines"),
        ("metadata", {"cost": Decimal(125), "finished": True}),
        ("metadata", {"cost": Decimal("125.0"), "finished": 1}),
        ("chief_complaint", ""),
        ("status", "completed"),
    ],
)
def test_a_member_with_another_value_is_named(member: str, shown: Any) -> None:
    assert changed(VISIT, KEPT) == []
    assert changed(VISIT, KEPT | {member: shown}) == [member]


@pytest.mark.parametrize("url", ["http://gateway.example", "http://127.0.0.1.example:8000", "127.0.0.1:8000"])
def test_only_loopback_is_driven(url: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        loopback(url)
