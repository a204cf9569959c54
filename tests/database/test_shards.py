"""On a cluster, what concerns one patient queries one shard. The operations that query every shard are listed here.

On one server, the statement text shows which statements name no patient. On a cluster, `EXPLAIN` shows the
number of shards of each.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from gateway.audit.chain_job import CHAIN_AUDIT, chaining
from gateway.database.database import PoolConnection
from gateway.database.session import Session
from gateway.erasing import erase
from gateway.events.delivery import DeliveryQueue
from gateway.events.status import event_numbers
from gateway.exporters.encounters import export_encounters
from gateway.exporters.patients import export_patients
from gateway.exporters.snapshot import Snapshot
from gateway.importers.encounters import import_encounters
from gateway.importers.patients import import_patients
from gateway.settings import Settings
from resolvers import relay
from resolvers.idempotency import prune_keys
from resolvers.outbox import Event
from resolvers.sql import Statement
from tests import citus
from tests.cast import Cast
from tests.conftest import GENEROUS_LIMITS, fresh_database
from tests.doors import Service
from tests.event_helpers import Gateway, cursor_v1, rows
from tests.waiting import wait_until

BODY = {"brand_id": "loop", "encounter_type": "lab"}

DISTRIBUTED = re.compile(r"(FROM|JOIN|UPDATE) patient_graph\.(?!idempotency_keys)")
"""Matches a statement that reads or changes a distributed table; an insertion names the patient."""

DISTRIBUTION_COLUMN = re.compile(r"(patient_id|patients\.id|\bp\.id) = (\$|ANY)")
"""Matches a statement that names the patient."""


class Operation(NamedTuple):
    """A request for one patient who has one encounter, and the number of its statements that query every shard."""

    request: str
    """A GraphQL document with the variables `$patient`, `$encounter` and `$key`, or a method and the end of a path."""
    fan_outs: int = 0


PAGE = "encounters(first: 10) { totalCount edges { node { id notes } } }"
OF_PATIENT = "encounter(id: $encounter, patientId: $patient)"
RECORD = 'recordEncounter(patientId: $patient, input: {brandId: "loop", encounterType: LAB}'

OPERATIONS = {
    "record over REST": Operation("POST "),
    "list over REST": Operation("GET "),
    "read one over REST": Operation("GET /{encounter}"),
    "record over GraphQL": Operation(f"mutation ($patient: ID!) {{ {RECORD}) {{ __typename }} }}"),
    "record with a key": Operation(
        f"mutation ($patient: ID!, $key: String!) {{ {RECORD}, idempotencyKey: $key) {{ __typename }} }}"
    ),
    "a dry run": Operation(f"mutation ($patient: ID!) {{ {RECORD}, validateOnly: true) {{ __typename }} }}"),
    "a patient's page": Operation(f"query ($patient: ID!) {{ patient(id: $patient) {{ id {PAGE} }} }}"),
    "two pages of a patient": Operation(
        f"query ($patient: ID!) {{ a: patient(id: $patient) {{ {PAGE} }} b: patient(id: $patient) {{ {PAGE} }} }}"
    ),
    "history": Operation(
        "query ($patient: ID!)"
        " { patient(id: $patient) { encounters(first: 5) { nodes { history { version kind } } } } }"
    ),
    "possible duplicates": Operation(
        f"mutation ($patient: ID!) {{ {RECORD})"
        " { ... on EncounterRecorded { encounter { id } possibleDuplicates { id } } } }"
    ),
    "the outcome of a key": Operation("query ($key: String!) { submission(key: $key) { state } }"),
    "register a patient": Operation(
        'mutation ($key: ID!) { registerPatient(input: {id: $key, brandId: "loop"}) { __typename } }', fan_outs=0
    ),
    "correct external ids": Operation(
        'mutation ($patient: ID!) { setPatientExternalIds(id: $patient, externalIds: {a: "1"}) { __typename } }'
    ),
    "read one by id and patient": Operation(
        f"query ($patient: ID!, $encounter: ID!) {{ {OF_PATIENT} {{ id status }} }}"
    ),
    "its history by id and patient": Operation(
        f"query ($patient: ID!, $encounter: ID!) {{ {OF_PATIENT} {{ id history {{ version }} }} }}"
    ),
    "start an encounter of a patient": Operation(
        "mutation ($patient: ID!, $encounter: ID!) {"
        " startEncounter(id: $encounter, patientId: $patient) { __typename } }"
    ),
    "start an encounter of a patient, with a key": Operation(
        "mutation ($patient: ID!, $encounter: ID!, $key: String!) {"
        " startEncounter(id: $encounter, patientId: $patient, idempotencyKey: $key) { __typename } }"
    ),
    # The id of an encounter does not tell its patient, so every shard searches its index of the id.
    "read one by id": Operation("query ($encounter: ID!) { encounter(id: $encounter) { id status } }", fan_outs=1),
    "start an encounter": Operation(
        "mutation ($encounter: ID!) { startEncounter(id: $encounter) { __typename } }", fan_outs=1
    ),
    # Lists of the brand.
    "a worklist": Operation("{ encounters(first: 5) { edges { node { id } } } }", fan_outs=1),
    "counts": Operation("{ encounterCounts(by: STATUS) { count } }", fan_outs=1),
    "the list of patients": Operation("{ patientList(first: 5) { edges { node { id } } } }", fan_outs=1),
    "patients by external id": Operation('{ patientsByExternalId(system: "a", value: "1") { id } }', fan_outs=1),
    "encounters by external id": Operation('{ encountersByExternalId(system: "a", value: "1") { id } }', fan_outs=1),
}


class Clinic(NamedTuple):
    """A database with a patient who has one encounter, and what jobs and commands need."""

    gateway: Gateway
    url: str
    settings: Settings
    patient_id: str
    folder: Path


async def publish(clinic: Clinic) -> None:
    assert await relay.stamp_events(clinic.gateway.relay)
    await relay.move_watermark(clinic.gateway.relay)


async def published(clinic: Clinic) -> None:
    """Publish the events; the statements are not counted, because another context sends them."""
    await asyncio.create_task(publish(clinic), context=Context())


async def prune(clinic: Clinic) -> None:
    await published(clinic)
    assert await relay.prune_events(clinic.gateway.relay, timedelta(), []) is False


async def follow(clinic: Clinic) -> None:
    async with Gateway.running(clinic.settings.serving_url) as gateway:  # so that this task starts the feed's
        subscriber = gateway.subscribe()
        await wait_until(lambda: gateway.feed._followers)
        await published(clinic)
        await wait_until(lambda: subscriber.events)
        await subscriber.stop()


async def resume(clinic: Clinic) -> None:
    await published(clinic)
    async with Gateway.running(clinic.settings.serving_url) as gateway:
        subscriber = gateway.subscribe(cursor_v1())
        await wait_until(lambda: subscriber.events)
        await subscriber.stop()


async def measure(clinic: Clinic) -> None:
    await event_numbers(clinic.gateway.relay)


class Sink:
    """A receiver that acknowledges everything."""

    name = "sink"
    brand_id: str | None = None

    async def deliver(self, event: Event) -> None:
        pass

    async def close(self) -> None:
        pass


async def deliver(clinic: Clinic) -> None:
    queue = DeliveryQueue(Sink(), timedelta(hours=1))
    await queue.work(clinic.gateway.relay)
    await published(clinic)
    await queue.work(clinic.gateway.relay)
    assert (await rows(clinic.url, "SELECT position FROM gateway.sinks"))[0][0] > 0


async def chain(clinic: Clinic) -> None:
    await rows(clinic.url, "INSERT INTO gateway.leases VALUES ($1, gen_random_uuid(), now())", CHAIN_AUDIT)
    await chaining(b"key")(clinic.gateway.relay)
    assert (await rows(clinic.url, "SELECT count(*) FROM patient_graph.audit_log"))[0][0] > 0


async def remove_keys(clinic: Clinic) -> None:
    await rows(clinic.url, "UPDATE patient_graph.idempotency_keys SET expires_at = now()")
    await prune_keys(clinic.gateway.relay)
    assert not await rows(clinic.url, "SELECT FROM patient_graph.idempotency_keys")


async def export(clinic: Clinic) -> None:
    file = clinic.folder / "encounters.jsonl"
    await export_encounters(clinic.settings, file, brand_id="loop", actor="tester", file_format="jsonl")
    assert len(file.read_bytes().splitlines()) == 1


async def list_patients(clinic: Clinic) -> None:
    file = clinic.folder / "patients.csv"
    await export_patients(clinic.settings, file, brand_id="loop", actor="tester")
    assert clinic.patient_id.encode() in file.read_bytes()


async def import_visit(clinic: Clinic) -> None:
    file = clinic.folder / "lines.jsonl"
    file.write_text(json.dumps({"patient_id": clinic.patient_id, **BODY}))
    assert (await import_encounters(clinic.settings, file)).recorded == 1


async def register_patients(clinic: Clinic) -> None:
    file = clinic.folder / "patients.jsonl"
    file.write_text(json.dumps({"id": str(uuid4()), "brand_id": "loop", "external_ids": {"mrn": "1"}}))
    assert (await import_patients(clinic.settings.serving_url, file)).registered == 1


async def erase_all(clinic: Clinic) -> None:
    await erase(clinic.url, clinic.patient_id, "loop", "tester", lambda _line: None)


class Work(NamedTuple):
    """A job or a command, and the number of its statements that query every shard."""

    run: Callable[[Clinic], Awaitable[None]]
    fan_outs: int = 0


WORK = {
    "publish events": Work(publish, fan_outs=4),
    "prune events": Work(prune, fan_outs=2),
    "numbers of events": Work(measure, fan_outs=1),
    "pass events to subscribers": Work(follow, fan_outs=1),
    "resume a subscription": Work(resume, fan_outs=1),
    "deliver events to a sink": Work(deliver, fan_outs=1),
    "chain the audit log": Work(chain, fan_outs=3),
    "prune keys": Work(remove_keys),
    "import encounters": Work(import_visit),
    "import patients": Work(register_patients),
    "export encounters": Work(export, fan_outs=2),
    "export patients": Work(list_patients, fan_outs=2),
    "erase a patient": Work(erase_all),
}

_sent: ContextVar[list[str] | None] = ContextVar("sent", default=None)


@contextmanager
def fan_outs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the different statements that query every shard and are sent by this task, or by one that it starts."""
    original, of_snapshot = PoolConnection._rows, Snapshot.fetch

    async def send(self: PoolConnection, statement: Statement, values: dict[str, object]) -> list[Any]:
        await note(self._connection, statement.text, *statement.arguments(values))
        return await original(self, statement, values)

    async def fetch(self: Snapshot, sql: str, *arguments: object) -> list[Any]:
        await note(self._connection, sql, self.brand_id, *arguments)
        return await of_snapshot(self, sql, *arguments)

    async def note(connection: Session, sql: str, *arguments: object) -> None:
        sent = _sent.get()
        if sent is not None and sql not in sent and await queries_every_shard(connection, sql, *arguments):
            sent.append(sql)

    found: list[str] = []
    token = _sent.set(found)
    with monkeypatch.context() as patched:
        patched.setattr(PoolConnection, "_rows", send)
        patched.setattr(Snapshot, "fetch", fetch)
        yield found
    _sent.reset(token)


