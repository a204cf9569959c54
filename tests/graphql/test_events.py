"""Live events: what is told, to whom, and from where. The same subscription over a WebSocket and over HTTP."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from resolvers.feed import write_position
from tests.cast import Cast
from tests.sockets import Sockets, Talk
from tests.staged import TOKENS, Tokens, settings

EVENTS = """subscription ($patientId: ID, $after: String) {
  encounterEvents(patientId: $patientId, after: $after) {
    cursor kind encounter { id patientId brandId status notes patient { id } }
  }
}"""
RECORD = """mutation ($patientId: ID!, $input: RecordEncounterInput!) {
  recordEncounter(patientId: $patientId, input: $input) { ... on EncounterRecorded { encounter { id } } }
}"""


@pytest.fixture(scope="module")
async def serving(database_url: str) -> AsyncIterator[Sockets]:
    async with Sockets.serving(settings(database_url), TOKENS.verify) as serving:
        yield serving


@pytest.fixture
def sockets(serving: Sockets, tokens: Tokens) -> Sockets:
    return serving


async def record(talk: Talk, patient_id: str, brand_id: str = "loop", **members: Any) -> str:
    """Record an encounter, and give its id."""
    members = {"brandId": brand_id, "encounterType": "LAB"} | members
    body = await talk.ask(RECORD, operation_id="record", patientId=patient_id, input=members)
    encounter_id: str = body["data"]["recordEncounter"]["encounter"]["id"]
    return encounter_id


async def test_what_is_recorded_is_told(sockets: Sockets, cast: Cast) -> None:
    patient_id = await cast.patient()

    async with sockets.signed_in() as talk, sockets.signed_in() as recorder:
        await talk.start("events", EVENTS, patientId=patient_id, after=write_position(0, "loop"))
        encounter_id = await record(recorder, patient_id, notes="Slept well.")
        event = (await talk.next("events"))["data"]["encounterEvents"]

    assert event["kind"] == "RECORDED"
    assert event["encounter"] == {
        "id": encounter_id,
        "patientId": patient_id,
        "brandId": "loop",
        "status": "SCHEDULED",
        "notes": "Slept well.",
        "patient": {"id": patient_id},
    }


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"patientId": "nobody"}, "not_found"),
        ({"patientId": ""}, "not_found"),
        ({"after": "made-up"}, "validation_error"),
        ({"after": ""}, "validation_error"),
        ({"after": write_position(0, "loopbio")}, "validation_error"),
        ({"after": write_position(10**12, "loop")}, "validation_error"),
    ],
)
async def test_what_cannot_be_followed_is_refused_by_the_first_answer(
    sockets: Sockets, variables: dict[str, Any], code: str
) -> None:
    async with sockets.signed_in() as talk:
        extensions = await talk.refusal(EVENTS, **variables)

    assert (extensions["code"], extensions["recorded"]) == (code, "no")


async def test_who_may_not_read_is_told_which_scope_is_needed(sockets: Sockets, tokens: Tokens) -> None:
    tokens.give("writer", "write:encounters")

    async with sockets.signed_in("writer") as talk:
        extensions = await talk.refusal(EVENTS)

    assert (extensions["code"], extensions["recorded"]) == ("insufficient_scope", "no")
    assert extensions["scopes"] == ["read:encounters"]
