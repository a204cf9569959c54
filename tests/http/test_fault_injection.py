"""Injected faults of `gateway serve --faults`, one by one. `process/test_fault_injection.py` tests the process."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from gateway.middleware import fault_injection
from gateway.middleware.fault_injection import Fault, FaultInjectionMiddleware
from gateway.settings import Settings
from tests.cast import Cast
from tests.doors import ENCOUNTER, Service

VISIT = {"brand_id": "loop", "encounter_type": "lab"}
RECORD = f"""mutation ($id: ID!, $key: String) {{
  recordEncounter(patientId: $id, input: {{brandId: "loop", encounterType: LAB}}, idempotencyKey: $key) {{
    ... on EncounterRecorded {{ replayed encounter {ENCOUNTER} }} }} }}"""
DOORS = pytest.mark.parametrize("door", ["rest", "graphql"])


@pytest.fixture
async def faulty(database_url: str) -> AsyncIterator[Service]:
    async with Service.running(Settings(database_url=database_url, database_acquire_seconds=30), faults=7) as service:
        yield service


@pytest.fixture
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fault:
    """The fault that every request gets."""
    monkeypatch.setattr(fault_injection, "WEIGHTS", {request.param: 1})
    monkeypatch.setattr(fault_injection, "MAX_DELAY_SECONDS", 0.01)
    return request.param


def with_faults(*which: Fault) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fault", which, indirect=True)


async def send(service: Service, door: str, patient_id: str, key: str | None = None, **more: Any) -> httpx2.Response:
    """Record through the given door."""
    if door == "rest":
        headers = {} if key is None else {"idempotency-key": key}
        return await service.rest("POST", f"/v1/patients/{patient_id}/encounters", json=VISIT, headers=headers, **more)
    asked = {"query": RECORD, "variables": {"id": patient_id, "key": key}}
    return await service.rest("POST", "/graphql", json=asked, **more)


@DOORS
@with_faults(Fault.RATE_LIMITED, Fault.UNAVAILABLE)
async def test_an_injected_refusal_is_a_normal_error_and_nothing_is_recorded(
    faulty: Service, cast: Cast, fault: Fault, door: str
) -> None:
    patient_id = await cast.patient()

    answer = await send(faulty, door, patient_id)

    status, code = {
        Fault.RATE_LIMITED: (429, "rate_limited"),
        Fault.UNAVAILABLE: (503, "temporarily_unavailable"),
    }[fault]
    body = answer.json()
    error = body if door == "rest" else body["errors"][0]["extensions"] | body["errors"][0]
    assert answer.status_code == status
    assert (error.get("error", error.get("code")), error["recorded"]) == (code, "no")
    assert error["request_id"] == answer.headers["x-request-id"]
    assert (answer.headers["retry-after"], answer.headers["x-rehearsed-fault"]) == ("1", fault)
    assert await cast.count("encounters", patient_id) == 0


@DOORS
@with_faults(Fault.RATE_LIMITED)
async def test_a_genuine_refusal_precedes_an_injected_one_and_has_no_mark(
    faulty: Service, fault: Fault, door: str
) -> None:
    answer = await send(faulty, door, "nobody", token=None)

    assert answer.status_code == 401
    assert "x-rehearsed-fault" not in answer.headers


@DOORS
@with_faults(Fault.DELAY)
async def test_a_delayed_request_is_answered_normally(faulty: Service, cast: Cast, fault: Fault, door: str) -> None:
    patient_id = await cast.patient()

    answer = await send(faulty, door, patient_id)

    assert answer.is_success
    assert answer.headers["x-rehearsed-fault"] == "delay"
    assert await cast.count("encounters", patient_id) == 1


@DOORS
@with_faults(Fault.DELIVERED_TWICE)
async def test_a_duplicated_request_is_recorded_twice_unless_it_has_a_key(
    faulty: Service, cast: Cast, fault: Fault, door: str
) -> None:
    careless, careful = await cast.patient(), await cast.patient()

    without, with_key = await send(faulty, door, careless), await send(faulty, door, careful, f"key-{careful}")

    assert without.is_success
    assert await cast.count("encounters", careless) == 2
    assert await cast.count("encounters", careful) == 1
    replayed = with_key.headers.get("idempotent-replayed") == "true" or '"replayed":true' in with_key.text
    assert (replayed, with_key.headers["x-rehearsed-fault"]) == (True, "delivered_twice")


@with_faults(Fault.DELIVERED_TWICE)
async def test_a_duplicated_body_over_the_limit_is_refused(faulty: Service, cast: Cast, fault: Fault) -> None:
    body = VISIT | {"notes": "x" * 400_000}

    answer = await faulty.rest("POST", f"/v1/patients/{await cast.patient()}/encounters", json=body)

    assert (answer.status_code, answer.json()["recorded"]) == (413, "no")


@with_faults(Fault.UNAVAILABLE)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("POST", "/healthz"),
        ("GET", "/rules/required"),
        ("GET", "/v1/patients/demo-patient/encounters"),
        ("GET", "/graphql?query={__typename}"),
    ],
)
async def test_other_requests_get_no_faults(faulty: Service, fault: Fault, method: str, path: str) -> None:
    answer = await faulty.rest(method, path)

    assert answer.status_code != 503
    assert "x-rehearsed-fault" not in answer.headers


@with_faults(Fault.UNAVAILABLE)
async def test_a_stream_gets_no_faults(faulty: Service, fault: Fault) -> None:
    headers = {"accept": "text/event-stream, application/json"}

    answer = await faulty.rest("POST", "/graphql", json={"query": "{ __typename }"}, headers=headers)

    assert (answer.status_code, answer.headers.get("x-rehearsed-fault")) == (200, None)


async def test_without_faults_every_request_succeeds(service: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    answers = [await send(service, "rest", patient_id) for _ in range(50)]

    assert {(each.status_code, each.headers.get("x-rehearsed-fault")) for each in answers} == {(201, None)}


def test_a_seed_determines_the_order_of_faults() -> None:
    seven, seven_again, eight = [order(seed) for seed in (7, 7, 8)]

    assert seven == seven_again
    assert seven != eight
    assert set(seven) == set(eight) == set(Fault)


def order(seed: int) -> list[Fault]:
    """Return the faults of two hundred requests."""
    drawing = FaultInjectionMiddleware(no_app, seed=seed)
    return [drawing._draw()[0] for _ in range(200)]


async def no_app(*_: Any) -> None:
    raise AssertionError("nobody is served")
