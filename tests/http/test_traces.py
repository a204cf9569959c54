"""Traces: spans of requests, operations, statements and deliveries, and what they may contain."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from gateway import settings as settings_module
from gateway.events.delivery import envelope
from gateway.observability import opentelemetry, traces
from gateway.settings import Settings, SettingsError
from resolvers.outbox import Event
from tests.conftest import GENEROUS_LIMITS, fresh_database
from tests.doors import GraphQLDoor, RestDoor, Service
from tests.event_helpers import rows
from tests.gateways import DEV, PATH, ROOT, VISIT, client, gateways
from tests.otlp_collector import Collector, Span
from tests.waiting import wait_until
from tests.webhook_receiver import ReceiverServer
from tests.websocket_client import GatewayServer, connect_to

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
INTERNAL, SERVER, CLIENT, PRODUCER = 1, 2, 3, 4
RECORD_ROUTE = "POST /v1/patients/{patient_id}/encounters"

RECORD = """mutation ($id: ID!, $input: RecordEncounterInput!) {
  recordEncounter(patientId: $id, input: $input) { __typename } }"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector.running() as running:
        yield running


@asynccontextmanager
async def traced(database_url: str, collector: Collector, **settings: Any) -> AsyncIterator[Service]:
    """Run a service with traces. The collector has every span after the block, because the end flushes the queue."""
    given = {"otlp_endpoint": collector.url, **GENEROUS_LIMITS, **settings}
    async with Service.running(Settings(database_url=database_url, **given)) as service:
        yield service


async def new_patient(url: str) -> str:
    patient_id = f"patient-{uuid4().hex}"
    await rows(url, "INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')", patient_id)
    return patient_id


def only_child(collector: Collector, parent: Span) -> Span:
    (child,) = collector.below(parent)
    return child


async def test_a_rest_request_continues_the_callers_trace_down_to_the_statement(
    database_url: str, collector: Collector
) -> None:
    patient_id = await new_patient(database_url)
    async with traced(database_url, collector) as service:
        answer = await service.rest(
            "POST", f"/v1/patients/{patient_id}/encounters", json=VISIT,
            headers={"traceparent": TRACEPARENT, "x-request-id": "the-request"},
        )  # fmt: skip

    assert answer.status_code == 201
    request = collector.one(RECORD_ROUTE)
    assert (request.kind, request.trace_id, request.parent_id, request.failed) == (SERVER, TRACE, CALLER, False)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/patients/{patient_id}/encounters",
        "http.response.status_code": 201,
        "gateway.request_id": "the-request",
    }
    statements = collector.below(request)
    assert {(each.kind, each.trace_id) for each in statements} == {(CLIENT, TRACE)}
    summaries = " ".join(each.name for each in statements)
    assert "INSERT encounters" in summaries
    assert "INSERT outbox" in summaries
    assert {each.attributes["db.system.name"] for each in statements} == {"postgresql"}
    assert collector.resource["service.name"] == "encounter-gateway"


async def test_a_graphql_operation_is_between_its_request_and_its_statements(
    database_url: str, collector: Collector
) -> None:
    patient_id = await new_patient(database_url)
    async with traced(database_url, collector) as service:
        await GraphQLDoor(service).record(patient_id, VISIT)
        await service.graphql(f'query OfJohn {{ John: patient(id: "{patient_id}") {{ encounters {{ totalCount }} }} }}')

    mutation, query = collector.one("mutation"), collector.one("query")
    for operation in (mutation, query):
        (request,) = [span for span in collector.spans if span.span_id == operation.parent_id]
        assert (request.name, request.kind, operation.kind) == ("POST /graphql", SERVER, INTERNAL)
        assert collector.below(operation)
        assert {each.kind for each in collector.below(operation)} == {CLIENT}
        assert operation.trace_id == request.trace_id
    # The name and the aliases of a client's document are free text.
    assert query.attributes == {"graphql.operation.type": "query"}
    assert "John" not in "".join(span.text for span in collector.spans)
    assert patient_id not in "".join(span.text for span in collector.spans)


async def test_the_operation_of_a_trusted_document_has_its_name(
    database_url: str, collector: Collector, tmp_path: Any
) -> None:
    document = "query Greeting { __typename }"
    (tmp_path / "documents.json").write_text(json.dumps({"greeting": document}))
    async with traced(database_url, collector, documents=tmp_path / "documents.json") as service:
        await service.graphql(document)

    operation = collector.one("query Greeting")
    assert operation.attributes["graphql.operation.name"] == "Greeting"


