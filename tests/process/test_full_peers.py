"""The benchmark's full peers do what the gateway does: same requests, same answers, same rows in every table."""

import asyncio
import http.client
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from graphql import print_ast

from bench.benchmark import prepare
from bench.seed import BRAND, Population
from bench.servers import FULL_FASTIFY, FULL_MERCURIUS, GATEWAY, TOKENS, Kind, Server, claims_of, running, token_server
from bench.workloads import ALL, BOARD, RECORD
from gateway.database.roles import OWNER
from gateway.embedded_postgres.cluster import PrivatePostgres

pytestmark = pytest.mark.skipif(not FULL_MERCURIUS.installed, reason="the peers are not installed: make .venv/bench")

TOKEN = next(iter(TOKENS))
READER, SCRAPER, OF_A_PERSON = "token-of-a-reader", "token-of-a-scraper", "token-of-a-person"
OTHERS = {
    READER: {**claims_of("reader"), "scope": "read:encounters"},
    SCRAPER: {**claims_of("scraper"), "scope": "read:metrics"},
    OF_A_PERSON: {**claims_of("portal"), "sub": "maria"},
}
KINDS = (GATEWAY, FULL_FASTIFY, FULL_MERCURIUS)
PATIENT, LARGE = "written-0", "large-0"
LIST = f"/v1/patients/{LARGE}/encounters?limit=3"


@dataclass(frozen=True)
class Answer:
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str

    @property
    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Peers:
    """The gateway and its full peers, each with its own database."""

    servers: Mapping[Kind, Server]
    postgres: PrivatePostgres
    introspection_url: str
    logs: Path

    def send(
        self, kind: Kind, method: str, path: str, body: object = None, token: str | None = TOKEN, **headers: str
    ) -> Answer:
        """Send a request with a new request id. A body that is no text is sent as JSON."""
        return send(self.servers[kind], method, path, body, token, **headers)

    def rows(self, kind: Kind, statement: str, *values: object) -> list[dict[str, Any]]:
        """Return the rows of a statement on the server's database."""

        async def fetch() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(self.postgres.url(OWNER, kind.database))
            try:
                return [dict(row) for row in await connection.fetch(statement, *values)]
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def audited(self, kind: Kind, answer: Answer, number: int) -> list[dict[str, Any]]:
        """Return the audit entries of a request, once there are `number` of them; without ids and times."""
        statement = """
            SELECT patient_id, actor_type, actor_id, actor_brand_id, event_type, entity_type, entity_id, brand_id,
                details
            FROM patient_graph.audit_log WHERE request_id = $1 ORDER BY patient_id, event_type"""
        until = time.monotonic() + 20
        while len(found := self.rows(kind, statement, answer.request_id)) < number and time.monotonic() < until:
            time.sleep(0.1)
        return [{**row, "details": json.loads(row["details"])} for row in found]


def send(server: Server, method: str, path: str, body: object, token: str | None, **headers: str) -> Answer:
    """Send a request."""
    request_id = str(uuid4())
    head = {"Accept": "application/json", "X-Request-Id": request_id}
    if token:
        head["Authorization"] = f"Bearer {token}"
    if body is not None:
        head["Content-Type"] = "application/json"
    head |= {name.replace("_", "-"): value for name, value in headers.items()}
    text = body if isinstance(body, str | None) else json.dumps(body)
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    try:
        connection.request(method, path, text and text.encode(), head)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, response.read(), request_id)
    finally:
        connection.close()


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """All three servers, on few encounters."""
    logs = tmp_path_factory.mktemp("logs")
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("postgres")
        postgres = stack.enter_context(PrivatePostgres(folder, connections=150))
        asyncio.run(prepare(postgres, Population.share(0.01), KINDS))
        url = stack.enter_context(token_server(OTHERS))
        servers = {kind: stack.enter_context(running(kind, postgres, url, logs)) for kind in KINDS}
        yield Peers(servers, postgres, url, logs)


