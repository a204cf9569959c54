"""Tokens with random key ids: they neither delay a new key nor flood the issuer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import Any

import httpx2
import pytest

from gateway.auth.verifier import verifying
from gateway.settings import Settings
from tests.cast import Cast
from tests.doors import RECORD, Service
from tests.identity_provider import TIMEOUT_SECONDS, FakeClock, IdentityProvider, claims, jwt, signing_key

OLD, NEW, STRANGER = (signing_key("ES256", name) for name in ("old", "new", "stranger"))
PAUSE_SECONDS = 5
ROUNDS = 24
ATTACKERS = 20


@pytest.fixture
async def verified(provider: IdentityProvider, clock: FakeClock, database_url: str) -> AsyncIterator[Service]:
    provider.keys = [OLD.jwk]
    settings = provider.settings(jwt=True, identity_provider_seconds=TIMEOUT_SECONDS)
    async with (
        verifying(settings, clock) as verify,
        Service.running(Settings(**settings.model_dump() | {"database_url": database_url}), verify) as service,
    ):
        yield service


Record = Callable[[str, str], Awaitable[httpx2.Response]]


@pytest.fixture(params=["rest", "graphql"])
def record(request: pytest.FixtureRequest, verified: Service) -> Record:
    """Record an encounter of a patient, with a token."""

    async def recorded(patient_id: str, token: str) -> httpx2.Response:
        headers = {"authorization": f"Bearer {token}"}
        if request.param == "rest":
            visit = {"brand_id": "loop", "encounter_type": "lab"}
            path = f"/v1/patients/{patient_id}/encounters"
            return await verified.client.post(path, json=visit, headers=headers)
        variables = {"patientId": patient_id, "input": {"brandId": "loop", "encounterType": "LAB"}}
        headers["accept"] = "application/graphql-response+json"
        return await verified.client.post("/graphql", json={"query": RECORD, "variables": variables}, headers=headers)

    return recorded


def refusal(answer: httpx2.Response) -> tuple[int, str, str]:
    """Return the status, the code, and `recorded`."""
    body: dict[str, Any] = answer.json()
    error = body["errors"][0]["extensions"] if "errors" in body else {"code": body["error"], **body}
    return answer.status_code, error["code"], error["recorded"]


async def test_random_key_ids_neither_delay_a_new_key_nor_flood_the_issuer(
    provider: IdentityProvider, clock: FakeClock, record: Record, cast: Cast
) -> None:
    patient_id = await cast.patient()
    numbers = count()

    def token(key: Any, **header: Any) -> str:
        return jwt(key, claims(clock.now, jti=str(next(numbers))), **header)

    def attack() -> list[Awaitable[httpx2.Response]]:
        return [record(patient_id, token(STRANGER, kid=f"random-{next(numbers)}")) for _ in range(ATTACKERS)]

    assert (await record(patient_id, token(OLD))).is_success
    await asyncio.gather(*attack())
    provider.keys = [OLD.jwk, NEW.jwk]

    answers = []
    for _ in range(ROUNDS):
        clock.advance(1)
        *attacks, old, new = await asyncio.gather(
            *attack(), record(patient_id, token(OLD)), record(patient_id, token(NEW))
        )
        assert old.is_success
        assert {answer.status_code for answer in attacks} <= {401, 503}
        answers.append(new)

    refused = [answer for answer in answers if not answer.is_success]
    assert all(answer.is_success for answer in answers[PAUSE_SECONDS:])
    assert {refusal(answer) for answer in refused} == {(503, "temporarily_unavailable", "no")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert provider.key_fetches <= 1 + ROUNDS // PAUSE_SECONDS