async def test_an_error_is_a_code_and_only_a_fault_is_a_failure(database_url: str, collector: Collector) -> None:
    async with traced(database_url, collector) as service:
        await service.graphql("{ secret_name }")
        await service.graphql('{ patient(id: "x") { encounters(first: 1000) { nodes { id } } } }')
        await service.rest("GET", "/v1/patients/secret_name/nothing")
        await service.rest("POST", "/graphql", content=b'{"query": ')

    invalid = collector.one("invalid")
    assert invalid.attributes == {"error.type": "validation_error"}
    assert [span.failed for span in collector.spans] == [False] * len(collector.spans)
    assert "secret_name" not in "".join(span.text for span in collector.spans)


async def test_a_failed_statement_has_the_class_of_the_error_and_no_message(
    database_url: str, collector: Collector
) -> None:
    async with traced(database_url, collector, database_cluster=True) as service:
        constraint = f"no_{uuid4().hex}"
        table = "ALTER TABLE patient_graph.encounters"
        await rows(
            database_url, f"{table} ADD CONSTRAINT {constraint} CHECK (notes IS DISTINCT FROM 'a cough') NOT VALID"
        )
        try:
            patient_id = await new_patient(database_url)
            await service.rest("POST", f"/v1/patients/{patient_id}/encounters", json=VISIT | {"notes": "a cough"})
        finally:
            await rows(database_url, f"{table} DROP CONSTRAINT {constraint}")

    (statement,) = [span for span in collector.spans if span.failed and span.kind == CLIENT]
    request = collector.one(RECORD_ROUTE)
    assert statement.attributes["error.type"] == "CheckViolationError"
    assert request.failed
    assert request.attributes["http.response.status_code"] == 500
    assert "cough" not in "".join(span.text for span in collector.spans)


@pytest.mark.parametrize(
    "sent",
    ["", "hunter2", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{CALLER}-01",
     TRACEPARENT.upper() + "-more", TRACEPARENT + "-more"],
)  # fmt: skip
async def test_an_invalid_traceparent_begins_a_new_trace(database_url: str, collector: Collector, sent: str) -> None:
    async with traced(database_url, collector) as service:
        await service.rest("GET", "/v1/nothing", headers={"traceparent": sent, "tracestate": "vendor=hunter2"})

    (request,) = collector.named("GET")
    assert (request.parent_id, request.trace_id == TRACE) == ("", False)
    assert "hunter2" not in request.text


async def test_the_caller_decides_about_its_trace_and_the_ratio_about_others(
    database_url: str, collector: Collector
) -> None:
    async with traced(database_url, collector, trace_ratio=0) as service:
        await service.rest("GET", "/v1/nothing")
        await service.rest("GET", "/v1/nothing", headers={"traceparent": TRACEPARENT})
        await service.rest("GET", "/v1/nothing", headers={"traceparent": TRACEPARENT[:-1] + "0"})

    assert [span.parent_id for span in collector.spans] == [CALLER]


async def test_probes_and_scrapes_are_not_traced(database_url: str, collector: Collector) -> None:
    async with traced(database_url, collector) as service:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await service.rest("GET", path)).status_code == 200

    assert collector.spans == []


async def test_background_jobs_have_no_spans(server_url: str, collector: Collector) -> None:
    url = await fresh_database(server_url)
    async with traced(url, collector):

        async def relay_has_worked() -> bool:
            return bool(await rows(url, "SELECT FROM gateway.leases WHERE name = 'relay'"))

        await wait_until(relay_has_worked)

    assert collector.spans == []


