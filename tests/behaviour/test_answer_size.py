"""No answer is larger than the limit; a refusal names the remedy, smaller pages."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import asyncpg
import httpx2
import pytest

from gateway.database.database import APP_ROLE, Database, PoolConnection
from gateway.settings import Settings
from resolvers.errors import AnswerTooLarge
from resolvers.sql import Statement
from tests.cast import Cast
from tests.conftest import GENEROUS_LIMITS
from tests.doors import Service
from tests.sse_client import COMPLETE, open_stream
from tests.waiting import wait_until
from tests.websocket_client import GatewayServer

LIMIT = 1024 * 1024
RESPONSE = {"accept": "application/graphql-response+json", "content-type": "application/json"}
NOTE = 21_500
"""Characters of each note: a page of 100 has twice the limit."""

EXECUTED = "history { version }"
"""A field that no plan serves: with it, the executor runs the query."""


def settings_with_limit(database_url: str, **changed: Any) -> Settings:
    return Settings(database_url=database_url, **GENEROUS_LIMITS | {"max_answer_bytes": LIMIT} | changed)


@pytest.fixture(scope="module")
async def limited(database_url: str) -> AsyncIterator[Service]:
    """A service with a limit of one mebibyte, batching and federation."""
    async with Service.running(settings_with_limit(database_url, federation=True, batch_operations=10)) as running:
        yield running


@pytest.fixture(scope="module")
async def long_notes(database_url: str) -> tuple[str, list[str]]:
    """A patient with a hundred encounters of long notes: the patient's id and the ids of the encounters."""
    connection = await asyncpg.connect(database_url)
    patient_id = await Cast(connection).patient()
    ids = await insert_visits(connection, patient_id, 100)
    await connection.close()
    return patient_id, ids


async def insert_visits(
    connection: asyncpg.Connection, patient_id: str, count: int, characters: int = NOTE
) -> list[str]:
    """Insert encounters with notes of this length; return their ids."""
    rows = await connection.fetch(
        "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type, notes)"
        " SELECT $1, gen_random_uuid(), 'loop', 'lab', repeat('x', $3) FROM generate_series(1, $2) RETURNING id::text",
        patient_id,
        count,
        characters,
    )
    return [row["id"] for row in rows]


def refusal(body: dict[str, Any]) -> dict[str, Any]:
    """Assert that an operation was refused for the size of its answer; return the extensions of the error."""
    (error,) = body["errors"]
    assert body.get("data") is None
    assert "smaller pages" in error["message"]
    extensions: dict[str, Any] = error["extensions"]
    assert extensions["code"] == "validation_error"
    (violation,) = extensions["violations"]
    assert (violation["rule"], violation["maximum"]) == ("answer_bytes", LIMIT)
    return extensions


# REST


async def test_a_too_large_rest_list_is_refused_and_smaller_pages_are_served(
    limited: Service, long_notes: tuple[str, list[str]]
) -> None:
    path = f"/v1/patients/{long_notes[0]}/encounters"

    refused = await limited.rest("GET", path, params={"limit": 100})
    pages = [await limited.rest("GET", path, params={"limit": 25, "offset": offset}) for offset in (0, 25, 50, 75)]

    assert refused.status_code == 400
    body = refused.json()
    assert (body["error"], body["recorded"]) == ("validation_error", "no")
    assert [(each["rule"], each["maximum"]) for each in body["violations"]] == [("answer_bytes", LIMIT)]
    assert "smaller pages" in body["message"]
    assert {each["id"] for page in pages for each in page.json()["encounters"]} == set(long_notes[1])


@pytest.mark.parametrize(("characters", "is_sent"), [(LIMIT - 1_000, True), (LIMIT, False)])
async def test_the_limit_over_rest_is_exact_to_the_kilobyte(
    limited: Service, cast: Cast, characters: int, is_sent: bool
) -> None:
    patient_id = await cast.patient()
    await insert_visits(cast.connection, patient_id, 1, characters)

    answer = await limited.rest("GET", f"/v1/patients/{patient_id}/encounters")

    assert answer.status_code == (200 if is_sent else 400)


