"""On a cluster, what concerns one patient queries one shard. The operations that query every shard are listed here.

On one server, the statement text shows which statements name no patient and no key. On a cluster, `EXPLAIN` shows the
number of shards of each.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from gateway.database.database import PoolConnection
from resolvers.sql import Statement
from tests import citus
from tests.cast import Cast
from tests.doors import Service

BODY = {"brand_id": "loop", "encounter_type": "lab"}

DISTRIBUTION_COLUMN = re.compile(
    r"INTO patient_graph|(patient_id|patients\.id|\bp\.id|\.key) = (\$|ANY)|FROM gateway\.watermark|^SET LOCAL"
)
"""Matches a statement that names the patient or the key, or reads a small table of the coordinator."""


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

_sent: ContextVar[list[str] | None] = ContextVar("sent", default=None)


@contextmanager
def fan_outs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the statements of this task's requests that query every shard; not those of background jobs."""
    original = PoolConnection._rows

    async def send(self: PoolConnection, statement: Statement, values: dict[str, object]) -> list[Any]:
        sent = _sent.get()
        if sent is not None and await queries_every_shard(self, statement, values):
            sent.append(statement.text)
        return await original(self, statement, values)

    found: list[str] = []
    token = _sent.set(found)
    with monkeypatch.context() as patched:
        patched.setattr(PoolConnection, "_rows", send)
        yield found
    _sent.reset(token)


async def queries_every_shard(connection: PoolConnection, statement: Statement, values: dict[str, object]) -> bool:
    if not citus.COORDINATOR_URL:
        return not DISTRIBUTION_COLUMN.search(statement.text)
    if statement.text.startswith("SET"):
        return False
    plan = await connection._connection.fetch(f"EXPLAIN {statement.text}", *statement.arguments(values))
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
    rows = [f"| {name} | {operation.fan_outs} |\n" for name, operation in OPERATIONS.items()]
    assert "|---|---|\n" + "".join(rows) + "\n" in page, "".join(rows)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_the_statements_that_query_every_shard(
    operation: Operation, service_on_a_cluster: Service, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"patient": await cast.patient(), "key": str(uuid4())}
    variables["encounter"] = (await send(service_on_a_cluster, "POST ", variables))["id"]
    with fan_outs(monkeypatch) as found:
        await send(service_on_a_cluster, operation.request, variables)
    assert len(found) == operation.fan_outs, found