@pytest.mark.parametrize("cluster", [False, True])
async def test_a_webhook_continues_the_trace_of_the_recording(
    server_url: str, collector: Collector, *, cluster: bool
) -> None:
    url = await fresh_database(server_url)
    patient_id = await new_patient(url)
    async with (
        ReceiverServer.running() as receiver,
        traced(url, collector, webhook_url=receiver.url, webhook_secret=SECRET, database_cluster=cluster) as service,
    ):

        async def sink_is_registered() -> bool:
            return bool(await rows(url, "SELECT FROM gateway.sinks"))

        await wait_until(sink_is_registered)
        headers = {"traceparent": TRACEPARENT}
        recorded = await service.rest("POST", f"/v1/patients/{patient_id}/encounters", json=VISIT, headers=headers)
        change = f'mutation {{ cancelEncounter(id: "{recorded.json()["id"]}", reason: "moved") {{ __typename }} }}'
        await service.graphql(change, headers=headers)
        await wait_until(lambda: len(receiver.taken) == 2)

    first, second = collector.named("delivery")
    assert {first.trace_id, second.trace_id} == {TRACE}
    assert (first.kind, first.parent_id) == (PRODUCER, collector.one(RECORD_ROUTE).span_id)
    assert second.parent_id == collector.one("mutation").span_id
    delivery = receiver.taken[0]
    assert delivery.headers["traceparent"] == f"00-{TRACE}-{first.span_id}-01"
    assert delivery.event["traceparent"] == f"00-{TRACE}-{first.parent_id}-01"
    assert delivery.headers.get("tracestate") is None
    assert first.attributes == {
        "messaging.system": "webhook",
        "messaging.operation.type": "send",
        "messaging.message.id": delivery.id,
        "gateway.sink": "webhook",
        "gateway.event_type": "patient_graph.encounter.recorded.v1",
    }
    assert patient_id not in "".join(span.text for span in collector.spans)


async def test_without_traces_an_event_has_none_and_a_delivery_sends_none(server_url: str) -> None:
    url = await fresh_database(server_url)
    async with (
        ReceiverServer.running() as receiver,
        Service.running(Settings(database_url=url, webhook_url=receiver.url, webhook_secret=SECRET)) as service,
    ):
        assert traces.active is None

        async def sink_is_registered() -> bool:
            return bool(await rows(url, "SELECT FROM gateway.sinks"))

        await wait_until(sink_is_registered)
        await RestDoor(service).record(await new_patient(url), VISIT)
        await wait_until(lambda: receiver.taken)

    assert "traceparent" not in receiver.taken[0].headers
    assert "traceparent" not in receiver.taken[0].event


def test_a_gateway_without_traces_passes_on_the_trace_of_an_event() -> None:
    values: dict[str, Any] = dict.fromkeys(Event.__slots__)
    values |= {"payload": '{"encounter_id": "x"}', "created_at": datetime.now(UTC)}
    stored, without = Event(**values | {"traceparent": TRACEPARENT}), Event(**values)

    assert traces.outgoing_headers(stored) == {"traceparent": TRACEPARENT}
    assert traces.outgoing_headers(without) == {}
    assert json.loads(envelope(stored, "/gateway"))["traceparent"] == TRACEPARENT
    assert "traceparent" not in json.loads(envelope(without, "/gateway"))


async def test_each_operation_on_a_websocket_begins_a_trace(server_url: str, collector: Collector) -> None:
    url = await fresh_database(server_url)
    patient_id = await new_patient(url)
    settings = Settings(database_url=url, otlp_endpoint=collector.url, **GENEROUS_LIMITS)
    async with (
        GatewayServer.serving(settings) as server,
        connect_to(f"http://127.0.0.1:{server.port}") as socket,
    ):
        await socket.authenticate()
        await socket.ask(f'{{ patient(id: "{patient_id}") {{ id }} }}')
        await socket.start("events", "subscription { encounterEvents { encounter { id } } }")
        await socket.send(type="ping")
        assert (await socket.receive())["type"] == "pong"
        await socket.start("record", RECORD, id=patient_id, input={"brandId": "loop", "encounterType": "LAB"})
        seen = set[tuple[str, str]]()
        while len(seen) < 3:
            message = await socket.receive()
            seen.add((message["type"], message["id"]))
        await socket.send(type="complete", id="events")

    query, mutation, subscription = (collector.one(name) for name in ("query", "mutation", "subscription"))
    assert {span.kind for span in (query, mutation, subscription)} == {SERVER}
    assert len({span.trace_id for span in (query, mutation, subscription)}) == 3
    assert subscription.attributes == {"graphql.operation.type": "subscription", "gateway.events": 1}
    assert {span.kind for span in collector.below(subscription)} == {CLIENT}


async def test_a_stream_of_events_is_a_span_below_its_request(server_url: str, collector: Collector) -> None:
    url = await fresh_database(server_url)
    settings = Settings(database_url=url, otlp_endpoint=collector.url, **GENEROUS_LIMITS)
    async with GatewayServer.serving(settings) as server, client() as http:
        body = {"query": "subscription { encounterEvents { encounter { id } } }"}
        headers = {**DEV, "accept": "text/event-stream"}
        async with http.stream(
            "POST", f"http://127.0.0.1:{server.port}/graphql", json=body, headers=headers
        ) as response:
            assert response.status_code == 200

    subscription, request = collector.one("subscription"), collector.one("POST /graphql")
    assert (subscription.parent_id, subscription.kind) == (request.span_id, INTERNAL)