def body_of(**members: object) -> dict[str, object]:
    """Return the body of a recording."""
    return {"brand_id": BRAND, "encounter_type": "lab", **members}


FULL_BODY = """{"brand_id": "loop", "encounter_type": "lab", "provider_id": "3F2504E0-4F89-11D3-9A0C-0305E82C3301",
    "scheduled_at": "2026-12-01T10:30:00.1234567+01:00", "chief_complaint": "Sore throat",
    "notes": "Slept \\u00e9 well.",
    "metadata": {"b": 1.50, "a": [12345678901234567890, 1e3, true, null, "x"], "c": {}}}"""


def record(peers: Peers, kind: Kind, body: object, patient_id: str = PATIENT, **headers: str) -> Answer:
    """Record over REST."""
    return peers.send(kind, "POST", f"/v1/patients/{patient_id}/encounters", body, **headers)


def graphql(peers: Peers, kind: Kind, query: str, variables: Mapping[str, object], token: str | None = TOKEN) -> Answer:
    """Send a GraphQL request."""
    return peers.send(kind, "POST", "/graphql", {"query": query, "variables": variables}, token)


ROWS = {
    "encounters": "WHERE id = $1",
    "encounter_versions": "WHERE encounter_id = $1",
    "audit_log": "WHERE entity_id = $1::uuid::text",
    "outbox": "WHERE payload ->> 'encounter_id' = $1::uuid::text",
    "idempotency_keys": "WHERE encounter_id = $1",
}
DIFFER = {
    "id", "encounter_id", "entity_id", "request_id", "occurred_at", "created_at", "updated_at", "changed_at",
    "expires_at",
    # The relay of the gateway assigns these, and its peers have none.
    "position", "published_at",
    # The hash of the members in a form that each server chooses.
    "request_hash",
}  # fmt: skip


