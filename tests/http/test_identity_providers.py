"""Tokens of six identity providers at both doors."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.settings import Settings
from tests.cast import Cast
from tests.conftest import GENEROUS_LIMITS
from tests.doors import GraphQLDoor, RestDoor, Service
from tests.identity_provider import IdentityProvider, signing_key
from tests.logs import captured_logs
from tests.token_samples import ACCESS_TOKENS, ID_TOKENS, Sample

VISIT = {"brand_id": "loop", "encounter_type": "lab"}
VIEWER = "{ viewer { clientId userId brandId scopes } }"
KEY = signing_key("RS256", "one")


@asynccontextmanager
async def served(sample: Sample, provider: IdentityProvider, database_url: str) -> AsyncIterator[Service]:
    """Start a service with the settings of the provider's page, and the metadata of the test's provider."""
    provider.keys = [KEY.jwk]
    issuer = {"oidc_issuer": provider.issuer, "jwt_issuer": sample.settings["oidc_issuer"]}
    settings = Settings(**{**GENEROUS_LIMITS, **sample.settings, **issuer}, database_url=database_url)
    async with Service.running(settings) as service:
        yield service


@pytest.mark.parametrize("sample", ACCESS_TOKENS, ids=str)
async def test_an_access_token_records_and_reads_at_both_doors(
    sample: Sample, provider: IdentityProvider, database_url: str, cast: Cast
) -> None:
    assert sample.caller is not None
    user_id, client_id = sample.caller["user_id"], sample.caller["client_id"]
    token = sample.signed(KEY, time.time())
    async with served(sample, provider, database_url) as service:
        for door in (RestDoor(service), GraphQLDoor(service)):
            patient_id = await cast.patient()

            outcome = await door.record(patient_id, VISIT, token=token)

            assert outcome.code is None
            entry = await cast.connection.fetchrow(
                "SELECT actor_type, actor_id, actor_brand_id FROM patient_graph.audit_log WHERE entity_id = $1",
                outcome.encounter["id"],
            )
            actor = ("service", client_id) if user_id is None else ("user", user_id)
            assert tuple(entry or ()) == (*actor, sample.caller["brand_id"])
        viewer = (await service.graphql(VIEWER, token=token))["data"]["viewer"]

    assert {"write:encounters", "read:encounters"} <= set(viewer["scopes"])
    assert (viewer["clientId"], viewer["userId"], viewer["brandId"]) == (
        client_id,
        user_id,
        sample.caller["brand_id"],
    )


@pytest.mark.parametrize("sample", [each for each in ACCESS_TOKENS if "machine" in each.name], ids=str)
async def test_a_machine_states_its_brand_and_a_person_may_not(
    sample: Sample, provider: IdentityProvider, database_url: str, cast: Cast
) -> None:
    person = next(each for each in ACCESS_TOKENS if each.name == f"{sample.name.split()[0]} person")
    without_brand = {"brand": None, "https://clinic.example/brand": None, "extn.brand": None}
    patient_id = await cast.patient("loopbio")
    visit = VISIT | {"brand_id": "loopbio"}
    async with served(sample, provider, database_url) as service:
        codes = [
            (
                await RestDoor(service).record(
                    patient_id, visit, token=each.signed(KEY, time.time(), **without_brand), brand_header="loopbio"
                )
            ).code
            for each in (sample, person)
        ]

    assert codes == [None, "forbidden"]


@pytest.mark.parametrize("sample", ID_TOKENS, ids=str)
async def test_an_id_token_is_refused_at_both_doors_and_not_logged(
    sample: Sample, provider: IdentityProvider, database_url: str, cast: Cast
) -> None:
    token = sample.signed(KEY, time.time())
    patient_id = await cast.patient()
    with captured_logs() as lines:
        async with served(sample, provider, database_url) as service:
            outcomes = [
                await door.record(patient_id, VISIT, token=token) for door in (RestDoor(service), GraphQLDoor(service))
            ]

    assert [outcome.code for outcome in outcomes] == ["invalid_token", "invalid_token"]
    assert await cast.rows(patient_id) == []
    assert token not in str(lines)
    assert not [value for value in (sample.claims["sub"], "nurse.one") if value in str(lines)]
