"""The Python client `gql` against a listening gateway, over HTTP and WebSocket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import pytest
from gql import Client, GraphQLRequest
from gql.client import AsyncClientSession
from gql.transport.async_transport import AsyncTransport
from gql.transport.exceptions import TransportConnectionFailed, TransportQueryError
from gql.transport.httpx import HTTPXAsyncTransport
from gql.transport.websockets import WebsocketsTransport

from tests.cast import Cast

RECORD = """mutation ($patientId: ID!, $input: RecordEncounterInput!, $key: String) {
  recordEncounter(patientId: $patientId, input: $input, idempotencyKey: $key) {
    __typename
    ... on EncounterRecorded { replayed encounter { id notes } }
    ... on Problem { code recorded }
    ... on InvalidInput { violations { path rule } }
  }
}"""
PAGE = """query ($patientId: ID!, $after: String) {
  patient(id: $patientId) { encounters(first: 2, after: $after) { nodes { id } pageInfo { hasNextPage endCursor } } }
}"""
EVENTS = """subscription ($patientId: ID!) {
  encounterEvents(patientId: $patientId) { kind encounter { id } }
}"""
DEV = {"authorization": "Bearer dev"}
NOBODY = {"authorization": "Bearer nobody"}
VISIT = {"brandId": "loop", "encounterType": "TELEHEALTH", "notes": "Slept well."}

Session = Callable[..., AbstractAsyncContextManager[AsyncClientSession]]


def over_http(gateway_url: str, headers: dict[str, str]) -> AsyncTransport:
    return HTTPXAsyncTransport(f"{gateway_url}/graphql", headers=headers, trust_env=False)


def over_a_websocket(gateway_url: str, headers: dict[str, str]) -> AsyncTransport:
    return WebsocketsTransport(
        f"{gateway_url.replace('http', 'ws')}/graphql",
        init_payload=headers,
        subprotocols=["graphql-transport-ws"],
        connect_args={"proxy": None},
    )


@pytest.fixture(params=[over_http, over_a_websocket])
def session(request: pytest.FixtureRequest, gateway_url: str) -> Session:
    """Opens a session of the client."""

    @asynccontextmanager
    async def opened(*, fetch_schema: bool = True, **headers: str) -> AsyncIterator[AsyncClientSession]:
        transport = request.param(gateway_url, DEV | headers)
        # With the schema, the client validates each document before it is sent.
        async with Client(transport=transport, fetch_schema_from_transport=fetch_schema) as session:
            yield session

    return opened


async def ask(session: AsyncClientSession, document: str, **variables: Any) -> Any:
    return await session.execute(GraphQLRequest(document, variable_values=variables))


async def record(session: AsyncClientSession, patient_id: str, key: str | None = None, **members: Any) -> Any:
    body = await ask(session, RECORD, patientId=patient_id, input=VISIT | members, key=key)
    return body["recordEncounter"]


async def test_an_encounter_is_recorded_once_under_its_key(session: Session, cast: Cast) -> None:
    patient_id = await cast.patient()

    async with session() as clinic:
        first = await record(clinic, patient_id, patient_id)
        again = await record(clinic, patient_id, patient_id)
        reused = await record(clinic, patient_id, patient_id, notes="Slept badly.")

    assert (first["__typename"], first["replayed"], again["replayed"]) == ("EncounterRecorded", False, True)
    assert again["encounter"] == first["encounter"]
    assert (reused["__typename"], reused["recorded"]) == ("IdempotencyKeyReused", "NO")
    assert [str(row["id"]) for row in await cast.rows(patient_id)] == [first["encounter"]["id"]]


async def test_a_broken_rule_is_a_union_member_that_names_the_rule(session: Session, cast: Cast) -> None:
    async with session() as clinic:
        problem = await record(clinic, await cast.patient(), notes="x" * 50_001)

    assert (problem["__typename"], problem["code"]) == ("InvalidInput", "validation_error")
    assert problem["violations"] == [{"path": ["input", "notes"], "rule": "too_long"}]


async def test_pages_are_followed_by_their_cursors_newest_first(session: Session, cast: Cast) -> None:
    patient_id = await cast.patient()
    pages: list[list[str]] = []
    after, more = None, True

    async with session() as clinic:
        for number in range(3):
            await record(clinic, patient_id, notes=f"Visit {number}.")
        while more:
            page = (await ask(clinic, PAGE, patientId=patient_id, after=after))["patient"]["encounters"]
            pages.append([node["id"] for node in page["nodes"]])
            after, more = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]

    newest_first = [str(row["id"]) for row in await cast.rows(patient_id)][::-1]
    assert pages == [newest_first[:2], newest_first[2:]]


@pytest.mark.parametrize(
    ("document", "headers", "code"),
    [("{ __typename }", {"x-brand-id": "loopbio"}, "forbidden"), ("{ nope }", {}, "validation_error")],
)
async def test_a_refusal_is_an_error_with_its_code(
    session: Session, document: str, headers: dict[str, str], code: str
) -> None:
    async with session(fetch_schema=False, **headers) as clinic:
        with pytest.raises(TransportQueryError) as refused:
            await ask(clinic, document)

    assert refused.value.errors is not None
    assert [error["extensions"]["code"] for error in refused.value.errors] == [code]


async def test_over_http_a_bad_token_is_an_error_with_its_code(gateway_url: str) -> None:
    async with Client(transport=over_http(gateway_url, NOBODY)) as stranger:
        with pytest.raises(TransportQueryError) as refused:
            await ask(stranger, "{ __typename }")

    assert refused.value.errors is not None
    assert [error["extensions"]["code"] for error in refused.value.errors] == ["invalid_token"]


async def test_over_a_websocket_a_bad_token_closes_it(gateway_url: str) -> None:
    with pytest.raises(TransportConnectionFailed) as closed:
        async with Client(transport=over_a_websocket(gateway_url, NOBODY)):
            pass

    assert "4403" in str(closed.value.__cause__)


async def test_a_batch_is_answered_in_its_order(gateway_url: str, cast: Cast) -> None:
    patient_id = await cast.patient()
    recording = {"patientId": patient_id, "input": VISIT}
    requests = [
        GraphQLRequest(RECORD, variable_values=recording),
        GraphQLRequest(PAGE, variable_values={"patientId": patient_id}),
    ]

    async with Client(transport=over_http(gateway_url, DEV)) as clinic:
        recorded, page = await clinic.execute_batch(requests)

    assert page["patient"]["encounters"]["nodes"] == [{"id": recorded["recordEncounter"]["encounter"]["id"]}]


async def test_over_a_websocket_a_recording_is_received(gateway_url: str, cast: Cast) -> None:
    patient_id = await cast.patient()
    events = GraphQLRequest(EVENTS, variable_values={"patientId": patient_id})
    recorded: list[str] = []

    async with (
        asyncio.timeout(30),
        Client(transport=over_a_websocket(gateway_url, DEV)) as clinic,
        aclosing(clinic.subscribe(events)) as received_events,
    ):
        first = asyncio.create_task(anext(received_events))
        # The protocol has no message for a subscription that has begun.
        while not first.done():
            recorded.append((await record(clinic, patient_id))["encounter"]["id"])

    event = first.result()["encounterEvents"]
    assert event["kind"] == "RECORDED"
    assert event["encounter"]["id"] in recorded
