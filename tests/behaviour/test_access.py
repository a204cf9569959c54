"""The scopes that each operation needs, over both doors."""

from collections.abc import AsyncIterator

import pytest

from gateway.settings import Settings, SettingsError
from resolvers.access import DEFAULT_SCOPES, Caller, Permission, require
from resolvers.errors import InsufficientScope
from tests.cast import Cast
from tests.doors import GraphQLDoor, RestDoor, Service

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}
SUFFICIENT = {
    "write:encounters": ["write:encounters", "manage:encounters", "admin:patient_graph", "admin:*"],
    "read:encounters": ["read:encounters", "manage:encounters", "admin:patient_graph", "admin:*"],
}
OTHERS = ["read:patients", "manage:patients", "admin:encounters", "write:*", "encounters", ""]


@pytest.fixture
async def limited(database_url: str) -> AsyncIterator[Service]:
    """A service where a token is its own list of scopes, of the brand `loop`."""

    async def verify(token: str) -> Caller:
        return Caller(client_id="limited", brand_id="loop", scopes=frozenset(token.split("+")))

    async with Service.running(Settings(database_url=database_url), verify=verify) as service:
        yield service


@pytest.mark.parametrize("door", [RestDoor, GraphQLDoor])
@pytest.mark.parametrize("scope", [*SUFFICIENT["write:encounters"], *OTHERS, "read:encounters"])
async def test_recording_needs_the_write_scope(limited: Service, cast: Cast, door, scope: str) -> None:
    outcome = await door(limited).record(await cast.patient(), VISIT, token=scope or "none")

    assert outcome.code == (None if scope in SUFFICIENT["write:encounters"] else "insufficient_scope")


@pytest.mark.parametrize("scope", [*SUFFICIENT["read:encounters"], *OTHERS, "write:encounters"])
async def test_listing_needs_the_read_scope(limited: Service, cast: Cast, scope: str) -> None:
    response = await limited.rest("GET", f"/v1/patients/{await cast.patient()}/encounters", token=scope or "none")

    assert response.status_code == (200 if scope in SUFFICIENT["read:encounters"] else 403)


async def test_a_refusal_names_the_needed_scopes(limited: Service) -> None:
    response = await limited.rest("GET", "/v1/patients/nobody/encounters", token="none")

    assert response.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="read:encounters"'
    assert response.json()["error_description"] == response.json()["message"]


async def test_a_refused_graphql_field_is_challenged_in_the_headers(limited: Service) -> None:
    response = await limited.rest("POST", "/graphql", token="none", json={"query": '{ encounter(id: "x") { id } }'})

    (error,) = response.json()["errors"]
    assert (error["extensions"]["code"], error["extensions"]["scopes"]) == ("insufficient_scope", ["read:encounters"])
    assert response.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="read:encounters"'


async def test_the_write_scope_reads_the_recorded_encounter_and_no_other(limited: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    query = """mutation ($id: ID!) { recordEncounter(patientId: $id, input: {brandId: "loop", encounterType: LAB}) {
      ... on EncounterRecorded { encounter { id notes patient { id encounters { nodes { notes } } } } } } }"""

    body = await limited.graphql(query, {"id": patient_id}, token="write:encounters")

    assert {error["extensions"]["code"] for error in body["errors"]} == {"insufficient_scope"}
    assert [error["path"][-1] for error in body["errors"]] == ["nodes"]
    assert await cast.count("encounters", patient_id) == 1


def test_every_permission_has_a_default_scope() -> None:
    assert DEFAULT_SCOPES.keys() == set(Permission)


@pytest.mark.parametrize(
    "scopes",
    [
        '{"record_encounter": []}',
        '{"delete_everything": ["write:encounters"]}',
        '{"record_encounter": ["encounters"]}',
        '{"record_encounter": ["write:*"]}',
        "no json",
    ],
)
def test_invalid_gateway_scopes_are_refused(monkeypatch: pytest.MonkeyPatch, scopes: str) -> None:
    monkeypatch.setenv("GATEWAY_SCOPES", scopes)

    with pytest.raises(SettingsError, match="GATEWAY_SCOPES"):
        Settings.from_environment()


def test_configured_scopes_replace_the_default_of_a_permission() -> None:
    settings = Settings(scopes={Permission.RECORD_ENCOUNTER: ("write:visits",)})

    assert settings.scopes[Permission.RECORD_ENCOUNTER] == ("write:visits",)


def test_manage_includes_write_of_the_same_resource_only() -> None:
    with pytest.raises(InsufficientScope):
        require(Caller("c", frozenset({"manage:patients"})), ["write:encounters"])
    require(Caller("c", frozenset({"manage:encounters"})), ["write:encounters"])