async def test_the_largest_single_encounter_is_within_the_limit(limited: Service, cast: Cast) -> None:
    """The lowest configurable limit exceeds the largest encounter of the default settings."""
    patient_id = await cast.patient()
    visit = {
        "brand_id": "loop",
        "encounter_type": "lab",
        "notes": "\x01" * 32_000,
        "chief_complaint": "\x01" * 2_000,
        "metadata": {"of": "x" * 40_000},
    }

    recorded = await limited.rest("POST", f"/v1/patients/{patient_id}/encounters", json=visit)
    shown = await limited.rest("GET", recorded.headers["location"])

    assert (recorded.status_code, shown.status_code) == (201, 200)
    assert shown.json()["notes"] == visit["notes"]


# GraphQL

ALIASED = " ".join(f"n{number}: notes" for number in range(45))
LONG_NAME = "a" * 15_000
TOO_LARGE = {
    "a page": "query ($id: ID!) { patient(id: $id) { encounters(first: 100) { nodes { notes } } } }",
    "its edges": "query ($id: ID!) { patient(id: $id) { encounters(first: 100) { edges { cursor node { notes } } } } }",
    "from the oldest": "query ($id: ID!) { patient(id: $id) { encounters(last: 100) { nodes { notes } } } }",
    "with its place": """query ($id: ID!) { patient(id: $id) { encounters(first: 100) {
      nodes { notes } pageInfo { hasNextPage endCursor } } } }""",
    "several pages": """query ($id: ID!) { patient(id: $id) { a: encounters(first: 30) { nodes { notes } }
      b: encounters(last: 30) { nodes { notes } } } }""",
    "one note many times": f"""query ($id: ID!) {{
      patient(id: $id) {{ encounters(first: 2) {{ nodes {{ {ALIASED} }} }} }} }}""",
    "a long name": f"""query ($id: ID!) {{
      patient(id: $id) {{ encounters(first: 100) {{ nodes {{ {LONG_NAME}: id }} }} }} }}""",
    "several patients": """query ($id: ID!) { a: patient(id: $id) { encounters(first: 30) { nodes { notes } } }
      b: patient(id: $id) { encounters(first: 30) { nodes { notes } } } }""",
    "the same patient many times": """query ($id: ID!) {
      patients(ids: [$id, $id, $id]) { encounters(first: 20) { nodes { notes } } } }""",
}