async def queries_every_shard(connection: Session, sql: str, *arguments: object) -> bool:
    if not citus.COORDINATOR_URL:
        return DISTRIBUTED.search(sql) is not None and not DISTRIBUTION_COLUMN.search(sql)
    if sql.startswith("SET"):
        return False
    plan = await connection.fetch(f"EXPLAIN {sql}", *arguments)
    return any(int(count) > 1 for count in re.findall(r"Task Count: (\d+)", "\n".join(row[0] for row in plan)))


async def send(service: Service, request: str, variables: dict[str, str]) -> dict[str, Any]:
    if request.startswith(("GET ", "POST ")):
        method, _, end = request.partition(" ")
        path = f"/v1/patients/{variables['patient']}/encounters{end.format(**variables)}"
        answer = await service.rest(method, path, json=BODY if method == "POST" else None)
        assert answer.status_code in {200, 201}, answer.text
        return answer.json()
    used = {name: value for name, value in variables.items() if f"${name}" in request}
    body = await service.graphql(request, used)
    assert "errors" not in body, body
    assert "InvalidInput" not in str(body), body
    return body


def test_the_documentation_lists_the_operations() -> None:
    page = (Path(__file__).parent.parent.parent / "docs/cluster.md").read_text()
    for each in (OPERATIONS, WORK):
        lines = "".join(f"| {name} | {operation.fan_outs} |\n" for name, operation in each.items())
        assert f"|---|---|\n{lines}\n" in page, lines


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_the_statements_that_query_every_shard(
    operation: Operation, service_on_a_cluster: Service, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"patient": await cast.patient(), "key": str(uuid4())}
    variables["encounter"] = (await send(service_on_a_cluster, "POST ", variables))["id"]
    with fan_outs(monkeypatch) as found:
        await send(service_on_a_cluster, operation.request, variables)
    assert len(found) == operation.fan_outs, found


@pytest.fixture
async def clinic(server_url: str, tmp_path: Path) -> AsyncIterator[Clinic]:
    url = await fresh_database(server_url)
    settings = Settings(database_url=url, database_cluster=True, database_unsafe=True, **GENEROUS_LIMITS)
    async with Service.running(settings) as service:
        patient_id = str(uuid4())
        await service.graphql(OPERATIONS["register a patient"].request, {"key": patient_id})
        await send(service, OPERATIONS["record with a key"].request, {"patient": patient_id, "key": str(uuid4())})
    # The jobs of no gateway run beside the test.
    await rows(url, "DELETE FROM gateway.leases WHERE name = 'relay'")
    await rows(url, "INSERT INTO gateway.leases VALUES ('relay', gen_random_uuid(), 'infinity')")
    async with Gateway.running(settings.serving_url) as gateway:
        yield Clinic(gateway, url, settings, patient_id, tmp_path)


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
async def test_the_statements_of_jobs_and_commands_that_query_every_shard(
    work: Work, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fan_outs(monkeypatch) as found:
        await work.run(clinic)
    assert len(found) == work.fan_outs, found
