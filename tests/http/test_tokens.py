"""Verified tokens at both doors: accepted ones, rejected ones, and an unavailable provider."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import httpx2
import pytest
from starlette.responses import Response

from gateway.observability.metrics import IDENTITY_PROVIDER_FAILURES
from gateway.preflight import preflight
from tests.cast import Cast
from tests.conftest import create_database
from tests.doors import RECORD, Door, GraphQLDoor, RestDoor, Service
from tests.identity_provider import TIMEOUT_SECONDS, IdentityProvider, claims, jwt, signing_key

VISIT = {"brand_id": "loop", "encounter_type": "lab"}
NURSE = {"client_id": "app", "sub": "nurse-1", "brand": "loop", "scope": "write:encounters read:encounters"}
KEY = signing_key("ES256", "one")

# Source: RFC 6750, section 3; syntax of a challenge: RFC 9110, section 11.6.1.
CHALLENGE = re.compile(r'Bearer( (\w+="[\x20\x21\x23-\x5b\x5d-\x7e]*")(, \w+="[\x20\x21\x23-\x5b\x5d-\x7e]*")*)?')


@pytest.fixture
async def verified(provider: IdentityProvider, database_url: str) -> AsyncIterator[Service]:
    """A service that introspects and verifies tokens, with a short cache."""
    provider.keys = [KEY.jwk]
    settings = provider.settings(
        introspection=True,
        jwt=True,
        database_url=database_url,
        identity_provider_seconds=TIMEOUT_SECONDS,
        token_cache_seconds=0,
    )
    async with Service.running(settings) as service:
        yield service


@pytest.fixture(params=[RestDoor, GraphQLDoor], ids=["rest", "graphql"])
def guarded_door(request: pytest.FixtureRequest, verified: Service) -> Door:
    door: Door = request.param(verified)
    return door


Ask = Callable[[dict[str, str]], Awaitable[httpx2.Response]]


@pytest.fixture(params=["rest", "graphql", "graphql for older clients", "no such path"])
def ask(request: pytest.FixtureRequest, verified: Service) -> Ask:
    """Return a function that sends a request of each kind with these headers."""

    async def asked(headers: dict[str, str]) -> httpx2.Response:
        if "graphql" not in request.param:
            path = "/v1/patients/nobody/encounters" if request.param == "rest" else "/v1/nothing"
            return await verified.client.post(path, json=VISIT, headers=headers)
        media_type = "application/graphql-response+json" if request.param == "graphql" else "application/json"
        variables = {"patientId": "nobody", "input": {"brandId": "loop", "encounterType": "LAB"}}
        return await verified.client.post(
            "/graphql", json={"query": RECORD, "variables": variables}, headers={"accept": media_type} | headers
        )

    return asked


def refusal(answer: httpx2.Response) -> tuple[str, str]:
    """Return the code of a refusal, and `recorded`, at either door."""
    body: dict[str, Any] = answer.json()
    if "errors" in body:
        extensions = body["errors"][0]["extensions"]
        return extensions["code"], extensions["recorded"]
    return body["error"], body["recorded"]


async def test_a_failure_of_the_identity_provider_is_counted(
    provider: IdentityProvider, guarded_door: Door, cast: Cast
) -> None:
    before = IDENTITY_PROVIDER_FAILURES._value.get()
    provider.answer = lambda: Response(status_code=500)

    outcome = await guarded_door.record(await cast.patient(), VISIT, token="opaque")

    assert outcome.code == "temporarily_unavailable"
    assert IDENTITY_PROVIDER_FAILURES._value.get() > before


# Accepted tokens


@pytest.mark.parametrize("way", ["introspection", "jwt"])
async def test_a_person_records_for_their_brand_and_is_named_in_the_audit_log(
    provider: IdentityProvider, guarded_door: Door, cast: Cast, way: str
) -> None:
    token = "opaque" if way == "introspection" else jwt(KEY, claims())
    provider.tokens["opaque"] = NURSE
    patient_id = await cast.patient()

    outcome = await guarded_door.record(patient_id, VISIT, token=token)

    assert outcome.code is None
    entry = await cast.connection.fetchrow(
        "SELECT actor_type, actor_id, actor_brand_id FROM patient_graph.audit_log WHERE entity_id = $1",
        outcome.encounter["id"],
    )
    assert tuple(entry or ()) == ("user", "nurse-1", "loop")


async def test_a_machine_without_a_brand_states_its_acting_brand(
    provider: IdentityProvider, guarded_door: Door, cast: Cast
) -> None:
    provider.tokens["opaque"] = {"client_id": "lab", "scope": "write:encounters"}
    here, there = await cast.patient(), await cast.patient("loopbio")

    outcomes = [
        await guarded_door.record(here, VISIT, token="opaque"),
        await guarded_door.record(there, VISIT | {"brand_id": "loopbio"}, token="opaque", brand_header="loopbio"),
        await guarded_door.record(there, VISIT, token="opaque"),
        await guarded_door.record(here, VISIT, token="opaque", brand_header="loopbio"),
    ]

    assert [outcome.code for outcome in outcomes] == [None, None, "not_found", "forbidden"]


async def test_a_person_without_a_brand_may_not_state_one(
    provider: IdentityProvider, guarded_door: Door, cast: Cast
) -> None:
    provider.tokens["opaque"] = NURSE | {"brand": None}
    patient_id = await cast.patient()

    outcomes = [
        await guarded_door.record(patient_id, VISIT, token="opaque", brand_header=stated) for stated in (None, "loop")
    ]

    assert [outcome.code for outcome in outcomes] == ["forbidden", "forbidden"]
    assert await cast.rows(patient_id) == []


async def test_a_revoked_token_is_refused_when_it_is_next_verified(
    provider: IdentityProvider, guarded_door: Door, cast: Cast
) -> None:
    patient_id = await cast.patient()
    provider.tokens["opaque"] = NURSE
    before = await guarded_door.record(patient_id, VISIT, token="opaque")

    del provider.tokens["opaque"]

    after = await guarded_door.record(patient_id, VISIT, token="opaque")
    assert (before.code, after.code) == (None, "invalid_token")


# Rejected tokens (RFC 6750, section 3)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic YXBwOnNlY3JldA==", "opaque"])
async def test_a_missing_token_gets_a_challenge_without_an_error(
    provider: IdentityProvider, ask: Ask, authorization: str | None
) -> None:
    provider.tokens["opaque"] = NURSE

    answer = await ask({} if authorization is None else {"authorization": authorization})

    assert answer.status_code == 401
    assert answer.headers.get_list("www-authenticate") == ["Bearer"]
    assert refusal(answer) == ("unauthenticated", "no")
    assert provider.introspections == 0


@pytest.mark.parametrize("token", ["unknown", "dev", "dev-loopbio", "x" * 8193, "a b", "tökén"])
async def test_a_rejected_token_gets_invalid_token(ask: Ask, token: str) -> None:
    answer = await ask({"authorization": f"Bearer {token}".encode()})  # type: ignore[dict-item]

    assert answer.status_code == 401
    [challenge] = answer.headers.get_list("www-authenticate")
    assert (
        challenge
        == 'Bearer error="invalid_token", error_description="The bearer token is invalid, expired or revoked."'
    )
    assert CHALLENGE.fullmatch(challenge)
    assert refusal(answer) == ("invalid_token", "no")
    assert token not in answer.text


@pytest.mark.parametrize(
    "answered",
    [
        NURSE | {"aud": "https://other.test"},
        NURSE | {"iss": "https://other.test"},
        {"sub": "nurse-1", "scope": "admin:*"},
        {"sub": "nurse-1", "scope": "admin:*", "brand": "loop"},
    ],
    ids=str,
)
async def test_a_token_of_another_service_or_without_a_client_is_rejected(
    provider: IdentityProvider, ask: Ask, answered: dict[str, Any]
) -> None:
    provider.tokens["opaque"] = answered

    answer = await ask({"authorization": "Bearer opaque", "x-brand-id": "loop"})

    assert answer.status_code == 401
    assert refusal(answer) == ("invalid_token", "no")


async def test_a_missing_scope_is_named(provider: IdentityProvider, verified: Service, cast: Cast) -> None:
    provider.tokens["opaque"] = NURSE | {"scope": "read:encounters"}
    patient_id = await cast.patient()

    answer = await verified.rest("POST", f"/v1/patients/{patient_id}/encounters", json=VISIT, token="opaque")
    outcome = await GraphQLDoor(verified).record(patient_id, VISIT, token="opaque")

    assert answer.status_code == 403
    [challenge] = answer.headers.get_list("www-authenticate")
    assert challenge == 'Bearer error="insufficient_scope", scope="write:encounters"'
    assert CHALLENGE.fullmatch(challenge)
    assert refusal(answer) == (outcome.code, outcome.recorded) == ("insufficient_scope", "no")
    assert await cast.rows(patient_id) == []


@pytest.mark.parametrize("trouble", ["down", "slow", "failing", "raving"])
@pytest.mark.parametrize("way", ["introspection", "jwt"])
async def test_a_failing_provider_is_503_for_every_caller(
    provider: IdentityProvider, ask: Ask, trouble: str, way: str
) -> None:
    provider.tokens["opaque"] = NURSE
    headers = {"authorization": f"Bearer {'opaque' if way == 'introspection' else jwt(KEY, claims())}"}

    async with provider.with_fault(trouble):
        answer = await ask(headers)

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "www-authenticate" not in answer.headers
    assert refusal(answer) == ("temporarily_unavailable", "no")


# Development tokens and logs


async def test_the_example_patients_are_for_development(
    provider: IdentityProvider, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = await create_database(server_url)

    await preflight(provider.settings(introspection=True, database_url=url, database_unsafe=True), print, changing=True)

    connection = await asyncpg.connect(url)
    patients = await connection.fetchval("SELECT count(*) FROM patient_graph.patients")
    await connection.close()
    assert patients == 0


async def test_a_token_is_in_no_line_of_the_log(
    provider: IdentityProvider, ask: Ask, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = ["marked-5a1c-good", "marked-5a1c-worthless", jwt(KEY, claims()), jwt(KEY, claims(aud="other"))]
    provider.tokens[tokens[0]] = NURSE

    for token in tokens:
        await ask({"authorization": f"Bearer {token}"})
    provider.answer = lambda: 1 / 0  # type: ignore[assignment]
    await ask({"authorization": f"Bearer {tokens[0]}"})

    written = "".join(capfd.readouterr())
    assert not [token for token in tokens if token in written or token.split(".")[-1] in written]
