"""Several operations in one request: off unless configured; each operation succeeds or fails independently."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.audit_notes import REQUEST_REFUSED
from tests.cast import Cast
from tests.doors import Service
from tests.logs import captured_logs

JSON = "application/json"
RESPONSE = "application/graphql-response+json"
MARKER = "tuberculosis"
MOST = 5

HELLO = {"query": "{ __typename }"}
HELLO_BACK = {"data": {"__typename": "Query"}}
RECORD = """mutation ($id: ID!, $brand: String = "loop", $key: String) {
  recordEncounter(patientId: $id, input: {brandId: $brand, encounterType: LAB}, idempotencyKey: $key) {
    ... on EncounterRecorded { replayed encounter { id } }
    ... on Problem { code recorded }
  }
}"""
COUNT = "query ($id: ID!) { patient(id: $id) { encounters { totalCount } } }"

TOKENS = {
    "dev": Caller("app", frozenset({"admin:patient_graph"}), brand_id="loop"),
    "writer": Caller("writer", frozenset({"write:encounters"}), brand_id="loop"),
    "any brand": Caller("machine", frozenset({"admin:patient_graph"})),
    "counted": Caller("counted", frozenset({"admin:patient_graph"}), brand_id="loop"),
    "counted again": Caller("counted again", frozenset({"admin:patient_graph"}), brand_id="loop"),
}


async def verify(token: str) -> Caller:
    """Return the caller of a token, with a new client id unless the test counts its requests."""
    caller = TOKENS[token]
    return caller if token.startswith("counted") else replace(caller, client_id=uuid4().hex)


@pytest.fixture(scope="module")
async def batching(database_url: str) -> AsyncIterator[Service]:
    """The service with batches of up to five operations and low rate limits."""
    settings = Settings(
        database_url=database_url,
        batch_operations=MOST,
        rate_reads_per_minute=50,
        rate_writes_per_minute=50,
        database_acquire_seconds=30,
    )
    async with Service.running(settings, verify) as running:
        yield running


async def post(service: Service, batch: Any, *, token: str = "dev", accept: str = JSON, **headers: str) -> Any:
    """Send a batch."""
    request_headers = {"accept": accept, "content-type": JSON, **headers}
    return await service.rest("POST", "/graphql", token=token, headers=request_headers, content=json.dumps(batch))


def bodies(answer: httpx2.Response) -> list[dict[str, Any]]:
    """Return the bodies of a batch that was executed."""
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    results: list[dict[str, Any]] = answer.json()
    return results


def codes(answer: httpx2.Response) -> list[str | None]:
    """Return the error code of each operation, None for a success."""
    return [body["errors"][0]["extensions"]["code"] if "errors" in body else None for body in bodies(answer)]


def refused(answer: httpx2.Response, rule: str) -> list[str]:
    """Assert that a rule refused the whole batch; return the pointers of the violations."""
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["extensions"]["code"] == "validation_error"
    assert {each["rule"] for each in error["extensions"]["violations"]} == {rule}
    return [each["pointer"] for each in error["extensions"]["violations"]]


# Invalid batches


@pytest.mark.parametrize("accept", [JSON, RESPONSE])
@pytest.mark.parametrize("batch", [[], [HELLO], [HELLO, HELLO], [5], [[HELLO]]], ids=str)
async def test_without_batching_every_array_is_400_and_an_object_is_asked_for(
    service: Service, accept: str, batch: list[Any]
) -> None:
    answer = await post(service, batch, accept=accept)

    assert refused(answer, "batching") == [""]
    assert "send one operation as an object" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("accept", [JSON, RESPONSE])
@pytest.mark.parametrize("batch", [[], [HELLO] * (MOST + 1)], ids=["empty", "too long"])
async def test_an_empty_batch_and_a_too_long_batch_are_400(batching: Service, accept: str, batch: list[Any]) -> None:
    assert refused(await post(batching, batch, accept=accept), "batching") == [""]


@pytest.mark.parametrize("stray", [5, None, True, MARKER, [], [HELLO], [MARKER]], ids=str)
async def test_a_batch_with_an_item_that_is_no_object_is_400_and_runs_nothing(
    batching: Service, cast: Cast, stray: Any
) -> None:
    patient_id = await cast.patient()

    answer = await post(batching, [{"query": RECORD, "variables": {"id": patient_id}}, stray, HELLO, stray])

    assert refused(answer, "object") == ["/1", "/3"]
    assert MARKER not in answer.text
    assert await cast.rows(patient_id) == []


# Results


@pytest.mark.parametrize("accept", [JSON, RESPONSE])
async def test_results_are_in_the_order_of_the_operations(batching: Service, accept: str) -> None:
    batch = [{"query": f"{{ {name}: __typename }}"} for name in "abcde"]

    answer = await post(batching, batch, accept=accept)

    assert bodies(answer) == [{"data": {name: "Query"}} for name in "abcde"]
    assert answer.headers["content-type"] == f"{accept}; charset=utf-8"


async def test_a_batch_is_answered_as_json_even_if_event_stream_is_preferred(batching: Service) -> None:
    answer = await post(batching, [HELLO], accept=f"text/event-stream, {RESPONSE}")

    assert bodies(answer) == [HELLO_BACK]
    assert answer.headers["content-type"] == f"{JSON}; charset=utf-8"


async def test_a_batch_of_one_operation_returns_an_array_of_one_result(batching: Service) -> None:
    assert bodies(await post(batching, [HELLO])) == [HELLO_BACK]


@pytest.mark.parametrize("accept", [JSON, RESPONSE])
@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"query": 5},
        {"query": "{ nope }"},
        {"query": "{ __typename", "variables": {"x": MARKER}},
        {"query": COUNT, "variables": {"id": [MARKER]}},
        {"query": "query a { __typename } query b { __typename }", "operationName": MARKER},
        {"query": f"{{ patients(ids: {json.dumps([MARKER] * 101)}) {{ id }} }}"},
        {"query": "subscription { encounterEvents { cursor } }"},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
async def test_a_refused_operation_does_not_affect_the_others_of_its_batch(
    batching: Service, accept: str, wrong: dict[str, Any]
) -> None:
    with captured_logs() as lines:
        answer = await post(batching, [HELLO, wrong, HELLO], accept=accept)

    assert codes(answer) == [None, "validation_error", None]
    assert bodies(answer)[::2] == [HELLO_BACK, HELLO_BACK]
    assert MARKER not in answer.text + json.dumps(lines)


async def test_each_operation_of_a_batch_has_its_own_request_id(batching: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    record = {"query": RECORD, "variables": {"id": patient_id}}

    answer = await post(batching, [record, {"query": "{ nope }"}, record], **{"x-request-id": "a-batch"})

    assert answer.headers["x-request-id"] == "a-batch"
    assert bodies(answer)[1]["errors"][0]["extensions"]["request_id"] == "a-batch.2"
    audited = await cast.connection.fetch(
        "SELECT request_id FROM patient_graph.audit_log WHERE patient_id = $1 AND entity_type = 'encounter' "
        "ORDER BY request_id",
        patient_id,
    )
    assert [row["request_id"] for row in audited] == ["a-batch.1", "a-batch.3"]


async def test_operations_run_in_order_and_queries_see_earlier_mutations(batching: Service, cast: Cast) -> None:
    variables = {"id": await cast.patient()}
    record, count = {"query": RECORD, "variables": variables}, {"query": COUNT, "variables": variables}

    results = bodies(await post(batching, [count, record, count, record, count]))

    # Loaders shared by the five would show the first count three times.
    assert [body["data"]["patient"]["encounters"]["totalCount"] for body in results[::2]] == [0, 1, 2]
    recorded = [body["data"]["recordEncounter"]["encounter"]["id"] for body in results[1::2]]
    assert recorded == [str(row["id"]) for row in await cast.rows(variables["id"])]


async def test_a_key_sent_twice_in_one_batch_records_one_encounter(batching: Service, cast: Cast) -> None:
    variables = {"id": await cast.patient(), "key": "a-key-in-a-batch"}

    results = bodies(await post(batching, [{"query": RECORD, "variables": variables}] * 2))

    assert [body["data"]["recordEncounter"]["replayed"] for body in results] == [False, True]
    assert len(await cast.rows(variables["id"])) == 1


async def test_a_refused_mutation_does_not_prevent_the_next_one(batching: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    batch = [{"query": RECORD, "variables": {"id": each}} for each in ("nobody", patient_id)]

    results = bodies(await post(batching, batch))

    assert [body["data"]["recordEncounter"].get("code") for body in results] == ["not_found", None]
    assert len(await cast.rows(patient_id)) == 1


async def test_a_too_expensive_operation_is_refused_and_the_next_one_runs(batching: Service) -> None:
    page = "encounters(first: 100) { nodes { patient { id %s } } }"
    expensive = {"query": f'{{ patient(id: "nobody") {{ {page % (page % (page % ""))} }} }}'}

    answer = await post(batching, [expensive, HELLO])

    assert codes(answer) == ["validation_error", None]
    assert bodies(answer)[0]["errors"][0]["extensions"]["violations"][0]["rule"] == "cost"


# Authorization and rate limits


async def test_a_batch_without_a_token_is_401_before_it_is_validated(batching: Service) -> None:
    answer = await batching.rest("POST", "/graphql", token=None, json=[5])

    assert answer.status_code == 401


async def test_a_missing_scope_is_reported_at_its_operation_and_in_the_challenge(batching: Service, cast: Cast) -> None:
    read = {"query": '{ encounter(id: "x") { id } }'}
    batch = [read, {"query": RECORD, "variables": {"id": await cast.patient()}}, read]

    answer = await post(batching, batch, token="writer")

    assert codes(answer) == ["insufficient_scope", None, "insufficient_scope"]
    assert 'scope="read:encounters"' in answer.headers["www-authenticate"]


async def test_each_refused_operation_is_audited_under_its_own_request_id(batching: Service, cast: Cast) -> None:
    read, request_id = {"query": '{ encounter(id: "x") { id } }'}, uuid4().hex

    await post(batching, [read, HELLO, read], token="writer", **{"x-request-id": request_id})
    await batching.services.audit_sink.flush()

    refused = await cast.connection.fetch(
        "SELECT request_id FROM patient_graph.audit_log WHERE event_type = $1 AND request_id LIKE $2 ORDER BY 1",
        REQUEST_REFUSED,
        f"{request_id}%",
    )
    assert [row["request_id"] for row in refused] == [f"{request_id}.1", f"{request_id}.3"]


async def test_a_brand_other_than_the_tokens_is_403_for_the_whole_batch(batching: Service, cast: Cast) -> None:
    patient_id = await cast.patient()

    answer = await post(
        batching, [HELLO, {"query": RECORD, "variables": {"id": patient_id}}], **{"x-brand-id": "loopbio"}
    )

    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (403, "forbidden")
    assert await cast.rows(patient_id) == []


async def test_operations_of_a_client_of_all_brands_may_name_different_brands(batching: Service, cast: Cast) -> None:
    brands = ("loop", "loopbio")
    patients = [await cast.patient(brand_id) for brand_id in brands]
    batch = [
        {"query": RECORD, "variables": {"id": patient_id, "brand": brand_id}}
        for patient_id, brand_id in zip(patients, brands, strict=True)
    ]

    assert codes(await post(batching, batch, token="any brand")) == [None, None]
    assert [[row["brand_id"] for row in await cast.rows(each)] for each in patients] == [["loop"], ["loopbio"]]


async def test_each_operation_counts_and_only_those_over_the_limit_are_refused(batching: Service, cast: Cast) -> None:
    reads = {"query": "{ " + " ".join(f"f{number}: __typename" for number in range(24)) + " }"}
    record = {"query": RECORD, "variables": {"id": await cast.patient()}}

    answer = await post(batching, [reads, reads, reads, record, {"query": 5}], token="counted")

    # 48 of 50 reads, then 24 more, a write, and an invalid operation, which counts as a read.
    assert codes(answer) == [None, None, "rate_limited", None, "validation_error"]
    assert bodies(answer)[2]["errors"][0]["extensions"]["retry_after_ms"] > 0
    assert answer.headers["x-ratelimit-remaining"] == "1"


async def test_a_batch_refused_as_a_whole_counts_as_one_read(batching: Service) -> None:
    left = [
        (await post(batching, batch, token="counted again")).headers["x-ratelimit-remaining"]
        for batch in ([], [5], [HELLO] * 9)
    ]

    assert left == ["49", "48", "47"]