@pytest.mark.one_server
async def test_a_statement_that_requests_share_is_in_the_trace_of_the_first(
    database_url: str, collector: Collector
) -> None:
    patients = [await new_patient(database_url) for _ in range(20)]
    async with traced(database_url, collector) as service:
        door = RestDoor(service)
        await asyncio.gather(*(door.record(patient_id, VISIT) for patient_id in patients))

    requests = {span.span_id: span for span in collector.named(RECORD_ROUTE)}
    inserts = [span for span in collector.spans if "INSERT encounters" in span.name]
    assert len(requests) == 20
    assert 0 < len(inserts) < 20
    # Each belongs to a different request, which was waiting for it.
    assert len({span.parent_id for span in inserts}) == len(inserts)
    assert all(span.trace_id == requests[span.parent_id].trace_id for span in inserts)


@pytest.mark.parametrize(("delay_seconds", "status"), [(0.0, 503), (30.0, 200)])
async def test_a_collector_that_fails_or_hangs_delays_no_request_and_no_shutdown(
    database_url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch, delay_seconds: float, status: int
) -> None:
    monkeypatch.setattr(opentelemetry, "EXPORT_SECONDS", 0.5)
    monkeypatch.setattr(opentelemetry, "FLUSH_SECONDS", 0.2)
    monkeypatch.setattr(opentelemetry, "MAX_QUEUED_SPANS", 600)
    processors: list[Any] = []

    class Watched(BatchSpanProcessor):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            processors.append(self)

    monkeypatch.setattr(opentelemetry, "BatchSpanProcessor", Watched)
    monkeypatch.setattr(collector, "delay_seconds", min(delay_seconds, 2.0))
    monkeypatch.setattr(collector, "status", status)
    async with traced(database_url, collector) as service:
        began = time.perf_counter()
        for _ in range(700):
            assert (await service.rest("GET", "/v1/nothing")).status_code == 404
        served_seconds = time.perf_counter() - began
        queued = len(processors[0]._batch_processor._queue)
        closing = time.perf_counter()
    closed_seconds = time.perf_counter() - closing

    assert served_seconds < 30
    assert 0 < queued <= 600
    assert closed_seconds < 10


async def test_log_lines_of_a_traced_request_have_the_trace_id(server_url: str, collector: Collector) -> None:
    url = await fresh_database(server_url)
    async with gateways(url, GATEWAY_OTLP_ENDPOINT=collector.url) as (gateway,):
        async with client() as http:
            await http.post(gateway.origin + PATH, json=VISIT, headers={**DEV, "traceparent": TRACEPARENT})
            await http.get(gateway.origin + "/healthz")
        assert gateway.stop() == 0
        lines = [json.loads(line) for line in gateway.errors().splitlines() if '"event":"request"' in line]

    assert {line.get("trace_id") for line in lines if line["method"] == "POST"} == {TRACE}
    assert {line.get("trace_id") for line in lines if line["route"] == "/healthz"} == {None}
    assert collector.one(RECORD_ROUTE).trace_id == TRACE  # sent during the shutdown


def test_without_an_endpoint_nothing_is_imported_or_wrapped() -> None:
    program = """
import sys
from gateway.app import create_app
from gateway.middleware.request_context import RequestContextMiddleware
from gateway.observability import traces
from gateway.settings import Settings
app = create_app(Settings())
assert app.user_middleware[0].cls is RequestContextMiddleware
assert traces.active is None
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)

    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_without_the_extra_the_endpoint_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setattr(settings_module, "traces_are_installed", lambda: False)

    with pytest.raises(SettingsError, match=r"GATEWAY_OTLP_ENDPOINT: .*encounter-gateway\[traces\]"):
        Settings.from_environment()


def test_an_unusable_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint in ("collector:4318", "http://me:hunter2@collector:4318", "http://collector:4318/?key=hunter2"):
        monkeypatch.setenv("GATEWAY_OTLP_ENDPOINT", endpoint)

        with pytest.raises(SettingsError, match="GATEWAY_OTLP_ENDPOINT") as refusal:
            Settings.from_environment()

        assert "hunter2" not in str(refusal.value)