@pytest.mark.parametrize("executed", [False, True], ids=["by plan", "by executor"])
@pytest.mark.parametrize("query", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_query_with_a_too_large_answer_is_refused_as_a_whole(
    limited: Service, long_notes: tuple[str, list[str]], query: str, executed: bool
) -> None:
    patient_id, (encounter_id, *_) = long_notes
    if executed:
        query = query[:-1] + f'other: encounter(id: "{encounter_id}") {{ {EXECUTED} }} }}'
    ask = json.dumps({"query": query, "variables": {"id": patient_id}})

    newer, older = [
        await limited.rest("POST", "/graphql", content=ask, headers=headers)
        for headers in (RESPONSE, {"content-type": "application/json"})
    ]

    assert (newer.status_code, older.status_code) == (400, 200)
    assert refusal(newer.json())["recorded"] == refusal(older.json())["recorded"] == "no"


@pytest.mark.parametrize("executed", ["", EXECUTED], ids=["by plan", "by executor"])
async def test_smaller_pages_or_fewer_fields_are_served(
    limited: Service, long_notes: tuple[str, list[str]], executed: str
) -> None:
    small = f"query ($id: ID!) {{ patient(id: $id) {{ encounters(first: 40) {{ nodes {{ notes {executed} }} }} }} }}"
    few = "query ($id: ID!) { patient(id: $id) { encounters(first: 100) { nodes { id } } } }"

    for query, found in ((small, 40), (few, 100)):
        body = await limited.graphql(query, {"id": long_notes[0]})
        assert len(body["data"]["patient"]["encounters"]["nodes"]) == found


async def test_the_limit_holds_for_many_encounters_by_id(limited: Service, long_notes: tuple[str, list[str]]) -> None:
    ids = long_notes[1]
    roots = " ".join(
        f'e{number}: encounter(id: "{each}") {{ notes {EXECUTED} }}' for number, each in enumerate(ids[:50])
    )
    representations = [{"__typename": "Encounter", "id": each} for each in ids]
    query = "query ($of: [_Any!]!) { _entities(representations: $of) { ... on Encounter { notes } } }"

    assert refusal(await limited.graphql(f"{{ {roots} }}"))["recorded"] == "no"
    assert refusal(await limited.graphql(query, {"of": representations}))["recorded"] == "no"
    assert len((await limited.graphql(query, {"of": representations[:40]}))["data"]["_entities"]) == 40


async def test_the_limit_holds_for_errors_with_long_paths(limited: Service, cast: Cast) -> None:
    query = (
        f"query ($ids: [ID!]!) {{ patients(ids: $ids) {{ {'a' * 15_000}: encounters(first: 101) {{ totalCount }} }} }}"
    )
    ids = [await cast.patient() for _ in range(90)]

    refusal(await limited.graphql(query, {"ids": ids}))
    few = await limited.graphql(query, {"ids": ids[:10]})

    assert few["data"]["patients"] == [None] * 10
    assert len(few["errors"]) == 10


async def test_the_limit_holds_for_a_history(limited: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    (encounter_id,) = await insert_visits(cast.connection, patient_id, 1, 1)
    await cast.connection.execute(
        "INSERT INTO patient_graph.encounter_versions (patient_id, encounter_id, version, brand_id, kind, changed_at,"
        " actor_type, actor_id, request_id, changes) SELECT $1, $2::text::uuid, version, 'loop', 'amended', now(),"
        " 'user', 'somebody', 'some-request',"
        " jsonb_build_object('notes', jsonb_build_object('before', repeat('x', 20000), 'after', 'y'))"
        " FROM generate_series(1, 80) version",
        patient_id,
        encounter_id,
    )
    query = "query ($id: ID!, $first: Int) { encounter(id: $id) { history(first: $first) { changes { before } } } }"

    assert refusal(await limited.graphql(query, {"id": encounter_id}))["recorded"] == "no"
    shown = await limited.graphql(query, {"id": encounter_id, "first": 40})
    assert len(shown["data"]["encounter"]["history"]) == 40


# Recordings


RECORD_AND_REPEAT = """mutation ($id: ID!, $key: String, $notes: String) {
  recordEncounter(patientId: $id, input: {brandId: "loop", encounterType: LAB, notes: $notes}, idempotencyKey: $key) {
    ... on EncounterRecorded { encounter { id %s } }
  }
}"""


@pytest.mark.parametrize("executed", ["", EXECUTED], ids=["by plan", "by executor"])
async def test_a_recording_with_a_too_large_answer_reports_recorded_unknown(
    limited: Service, cast: Cast, executed: str
) -> None:
    patient_id, key = await cast.patient(), str(uuid4())
    variables = {"id": patient_id, "key": key, "notes": "x" * 40_000}

    body = await limited.graphql(RECORD_AND_REPEAT % f"{ALIASED} {executed}", variables)

    assert {each["extensions"]["recorded"] for each in body["errors"]} == {"unknown"}
    assert {each["extensions"]["violations"][0]["rule"] for each in body["errors"]} == {"answer_bytes"}
    assert await cast.count("encounters", patient_id) == 1
    asked = await limited.graphql("query ($key: String!) { submission(key: $key) { state } }", {"key": key})
    assert asked["data"]["submission"]["state"] == "RECORDED"


async def test_the_limit_holds_below_a_recording_which_is_still_returned(
    limited: Service, cast: Cast, long_notes: tuple[str, list[str]]
) -> None:
    query = """mutation ($id: ID!) {
      recordEncounter(patientId: $id, input: {brandId: "loop", encounterType: LAB}) {
        ... on EncounterRecorded { encounter { id } possibleDuplicates { id notes } }
      }
    }"""
    many = """mutation ($of: [RecordEncountersItem!]!) { recordEncounters(input: $of) { results {
      ... on EncounterRecorded { encounter { id } possibleDuplicates { id notes } } } } }"""
    patient_id = await cast.patient()
    await insert_visits(cast.connection, patient_id, 10, 50_000)
    item = {"patientId": patient_id, "input": {"brandId": "loop", "encounterType": "LAB"}}

    alone = await limited.graphql(query, {"id": patient_id})
    together = await limited.graphql(many, {"of": [item] * 3})

    assert len(alone["data"]["recordEncounter"]["possibleDuplicates"]) == 10
    results = together["data"]["recordEncounters"]["results"]
    assert all(each["encounter"]["id"] for each in results)
    assert [each["possibleDuplicates"] for each in results] == [None] * 3
    assert {each["extensions"]["violations"][0]["rule"] for each in together["errors"]} == {"answer_bytes"}
    assert {each["extensions"]["recorded"] for each in together["errors"]} == {"unknown"}


# Batches, WebSockets and streams


async def test_the_operations_of_a_batch_share_one_limit(limited: Service, long_notes: tuple[str, list[str]]) -> None:
    query = "query ($id: ID!) { patient(id: $id) { encounters(first: 20) { nodes { notes } } } }"
    operation = {"query": query, "variables": {"id": long_notes[0]}}

    small = {"query": "{ __typename }"}

    answer = await limited.rest("POST", "/graphql", json=[*[operation] * 4, small])

    first, second, *others, last = answer.json()
    assert all("errors" not in body for body in (first, second, last))
    assert {refusal(body)["recorded"] for body in others} == {"no"}


PAGE = "query ($id: ID!, $first: Int) { patient(id: $id) { encounters(first: $first) { nodes { notes } } } }"
FOLLOW = """subscription ($id: ID!) { encounterEvents(patientId: $id) {
  cursor encounter { id patient { encounters(first: 100) { nodes { notes } } } } } }"""


@pytest.fixture(scope="module")
async def sockets(database_url: str) -> AsyncIterator[GatewayServer]:
    async with GatewayServer.serving(settings_with_limit(database_url)) as serving:
        yield serving


async def test_on_a_websocket_the_limit_holds_for_each_operation(
    sockets: GatewayServer, long_notes: tuple[str, list[str]]
) -> None:
    async with sockets.authenticated(max_size=None) as websocket:
        refused = await websocket.refusal(PAGE, id=long_notes[0], first=100)
        shown = [await websocket.ask(PAGE, id=long_notes[0], first=40) for _ in range(3)]

    assert refused["violations"][0]["rule"] == "answer_bytes"
    assert [len(body["data"]["patient"]["encounters"]["nodes"]) for body in shown] == [40] * 3


async def record(sockets: GatewayServer, patient_id: str) -> None:
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{sockets.port}", trust_env=False) as client:
        path, visit = f"/v1/patients/{patient_id}/encounters", {"brand_id": "loop", "encounter_type": "lab"}
        answer = await client.post(path, json=visit, headers={"authorization": "Bearer dev"})
    assert answer.status_code == 201


async def test_in_a_subscription_the_limit_holds_for_each_event(sockets: GatewayServer, cast: Cast) -> None:
    patient_id = await cast.patient()
    origin = f"http://127.0.0.1:{sockets.port}"

    async with (
        sockets.authenticated(max_size=None) as websocket,
        open_stream(origin, FOLLOW, id=patient_id) as stream,
    ):
        await websocket.start("events", FOLLOW, id=patient_id)
        for notes in (40, 30, 0):
            # The second event is over the limit; the third is within it again.
            await insert_visits(cast.connection, patient_id, notes)
            if notes == 0:
                await cast.connection.execute(
                    "UPDATE patient_graph.encounters SET notes = NULL WHERE patient_id = $1", patient_id
                )
            await record(sockets, patient_id)
            over_socket = await websocket.next("events")
            over_stream = await stream.receive()
            if notes == 30:
                assert refusal(over_socket)["recorded"] == refusal(over_stream.body)["recorded"] == "no"
            else:
                nodes = over_socket["data"]["encounterEvents"]["encounter"]["patient"]["encounters"]["nodes"]
                assert len(nodes) >= 41
                assert over_stream.body == over_socket
            assert over_stream.id
    assert over_stream != COMPLETE


# Repeated ids


async def test_a_repeated_id_is_read_and_priced_once_and_returned_each_time(
    limited: Service, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    (patient_id, other) = await cast.patients(2)
    ids = [patient_id, other, *[patient_id] * 98]
    rows: list[int] = []
    original = PoolConnection.fetch

    async def counted(self, statement, **values):
        found = await original(self, statement, **values)
        rows.append(len(found))
        return found

    monkeypatch.setattr(PoolConnection, "fetch", counted)
    for below, versions in (("", 0), (EXECUTED, 100)):
        query = f"query ($ids: [ID!]!) {{ patients(ids: $ids) {{ id encounters {{ nodes {{ id {below} }} }} }} }}"
        ask = {"query": query, "variables": {"ids": ids}, "extensions": {"cost": True}}
        rows.clear()

        body = (await limited.rest("POST", "/graphql", json=ask)).json()

        assert body["extensions"]["cost"]["requested"] == 2 * (1 + 20 * (2 + versions))
        shown = body["data"]["patients"]
        assert [each["id"] for each in shown] == ids
        assert all(each == shown[0] for each in shown[2:])
        assert sum(rows) <= 2 + 2 * 5 * 2


async def test_repeated_representations_are_read_and_priced_once(limited: Service, cast: Cast) -> None:
    (patient_id, other) = await cast.patients(2)
    of = [
        {"__typename": "Patient", "id": each} for each in (patient_id, other, *[patient_id] * 1_500, "nobody", "nobody")
    ]
    query = """query ($of: [_Any!]!) { _entities(representations: $of) {
      ... on Patient { id encounters(first: 100) { nodes { id } } } } }"""

    body = (
        await limited.rest(
            "POST", "/graphql", json={"query": query, "variables": {"of": of}, "extensions": {"cost": True}}
        )
    ).json()

    assert body["extensions"]["cost"]["requested"] == 3 * (1 + 100 * 2)
    shown = body["data"]["_entities"]
    assert [each and each["id"] for each in shown] == [patient_id, other, *[patient_id] * 1_500, None, None]
    assert all(each == shown[0] for each in shown[2:-2])


async def test_a_repeated_result_counts_each_time_towards_the_limit(
    limited: Service, long_notes: tuple[str, list[str]]
) -> None:
    query = f"""query ($ids: [ID!]!) {{
      patients(ids: $ids) {{ encounters(first: 10) {{ nodes {{ notes {EXECUTED} }} }} }} }}"""

    shown = await limited.graphql(query, {"ids": [long_notes[0]] * 4})
    refused = await limited.graphql(query, {"ids": [long_notes[0]] * 6})

    assert len(shown["data"]["patients"]) == 4
    assert refusal(refused)["recorded"] == "no"


# History


async def test_a_history_has_pages_of_up_to_a_hundred_versions(limited: Service, cast: Cast) -> None:
    patient_id = await cast.patient()
    (encounter_id,) = await insert_visits(cast.connection, patient_id, 1, 1)
    await cast.connection.execute(
        "INSERT INTO patient_graph.encounter_versions (patient_id, encounter_id, version, brand_id, kind, changed_at,"
        " actor_type, actor_id, request_id, changes)"
        " SELECT $1, $2::text::uuid, version, 'loop', 'amended', now(), 'user', 'somebody', 'some-request', '{}'"
        " FROM generate_series(1, 230) version",
        patient_id,
        encounter_id,
    )
    query = """query ($id: ID!, $first: Int, $after: Int) {
      encounter(id: $id) { history(first: $first, after: $after) { version } } }"""

    async def versions(**asked: int | None) -> list[int]:
        body = await limited.graphql(query, {"id": encounter_id, **asked})
        return [each["version"] for each in body["data"]["encounter"]["history"]]

    assert await versions() == list(range(1, 101))
    assert await versions(after=100) == list(range(101, 201))
    assert await versions(after=200) == list(range(201, 231))
    assert await versions(first=3, after=None) == [1, 2, 3]
    assert await versions(first=0) == []


@pytest.mark.parametrize("argument", ["first: 101", "first: -1", "after: -1"])
async def test_an_invalid_page_of_a_history_is_refused(
    limited: Service, long_notes: tuple[str, list[str]], argument: str
) -> None:
    query = f"query ($id: ID!) {{ encounter(id: $id) {{ history({argument}) {{ version }} }} }}"

    body = await limited.graphql(query, {"id": long_notes[1][0]})

    (violation,) = body["errors"][0]["extensions"]["violations"]
    assert (violation["rule"], violation["minimum"]) == ("page_size", 0)


@pytest.mark.parametrize(
    ("argument", "versions"), [("", 100), ("(first: 7)", 7), ("(first: $n)", 9), ("(first: -1)", 0)]
)
async def test_the_cost_of_a_history_grows_with_its_page_size(limited: Service, argument: str, versions: int) -> None:
    defined = "($n: Int = 9)" if "$n" in argument else ""
    query = f"""query {defined} {{ patient(id: "nobody") {{ encounters(first: 2) {{
      nodes {{ history{argument} {{ changes {{ member }} }} }} }} }} }}"""

    body = await limited.rest("POST", "/graphql", json={"query": query, "extensions": {"cost": True}})

    assert body.json()["extensions"]["cost"]["requested"] == 1 + 2 * (2 + versions * 2)


# Memory of all answers


MEMORY = 8 * LIMIT
"""Bytes; more than the kernel buffers of an unread answer."""


@pytest.fixture(scope="module")
async def with_little_memory(database_url: str) -> AsyncIterator[GatewayServer]:
    """A gateway with memory for one large answer."""
    settings = settings_with_limit(database_url, max_answer_bytes=MEMORY, answer_memory_bytes=MEMORY)
    async with GatewayServer.serving(settings) as serving:
        yield serving


@pytest.fixture(scope="module")
async def longer_notes(database_url: str) -> str:
    """A patient whose page is nearly as large as that memory."""
    connection = await asyncpg.connect(database_url)
    patient_id = await Cast(connection).patient()
    await insert_visits(connection, patient_id, 100, 75_000)
    await connection.close()
    return patient_id


def page_request(patient_id: str, accept: str = "*/*") -> bytes:
    body = json.dumps({"query": PAGE, "variables": {"id": patient_id, "first": 100}}).encode()
    head = f"Accept: {accept}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return request_head("POST /graphql", head) + body


def request_head(line: str, *fields: str) -> bytes:
    always = ["Host: 127.0.0.1", "Authorization: Bearer dev"]
    return "\r\n".join([f"{line} HTTP/1.1", *always, *fields, "", ""]).encode()


def stream_request(patient_id: str) -> bytes:
    return page_request(patient_id, "text/event-stream")


def list_request(patient_id: str) -> bytes:
    return request_head(f"GET /v1/patients/{patient_id}/encounters?limit=100")


def socket_request(patient_id: str) -> bytes:
    """Return an upgrade followed by `connection_init` and an operation."""
    upgrade = request_head(
        "GET /graphql",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: graphql-transport-ws",
    )
    payload = {"query": PAGE, "variables": {"id": patient_id, "first": 100}}
    messages: list[dict[str, Any]] = [
        {"type": "connection_init"},
        {"type": "subscribe", "id": "one", "payload": payload},
    ]
    return upgrade + b"".join(masked_frame(each) for each in messages)


def masked_frame(message: dict[str, Any]) -> bytes:
    body = json.dumps(message).encode()
    return b"\x81\xfe" + len(body).to_bytes(2, "big") + bytes(4) + body


@pytest.mark.parametrize("request_of", [list_request, page_request, stream_request, socket_request])
@pytest.mark.parametrize("ends", ["read", "closed"])
async def test_an_unread_answer_uses_memory_until_it_is_read_or_closed(
    with_little_memory: GatewayServer, longer_notes: str, request_of: Callable[[str], bytes], ends: str
) -> None:
    origin, path = f"http://127.0.0.1:{with_little_memory.port}", f"/v1/patients/{longer_notes}/encounters"
    ask = {"query": PAGE, "variables": {"id": longer_notes, "first": 100}}
    async with (
        unread(with_little_memory.port, request_of(longer_notes)) as (reader, writer),
        httpx2.AsyncClient(base_url=origin, headers={"authorization": "Bearer dev"}, trust_env=False) as client,
    ):

        async def status() -> int:
            return (await client.get(path, params={"limit": 100})).status_code

        await wait_until(lambda: _equals(status(), 503))
        refused = [await client.get(path, params={"limit": 100}), await client.post("/graphql", json=ask)]
        async with with_little_memory.authenticated(max_size=None) as websocket:
            refused_over_socket = await websocket.refusal(PAGE, id=longer_notes, first=100)
        small = await client.get(path, params={"limit": 1})
        if ends == "read":
            await reader.readexactly(7_500_000)
        else:
            writer.close()
        await wait_until(lambda: _equals(status(), 200))

    assert [each.status_code for each in refused] == [503, 503]
    assert [each.headers["retry-after"] for each in refused] == ["1", "1"]
    assert refused[0].json()["recorded"] == refused[1].json()["errors"][0]["extensions"]["recorded"] == "no"
    assert (refused_over_socket["code"], refused_over_socket["recorded"]) == ("temporarily_unavailable", "no")
    assert small.status_code == 200


async def _equals(one: Awaitable[int], other: int) -> bool:
    return await one == other


@asynccontextmanager
async def unread(port: int, request: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send a request and read the beginning of its answer; only the test reads further."""
    with socket.socket() as connection:
        # A small receive buffer, so that the gateway holds the answer, not the kernel.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
        # Frames come after the upgrade.
        head, end, frames = request.partition(b"\r\n\r\n\x81")
        writer.write(head + end[:4])
        assert (await reader.readline()).split()[1] in {b"200", b"101"}
        writer.write(end[4:] + frames)
        if frames:
            await reader.readuntil(b'"connection_ack"')
        # The answer has begun.
        await reader.readexactly(600)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_no_answer_memory_stays_reserved(
    database_url: str, long_notes: tuple[str, list[str]], cast: Cast
) -> None:
    patient_id = long_notes[0]
    async with Service.running(settings_with_limit(database_url, batch_operations=5, federation=True)) as service:
        ask = {"query": PAGE, "variables": {"id": patient_id, "first": 20}}
        executed = ask | {"query": PAGE.replace("notes", f"notes {EXECUTED}")}
        for sent in (ask, executed, [ask, executed], {**ask, "variables": {"id": patient_id, "first": 100}}):
            await service.rest("POST", "/graphql", json=sent)
        for limit in (20, 100):
            await service.rest("GET", f"/v1/patients/{patient_id}/encounters", params={"limit": limit})
        variables = {"id": patient_id, "key": None, "notes": "x" * 40_000}
        other = await cast.patient()
        for members in (ALIASED, f"notes {EXECUTED}"):
            await service.graphql(RECORD_AND_REPEAT % members, variables | {"id": other})

        assert service.services.answers.reserved_bytes == 0


# PostgreSQL


async def test_a_statement_is_cancelled_when_its_rows_exceed_the_limit(database_url: str) -> None:
    database = await Database.connect(database_url, role=APP_ROLE, size=1, acquire_seconds=5, statement_seconds=30)
    # Ten gigabytes and nearly a minute if it ran to its end.
    endless = Statement("SELECT repeat('x', 1000000)::bpchar, pg_sleep(0.005) FROM generate_series(1, 10000)")

    async with asyncio.timeout(10):
        with pytest.raises(AnswerTooLarge):
            async with database.connection("loop") as connection:
                await connection.fetch_at_most(3_000_000, endless)
        async with database.connection("loop") as connection:
            (row,) = await connection.fetch_at_most(10, Statement("SELECT 'x'::bpchar AS one"))
    await database.close()

    assert row["one"] == b"x"


async def test_callers_that_share_a_statement_have_separate_limits(
    limited: Service, cast: Cast, long_notes: tuple[str, list[str]]
) -> None:
    patients = [await cast.patient() for _ in range(8)]
    for patient_id in patients:
        await insert_visits(cast.connection, patient_id, 20)

    answers = await asyncio.gather(
        *(limited.graphql(PAGE, {"id": each, "first": 100}) for each in [*patients, long_notes[0]]),
        *(limited.rest("GET", f"/v1/patients/{each}/encounters", params={"limit": 100}) for each in patients),
    )

    assert all(len(body["data"]["patient"]["encounters"]["nodes"]) == 20 for body in answers[:8])
    refusal(answers[8])
    assert [len(each.json()["encounters"]) for each in answers[9:]] == [20] * 8


@pytest.mark.parametrize("query", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_postgresql_builds_no_row_larger_than_the_limit(
    limited: Service, long_notes: tuple[str, list[str]], query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    original = PoolConnection.fetch

    async def measured(self, statement, **values):
        found = await original(self, statement, **values)
        rows.extend(sum(len(each) for each in row if isinstance(each, bytes)) for row in found)
        return found

    monkeypatch.setattr(PoolConnection, "fetch", measured)

    refusal(await limited.graphql(query, {"id": long_notes[0]}))

    assert max(rows, default=0) <= 2 * LIMIT
