"""`viewer` tells a caller what its token allows, and `allowedActions` are those that the caller may perform."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.settings import Settings
from resolvers.access import Caller, Permission
from tests.cast import Cast
from tests.conftest import GENEROUS_LIMITS
from tests.doors import Service
from tests.identity_provider import TIMEOUT_SECONDS, IdentityProvider, claims, jwt, signing_key

VIEWER = "{ viewer { clientId userId brandId scopes can } }"
KEY = signing_key("ES256", "one")

CALLERS = {
    "reader": Caller("dashboard", frozenset({"read:encounters"}), user_id="nurse-1", brand_id="loop"),
    "clinician": Caller("dashboard", frozenset({"manage:encounters"}), user_id="nurse-2", brand_id="loop"),
    "receptionist": Caller("desk", frozenset({"write:visits", "read:encounters"}), brand_id="loop"),
    "scopeless": Caller("new", frozenset(), brand_id="loop"),
    "machine": Caller("lab", frozenset({"admin:*"})),
}
SCOPES: dict[Permission, tuple[str, ...]] = {Permission.RECORD_ENCOUNTER: ("write:encounters", "write:visits")}


@pytest.fixture(scope="module", params=[False, True], ids=["a server", "a cluster"])
async def clinic(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Service]:
    """A service whose callers have different scopes. A receptionist may record encounters and not change them."""

    async def verify(token: str) -> Caller:
        return CALLERS[token]

    settings = Settings(
        database_url=database_url, database_cluster=request.param, federation=True, scopes=SCOPES, **GENEROUS_LIMITS
    )
    async with Service.running(settings, verify=verify) as running:
        yield running


async def viewer(service: Service, token: str, brand: str | None = None) -> dict[str, Any]:
    body = await service.graphql(VIEWER, token=token, headers={"x-brand-id": brand} if brand else {})
    assert "errors" not in body, body
    shown: dict[str, Any] = body["data"]["viewer"]
    return shown


# The caller


async def test_a_person_sees_the_client_the_brand_and_the_operations(clinic: Service) -> None:
    assert await viewer(clinic, "clinician") == {
        "clientId": "dashboard",
        "userId": "nurse-2",
        "brandId": "loop",
        "scopes": ["manage:encounters"],
        "can": ["RECORD_ENCOUNTER", "CHANGE_ENCOUNTER", "FIND_SUBMISSION", "READ_ENCOUNTERS", "READ_PATIENTS"],
    }


async def test_a_caller_without_scopes_sees_that_it_may_do_nothing(clinic: Service) -> None:
    shown = await viewer(clinic, "scopeless")

    assert (shown["userId"], shown["scopes"], shown["can"]) == (None, [], [])


async def test_configured_scopes_determine_the_operations(clinic: Service) -> None:
    assert (await viewer(clinic, "receptionist"))["can"] == ["RECORD_ENCOUNTER", "READ_ENCOUNTERS", "READ_PATIENTS"]
    assert (await viewer(clinic, "machine"))["can"] == [permission.name for permission in Permission]


async def test_a_machine_without_a_brand_sees_the_brand_that_it_states(clinic: Service) -> None:
    assert [(await viewer(clinic, "machine", brand))["brandId"] for brand in (None, "loop", "loopbio")] == [
        None,
        "loop",
        "loopbio",
    ]


async def test_another_brand_than_the_tokens_is_refused(clinic: Service) -> None:
    body = await clinic.graphql(VIEWER, token="reader", headers={"x-brand-id": "loopbio"})

    assert [error["extensions"]["code"] for error in body["errors"]] == ["forbidden"]


async def test_viewer_without_a_token_is_refused(clinic: Service) -> None:
    body = await clinic.graphql(VIEWER, token=None)

    assert [error["extensions"]["code"] for error in body["errors"]] == ["unauthenticated"]


async def test_viewer_costs_one_object_and_one_read(clinic: Service) -> None:
    answer = await clinic.rest("POST", "/graphql", token="reader", json={"query": VIEWER, "extensions": {"cost": True}})

    assert answer.json()["extensions"]["cost"]["requested"] == 1


@pytest.mark.parametrize("way", ["introspection", "jwt"])
async def test_viewer_shows_the_claims_of_a_verified_token(
    provider: IdentityProvider, database_url: str, way: str
) -> None:
    provider.keys = [KEY.jwk]
    token = jwt(KEY, claims()) if way == "jwt" else "opaque"
    provider.tokens["opaque"] = claims()
    settings = provider.settings(
        introspection=True, jwt=True, database_url=database_url, identity_provider_seconds=TIMEOUT_SECONDS
    )
    async with Service.running(settings) as service:
        assert await viewer(service, token) == {
            "clientId": "app",
            "userId": "nurse-1",
            "brandId": "loop",
            "scopes": ["read:encounters", "write:encounters"],
            "can": ["RECORD_ENCOUNTER", "CHANGE_ENCOUNTER", "FIND_SUBMISSION", "READ_ENCOUNTERS", "READ_PATIENTS"],
        }


# The actions of the caller

SCHEDULED = ["START", "CANCEL", "MARK_NO_SHOW", "MARK_ENTERED_IN_ERROR", "RESCHEDULE", "AMEND"]

RECORD = """mutation ($id: ID!, $input: RecordEncounterInput!) { recordEncounter(patientId: $id, input: $input) {
  ... on EncounterRecorded { encounter { id allowedActions } %s } } }"""
READ = "query ($id: ID!, $patient: ID!) { e: encounter(id: $id) { id } p: patient(id: $patient) { id } %s }"
# A plan serves all but the last two, which the executor serves.
SELECTIONS = [
    "encounter(id: $id) { allowedActions }",
    "patient(id: $patient) { encounters { nodes { allowedActions } } }",
    "patient(id: $patient) { encounters { edges { node { ... on Encounter { allowedActions } } } } }",
    "patients(ids: [$patient]) { encounters(first: 1) { nodes { actions: allowedActions } } }",
    "encounters(where: {patientId: [$patient]}) { nodes { allowedActions } }",
    "encounter(id: $id) { allowedActions history { kind } }",
    '_entities(representations: [{__typename: "Encounter", id: $id}]) { ... on Encounter { allowedActions } }',
]


def actions_in(answer: Any) -> list[str]:
    """Return the one list of actions in an answer."""
    found = list(lists_in(answer))
    assert len(found) == 1, answer
    return found[0]


def lists_in(part: Any) -> Any:
    if isinstance(part, dict):
        for name, value in part.items():
            if name in {"allowedActions", "actions"}:
                yield value
            else:
                yield from lists_in(value)
    elif isinstance(part, list):
        for item in part:
            yield from lists_in(item)


@pytest.mark.parametrize("selection", SELECTIONS)
async def test_each_reader_sees_the_actions_that_it_may_perform(clinic: Service, cast: Cast, selection: str) -> None:
    patient_id = await cast.patient()
    visit = {"id": patient_id, "input": {"brandId": "loop", "encounterType": "LAB"}}
    recorded = await clinic.graphql(RECORD % "", visit, token="clinician")
    variables = {"id": recorded["data"]["recordEncounter"]["encounter"]["id"], "patient": patient_id}

    # Twice each: a plan that was compiled for one caller must not answer the other.
    for _ in range(2):
        for token, actions in (("clinician", SCHEDULED), ("reader", []), ("receptionist", [])):
            body = await clinic.graphql(READ % selection, variables, token=token)
            assert "errors" not in body, body
            assert actions_in(body["data"]) == actions


@pytest.mark.parametrize("more", ["", "replayed", "possibleDuplicates { id }"])
async def test_each_recorder_sees_the_actions_that_it_may_perform(clinic: Service, cast: Cast, more: str) -> None:
    visit = {"id": await cast.patient(), "input": {"brandId": "loop", "encounterType": "LAB"}}

    for _ in range(2):
        for token, actions in (("clinician", SCHEDULED), ("receptionist", [])):
            body = await clinic.graphql(RECORD % more, visit, token=token)
            assert "errors" not in body, body
            assert actions_in(body["data"]) == actions