def rows_of(peers: Peers, kind: Kind, encounter_id: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a recording in each table, without what differs between any two recordings."""
    found = {}
    for table, where in ROWS.items():
        rows = peers.rows(kind, f"SELECT * FROM patient_graph.{table} {where}", encounter_id)
        found[table] = [{name: each for name, each in row.items() if name not in DIFFER} for row in rows]
        for row in found[table]:
            if "payload" in row:
                row["payload"] = json.loads(row["payload"]).keys()
            if "answer" in row:
                row["answer"] = _without_times(json.loads(row["answer"]))
    return found


def _without_times(encounter: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in encounter.items() if name not in DIFFER}


# Over REST


def test_a_recording_over_rest_writes_the_same_rows(peers: Peers) -> None:
    key = str(uuid4())
    found = {kind: record(peers, kind, FULL_BODY, Idempotency_Key=key) for kind in (GATEWAY, FULL_FASTIFY)}

    assert {answer.status for answer in found.values()} == {201}
    ours, theirs = (answer.json for answer in found.values())
    assert _without_times(ours) == _without_times(theirs)
    assert ours.keys() == theirs.keys()
    assert b"12345678901234567890" in found[FULL_FASTIFY].body
    assert b"1.50" in found[FULL_FASTIFY].body
    assert _names(found[FULL_FASTIFY]) == _names(found[GATEWAY])
    rows = {kind: rows_of(peers, kind, answer.json["id"]) for kind, answer in found.items()}
    assert rows[FULL_FASTIFY] == rows[GATEWAY]
    assert all(len(each) == 1 for each in rows[GATEWAY].values())


def test_a_replay_over_rest_repeats_the_answer_and_records_nothing(peers: Peers) -> None:
    key = str(uuid4())
    for kind in (GATEWAY, FULL_FASTIFY):
        first, again = (record(peers, kind, FULL_BODY, Idempotency_Key=key) for _ in range(2))

        assert (again.status, again.body) == (201, first.body)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["etag"] == first.headers["etag"] == '"1"'
        assert again.headers["location"] == first.headers["location"]
        (read,) = peers.audited(kind, again, 1)
        assert (read["event_type"], read["patient_id"]) == ("patient_graph.encounters.read", PATIENT)

        other = record(peers, kind, body_of(), Idempotency_Key=key)
        assert (other.status, other.json["error"]) == (409, "idempotency_key_payload_mismatch")
        (count,) = peers.rows(kind, "SELECT count(*) FROM patient_graph.idempotency_keys WHERE key = $1", key)
        assert count["count"] == 1


REFUSED: Mapping[str, tuple[object, Mapping[str, Any]]] = {
    "no token": (body_of(), {"token": None}),
    "an unknown token": (body_of(), {"token": "nobody"}),
    "a token without the scope": (body_of(), {"token": READER}),
    "the scope before the body": ("{", {"token": READER}),
    "a contradicting header": (body_of(), {"X_Brand_Id": "loopbio"}),
    "another brand": (body_of(brand_id="loopbio"), {}),
    "another brand before the rules": (body_of(brand_id="loopbio", encounter_type=7), {}),
    "no JSON": ("{", {}),
    "no object": ("[]", {}),
    "a member twice": ('{"brand_id": "loop", "brand_id": "loop", "encounter_type": "lab"}', {}),
    "a nested member twice": ('{"brand_id": "loop", "encounter_type": "lab", "metadata": {"a": 1, "a": 1}}', {}),
    "another media type": (body_of(), {"Content_Type": "text/plain"}),
    "a long body": (body_of(notes="x" * 300_000), {}),
    "no members": ({}, {}),
    "wrong types": (
        {
            "brand_id": 7,
            "encounter_type": "visit",
            "provider_id": 7,
            "scheduled_at": 7,
            "chief_complaint": [1, 2],
            "notes": {"a": 1},
            "metadata": "x",
        },
        {},
    ),
    "nulls": (
        body_of(provider_id=None, scheduled_at=None, chief_complaint=None, notes=None, metadata=None),
        {},
    ),
    "wrong formats": (body_of(provider_id="7", scheduled_at="2026-02-30T00:00:00Z"), {}),
    "no offset": (body_of(scheduled_at="2026-12-01T09:30:00"), {}),
    "no brand": (body_of(brand_id=""), {}),
    "long texts": (body_of(chief_complaint="x" * 2_001, notes="x" * 50_001), {}),
    "texts that cannot be stored": (body_of(chief_complaint="a\0b", notes="\ud800", metadata={"a": "\0"}), {}),
    "large metadata": (body_of(metadata={"a": "x" * 65_536}), {}),
    "deep metadata": (
        '{"brand_id": "loop", "encounter_type": "lab", "metadata": ' + 33 * '{"a":' + "1" + 34 * "}",
        {},
    ),
    "a large number": ('{"brand_id": "loop", "encounter_type": "lab", "metadata": {"a": 1e200000}}', {}),
    "a body that is too deep": (100_000 * "[" + 100_000 * "]", {}),
    "no key": (body_of(), {"Idempotency_Key": "a b"}),
    "a problem": (body_of(encounter_type="visit"), {"Accept": "application/problem+json"}),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_rest_refuses_alike(peers: Peers, refused: str) -> None:
    body, headers = REFUSED[refused]
    found = {kind: record(peers, kind, body, **headers) for kind in (GATEWAY, FULL_FASTIFY)}

    assert found[GATEWAY].status >= 400
    assert _refusal(found[FULL_FASTIFY]) == _refusal(found[GATEWAY])
    assert _names(found[FULL_FASTIFY]) == _names(found[GATEWAY])
    number = 0 if found[GATEWAY].status == 401 else 1
    entries = {kind: peers.audited(kind, answer, number) for kind, answer in found.items()}
    assert entries[FULL_FASTIFY] == entries[GATEWAY]
    assert len(entries[GATEWAY]) == number


@pytest.mark.parametrize("patient_id", ["nobody", "x" * 201, "%00"])
def test_an_unknown_patient_is_refused_alike(peers: Peers, patient_id: str) -> None:
    for method, body in (("POST", body_of()), ("GET", None)):
        path = f"/v1/patients/{patient_id}/encounters"
        ours, theirs = (peers.send(kind, method, path, body) for kind in (GATEWAY, FULL_FASTIFY))

        assert ours.status == 404
        assert _refusal(theirs) == _refusal(ours)


def _refusal(answer: Answer) -> Mapping[str, Any]:
    """Return the parts of a refusal on which a program relies."""
    body = answer.json
    violations = {(each["pointer"], each["rule"], str(each.get("received"))) for each in body.get("violations", ())}
    return {
        "status": answer.status,
        "members": body.keys(),
        "code": body["error"],
        "recorded": body["recorded"],
        "violations": violations,
        "challenge": answer.headers.get("www-authenticate"),
        "type": answer.headers["content-type"].partition(";")[0],
        "has its id": body["request_id"] == answer.headers["x-request-id"] == answer.request_id,
    }


# What each HTTP library adds or leaves out by itself.
OF_THE_LIBRARY = {"date", "connection", "keep-alive", "content-length", "transfer-encoding", "etag"}


def _names(answer: Answer) -> set[str]:
    return answer.headers.keys() - OF_THE_LIBRARY


def test_a_list_over_rest_is_answered_and_audited_alike(peers: Peers) -> None:
    found = {kind: peers.send(kind, "GET", LIST) for kind in (GATEWAY, FULL_FASTIFY)}

    ours, theirs = (answer.json for answer in found.values())
    assert theirs == ours
    assert len(ours["encounters"]) == 3
    assert _names(found[FULL_FASTIFY]) == _names(found[GATEWAY])
    entries = {kind: peers.audited(kind, answer, 1) for kind, answer in found.items()}
    assert entries[FULL_FASTIFY] == entries[GATEWAY]
    assert entries[GATEWAY][0]["details"] == {"encounters": 3}
    for kind, answer in found.items():
        assert peers.send(kind, "GET", LIST, If_None_Match=answer.headers["etag"]).status == 304


def test_pages_over_rest_have_the_same_limits(peers: Peers) -> None:
    for query in ("limit=0", "limit=501", "limit=x", "offset=-1", "offset=9999", ""):
        path = f"/v1/patients/{LARGE}/encounters?{query}"
        ours, theirs = (peers.send(kind, "GET", path) for kind in (GATEWAY, FULL_FASTIFY))

        assert (theirs.status, theirs.json.keys()) == (ours.status, ours.json.keys())
        if ours.status == 200:
            assert theirs.json == ours.json


# Over GraphQL


def recorded_over_graphql(peers: Peers, kind: Kind, key: str | None, **members: object) -> Answer:
    """Record over GraphQL, as the benchmark does."""
    question = {"patientId": PATIENT, "input": {"brandId": BRAND, "encounterType": "lab", **members}}
    _, path, body = RECORD["gateway"](question)
    assert body is not None
    variables = {**body["variables"], "key": key}
    return peers.send(kind, "POST", path, {**body, "variables": variables if key else _without_key(variables)})


def _without_key(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in variables.items() if name != "key"}


def test_a_recording_over_graphql_writes_the_same_rows(peers: Peers) -> None:
    key = str(uuid4())
    members = {"scheduledAt": "2026-12-01T10:30:00Z", "notes": "Slept well.", "metadata": {"a": 1.5}}
    for expected in (False, True):
        found = {kind: recorded_over_graphql(peers, kind, key, **members) for kind in (GATEWAY, FULL_MERCURIUS)}
        outcomes = {kind: answer.json["data"]["recordEncounter"] for kind, answer in found.items()}
        for outcome in outcomes.values():
            assert outcome["__typename"] == "EncounterRecorded"
            assert outcome["replayed"] is expected
        rows = {kind: rows_of(peers, kind, outcome["encounter"]["id"]) for kind, outcome in outcomes.items()}
        assert rows[FULL_MERCURIUS] == rows[GATEWAY]
        assert all(len(each) == 1 for each in rows[GATEWAY].values())
        entries = {kind: peers.audited(kind, answer, 1) for kind, answer in found.items()}
        assert [[each["event_type"] for each in of] for of in entries.values()] == 2 * [
            ["patient_graph.encounters.read" if expected else "patient_graph.encounter.recorded"]
        ]


OUTCOME = """mutation ($patientId: ID!, $input: RecordEncounterInput!, $key: String) {
  recordEncounter(patientId: $patientId, input: $input, idempotencyKey: $key) { __typename
    ... on EncounterRecorded { encounter { status metadata } }
    ... on Problem { code recorded }
    ... on InvalidInput { violations { path rule allowed minimum maximum received { type length } } } } }"""
INPUT = {"brandId": BRAND, "encounterType": "LAB"}
REFUSED_INPUT: Mapping[str, tuple[Mapping[str, object], str | None]] = {
    "no token": ({}, None),
    "an unknown token": ({}, "nobody"),
    "no scope": ({}, READER),
    "an unknown patient": ({"patientId": "nobody"}, TOKEN),
    "another brand": ({"input": {**INPUT, "brandId": "loopbio"}}, TOKEN),
    "wrong formats": ({"input": {**INPUT, "notes": "\0", "chiefComplaint": 2_001 * "x"}}, TOKEN),
    "no key": ({"key": "a b"}, TOKEN),
    "no document": ({"input": {"brandId": 7}}, TOKEN),
}


@pytest.mark.parametrize("refused", REFUSED_INPUT)
def test_graphql_refuses_alike(peers: Peers, refused: str) -> None:
    given, token = REFUSED_INPUT[refused]
    variables = {"patientId": PATIENT, "input": INPUT, **given}
    found = {kind: graphql(peers, kind, OUTCOME, variables, token) for kind in (GATEWAY, FULL_MERCURIUS)}

    ours, theirs = (answer.json for answer in found.values())
    assert theirs.get("data") == ours.get("data")
    assert _codes(theirs) == _codes(ours)
    assert found[FULL_MERCURIUS].status == found[GATEWAY].status
    number = 0 if found[GATEWAY].status == 401 else 1
    entries = {kind: peers.audited(kind, answer, number) for kind, answer in found.items()}
    assert [each["event_type"] for each in entries[GATEWAY]] == number * ["patient_graph.request.refused"]
    if refused != "no document":
        assert entries[FULL_MERCURIUS] == entries[GATEWAY]


def _codes(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(each["extensions"]["code"], each["extensions"]["recorded"]) for each in body.get("errors", ())]


READS: Mapping[str, tuple[str, Mapping[str, object], Sequence[Mapping[str, object]]]] = {
    "a patient": (
        f"query ($id: ID!) {{ patient(id: $id) {{ id encounters(first: 3) {{ nodes {{ {ALL} }} }} }} }}",
        {"id": LARGE},
        [{"encounters": 3}],
    ),
    "an unknown patient": ('{ patient(id: "nobody") { id } }', {}, []),
    "several patients": (
        f"query ($ids: [ID!]!) {{ patients(ids: $ids) {{ id encounters(first: 2) {{ nodes {{ {ALL} }} }} }} }}",
        {"ids": ["small-0", "nobody", "small-1", "written-9"]},
        [{"encounters": 4, "patients": ["small-0", "small-1"]}],
    ),
    "an unknown encounter": (f'{{ encounter(id: "{uuid4()}") {{ id }} }}', {}, []),
    "a text that is no id": ('{ encounter(id: "x") { id } }', {}, []),
    "a page that is too long": ('{ patient(id: "small-0") { encounters(first: 501) { nodes { id } } } }', {}, []),
    "too many objects": (
        "query ($ids: [ID!]!) { patients(ids: $ids) { encounters(first: 500) { nodes { id } } } }",
        {"ids": [f"small-{number}" for number in range(60)]},
        [],
    ),
    "a field that does not exist": ("{ nothing }", {}, []),
    "no GraphQL": ("{", {}, []),
}


@pytest.mark.parametrize("read", READS)
def test_graphql_reads_alike(peers: Peers, read: str) -> None:
    query, variables, details = READS[read]
    for _ in range(2):  # the second time, the document is compiled
        found = {kind: graphql(peers, kind, query, variables) for kind in (GATEWAY, FULL_MERCURIUS)}

        ours, theirs = (answer.json for answer in found.values())
        assert theirs.get("data") == ours.get("data")
        assert _codes(theirs) == _codes(ours)
        assert found[FULL_MERCURIUS].status == found[GATEWAY].status
        assert _names(found[FULL_MERCURIUS]) == _names(found[GATEWAY])
        number = len(details) + bool(_codes(ours))
        entries = {kind: peers.audited(kind, answer, number) for kind, answer in found.items()}
        reads = {
            kind: [each for each in of if each["event_type"] == "patient_graph.encounters.read"]
            for kind, of in entries.items()
        }
        assert reads[FULL_MERCURIUS] == reads[GATEWAY]
        assert [each["details"] for each in reads[GATEWAY]] == details
        assert len(entries[FULL_MERCURIUS]) == len(entries[GATEWAY]) == number


YEAR = {"scheduledFrom": "2024-06-01T00:00:00Z", "scheduledUntil": "2025-06-01T00:00:00Z"}


def test_the_board_is_answered_and_audited_alike(peers: Peers) -> None:
    day, counts = (print_ast(BOARD[name]) for name in ("Day", "Counts"))
    for _ in range(2):
        shown = {kind: graphql(peers, kind, day, {"where": YEAR}) for kind in (GATEWAY, FULL_MERCURIUS)}
        ours, theirs = (answer.json["data"]["encounters"] for answer in shown.values())
        for opaque in ("feedCursor", "endCursor"):
            for connection in (ours, theirs):
                assert {**connection, **connection["pageInfo"]}[opaque]
        assert theirs["nodes"] == ours["nodes"]
        assert theirs["pageInfo"]["hasNextPage"] is ours["pageInfo"]["hasNextPage"] is True
        assert (theirs["totalCount"], theirs["totalCountIsExact"]) == (ours["totalCount"], ours["totalCountIsExact"])
        after = graphql(peers, FULL_MERCURIUS, day, {"where": YEAR, "after": theirs["pageInfo"]["endCursor"]})
        ids = [each["id"] for each in after.json["data"]["encounters"]["nodes"]]
        expected = graphql(peers, GATEWAY, day, {"where": YEAR, "after": ours["pageInfo"]["endCursor"]})
        assert ids == [each["id"] for each in expected.json["data"]["encounters"]["nodes"]]
        entries = {kind: peers.audited(kind, answer, 1) for kind, answer in shown.items()}
        for of in entries.values():
            (entry,) = of
            entry["details"]["patients"].sort()
        assert entries[FULL_MERCURIUS] == entries[GATEWAY]

        ours, theirs = (
            graphql(peers, kind, counts, {"tiles": YEAR, "day": YEAR}).json for kind in (GATEWAY, FULL_MERCURIUS)
        )
        assert theirs == ours
        assert ours["data"]["statuses"]


# Beside the answers


def test_requests_are_counted_for_each_client(peers: Peers, tmp_path: Path) -> None:
    record_ = ("POST", f"/v1/patients/{PATIENT}/encounters", body_of())
    document = {"query": '{ a: patient(id: "small-0") { id } b: patient(id: "small-0") { id } }'}
    for kind in KINDS:
        with running(kind, peers.postgres, peers.introspection_url, tmp_path, requests_per_minute=2) as server:
            if kind is not FULL_MERCURIUS:
                for method, path, body in (record_, ("GET", LIST, None)):
                    answers = [send(server, method, path, body, TOKEN) for _ in range(3)]
                    assert [each.status // 100 for each in answers] == [2, 2, 4]
                    assert [each.headers["x-ratelimit-remaining"] for each in answers] == ["1", "0", "0"]
                    for each in answers:
                        assert each.headers["ratelimit-policy"].endswith(";q=2;w=60")
                        assert int(each.headers["x-ratelimit-reset"]) > time.time() - 5
                    assert answers[2].status == 429
                    assert answers[2].json["error"] == "rate_limited"
                    assert 0 < answers[2].json["retry_after_ms"] <= 60_000
                    assert 0 < int(answers[2].headers["retry-after"]) <= 60
                    # Another client has a count of its own.
                    assert send(server, method, path, body, list(TOKENS)[1]).status < 300
            if kind is not FULL_FASTIFY:
                # Two root fields are two reads.
                token = list(TOKENS)[2]
                answers = [send(server, "POST", "/graphql", document, token) for _ in range(2)]
                assert [each.status for each in answers] == [200, 429]
                (error,) = answers[1].json["errors"]
                assert error["extensions"]["code"] == "rate_limited"
                assert error["extensions"]["retry_after_ms"] > 0


def test_requests_are_counted_in_the_metrics(peers: Peers) -> None:
    for kind in KINDS:
        assert peers.send(kind, "GET", "/metrics").status == 403
        first, then = (peers.send(kind, "GET", "/metrics", token=SCRAPER).body.decode() for _ in range(2))
        assert _total(then) == _total(first) + 1
        assert "gateway_request_seconds_bucket" in then
        assert "gateway_refusals_total" in then


def _total(metrics: str) -> float:
    lines = [line for line in metrics.splitlines() if line.startswith("gateway_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_every_request_has_one_log_line(peers: Peers) -> None:
    fields = {}
    for kind in KINDS:
        path, body = ("/graphql", {"query": "{ __typename }"}) if kind is FULL_MERCURIUS else (LIST, None)
        answer = peers.send(kind, "POST" if body else "GET", path, body, OF_A_PERSON)
        log = peers.logs / f"{kind.name}.log"
        lines: list[dict[str, Any]] = []
        until = time.monotonic() + 20
        while not lines and time.monotonic() < until:
            lines = [json.loads(line) for line in log.read_text().splitlines() if answer.request_id in line]
            time.sleep(0.1)
        (line,) = lines
        assert (line["client_id"], line["user_id"], line["brand_id"]) == ("portal", "maria", BRAND)
        assert line["status"] == 200
        assert "small" not in line["route"]
        fields[kind] = line.keys()
    assert fields[FULL_FASTIFY] == fields[FULL_MERCURIUS] == fields[GATEWAY]


def test_a_peer_logs_nothing_that_a_client_wrote(peers: Peers) -> None:
    record(peers, FULL_FASTIFY, body_of(notes="A cough", metadata={"a": "A cough"}, provider_id="A cough"))
    recorded_over_graphql(peers, FULL_MERCURIUS, None, notes="A cough", providerId="A cough")
    time.sleep(0.5)
    for kind in (FULL_FASTIFY, FULL_MERCURIUS):
        assert "A cough" not in (peers.logs / f"{kind.name}.log").read_text()


def test_a_peer_sees_the_rows_of_its_brand_only(peers: Peers) -> None:
    for kind in (FULL_FASTIFY, FULL_MERCURIUS):
        (role,) = peers.rows(
            kind, "SELECT rolbypassrls OR rolsuper AS is_free FROM pg_roles WHERE rolname = $1", kind.login
        )
        assert role["is_free"] is False
    statement = "INSERT INTO patient_graph.patients (id, brand_id) VALUES ('of-loopbio', 'loopbio')"
    for kind in KINDS:
        peers.rows(kind, statement)
    path = "/v1/patients/of-loopbio/encounters"
    assert {peers.send(kind, "GET", path).status for kind in (GATEWAY, FULL_FASTIFY)} == {404}
    found = graphql(peers, FULL_MERCURIUS, '{ patient(id: "of-loopbio") { id } }', {})
    assert found.json["data"] == {"patient": None}
