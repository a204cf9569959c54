"""Gateway processes, and clients that record through them and collect the answers."""

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import asyncpg
import httpx2

from tests import citus
from tests.forked_gateway import ForkedGateway
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
DEV = {"authorization": "Bearer dev"}
PATIENT = "demo-patient"
PATH = f"/v1/patients/{PATIENT}/encounters"
VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Slept well."}
MUTATION = """mutation ($patient: ID!, $key: String, $input: RecordEncounterInput!) {
  recordEncounter(patientId: $patient, idempotencyKey: $key, input: $input) {
    ... on EncounterRecorded { encounter { id } } ... on Problem { code recorded } } }"""
GENEROUS_LIMITS = {
    "GATEWAY_RATE_WRITES_PER_MINUTE": "0",
    "GATEWAY_RATE_READS_PER_MINUTE": "0",
    "GATEWAY_RATE_PARSING_MS_PER_MINUTE": "0",
    "GATEWAY_RATE_ANSWER_BYTES_PER_MINUTE": "0",
    # Generous timeouts for a busy machine; tests of timeouts set their own.
    "GATEWAY_DATABASE_ACQUIRE_SECONDS": "30",
    "GATEWAY_DATABASE_STATEMENT_SECONDS": "60",
    "GATEWAY_DRAIN_SECONDS": "60",
}
# Not from pg_stat_activity, which within a transaction repeats its first result.
WAITING = """SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid
WHERE NOT granted AND datname = current_database()"""


class Gateway:
    """A gateway process on an ephemeral port."""

    command: Sequence[str | Path] | None = None
    """The program that is executed. None: a process is forked."""
    folder = ROOT
    process: subprocess.Popen[str] | ForkedGateway

    def __init__(self, data_dir: Path, **settings: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        environment |= {"GATEWAY_DATA_DIR": str(data_dir), "GATEWAY_PORT": "0", **citus.for_gateway(settings)}
        # A file, not a pipe: no test reads the log while the gateway runs, and a full pipe would lose lines.
        self.log = tempfile.NamedTemporaryFile("w")  # noqa: SIM115 - closed at the end
        if self.command is None:
            self.process = ForkedGateway(["serve"], env=environment, stderr=self.log)
        else:
            self.process = subprocess.Popen(
                [*self.command, "serve"],
                cwd=self.folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
            )

    @classmethod
    def on(cls, database_url: str, **settings: str) -> Self:
        """Start a gateway on a database of the tests' server."""
        named = {"GATEWAY_DATABASE_URL": database_url, "GATEWAY_DATABASE_UNSAFE": "true"}
        return cls(Path("unused"), **(named | GENEROUS_LIMITS | settings))

    def banner(self) -> str:
        """Return what the gateway prints at its start: up to the example call, or the end."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if '\'{"brand_id"' in line:
                break
        output = "".join(lines)
        if found := re.search(r"http://127\.0\.0\.1:\d+", output):
            self.origin = found[0]
        return output

    def started(self) -> Self:
        """Wait until the gateway has printed its address."""
        assert "GraphQL" in self.banner(), self.errors()
        return self

    def errors(self) -> str:
        """Return the standard error so far."""
        return Path(self.log.name).read_text()

    def record(self) -> httpx2.Response:
        """Record an encounter of the demo patient."""
        return httpx2.post(f"{self.origin}{PATH}", json=VISIT, headers=DEV, timeout=10)

    def total(self) -> int:
        """Return the number of the demo patient's encounters."""
        total: int = httpx2.get(f"{self.origin}{PATH}", headers=DEV, timeout=10).json()["total"]
        return total

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def end(self) -> None:
        """Stop the process if it runs, and close its files."""
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


class ExecutedGateway(Gateway):
    """A gateway process that is executed, as a user does."""

    command = (sys.executable, "-m", "gateway")


@contextmanager
def running_gateway(database_url: str, **settings: str) -> Iterator[str]:
    """Run a gateway in development mode and without request rate limits, and yield its origin."""
    environment = os.environ | {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATABASE_UNSAFE": "true",
        "GATEWAY_PORT": "0",
        "GATEWAY_RATE_READS_PER_MINUTE": "0",
        "GATEWAY_RATE_WRITES_PER_MINUTE": "0",
        **settings,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1].split("/v1/")[0]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


@asynccontextmanager
async def gateways(database_url: str, number: int = 1, /, **settings: str) -> AsyncIterator[list[Gateway]]:
    """Start gateways on one database, and stop those that still run at the end."""
    running = [Gateway.on(database_url, **settings) for _ in range(number)]
    try:
        for each in running:
            await asyncio.to_thread(each.started)
        for each in running:
            await wait_until(partial(is_ready, each.origin))
        yield running
    finally:
        for each in running:
            await asyncio.to_thread(each.end)


@dataclass(frozen=True)
class ClientAnswer:
    """The answer to a recording under a key."""

    key: str
    door: str
    status: int | None = None
    """None after a broken connection."""
    encounter_id: str | None = None
    code: str | None = None
    recorded: str | None = None
    retry_after: str | None = None
    body: bytes = b""
    patient: str = PATIENT

    def is_wrong(self, stored: bool) -> bool:
        """Whether the answer contradicts the tables."""
        return not stored if self.encounter_id else stored and self.recorded == "no"


async def record_over_rest(
    client: httpx2.AsyncClient, origin: str, key: str, patient: str = PATIENT, **members: Any
) -> ClientAnswer:
    """Record over REST, under a key."""
    path = f"/v1/patients/{patient}/encounters"
    try:
        response = await client.post(
            origin + path, json=VISIT | members, headers=DEV | {"idempotency-key": key}, timeout=60
        )
    except httpx2.TransportError:
        return ClientAnswer(key, "rest", patient=patient)
    retry_after, body = response.headers.get("retry-after"), response.json()
    if response.status_code == 201:
        return ClientAnswer(key, "rest", 201, body["id"], body=response.content, patient=patient)
    return ClientAnswer(
        key, "rest", response.status_code, None, body["error"], body["recorded"], retry_after, patient=patient
    )


async def record_over_graphql(
    client: httpx2.AsyncClient, origin: str, key: str, patient: str = PATIENT, **members: Any
) -> ClientAnswer:
    """Record over GraphQL, under a key."""
    visit = {"brandId": "loop", "encounterType": "LAB", "notes": VISIT["notes"]} | members
    asked = {"query": MUTATION, "variables": {"patient": patient, "key": key, "input": visit}}
    try:
        response = await client.post(f"{origin}/graphql", json=asked, headers=DEV, timeout=60)
    except httpx2.TransportError:
        return ClientAnswer(key, "graphql", patient=patient)
    retry_after, body = response.headers.get("retry-after"), response.json()
    if "errors" in body:
        answer = body["errors"][0]["extensions"]
        return ClientAnswer(
            key, "graphql", response.status_code, None, answer["code"], answer["recorded"], retry_after, patient=patient
        )
    recorded = body["data"]["recordEncounter"]
    if "encounter" in recorded:
        return ClientAnswer(key, "graphql", response.status_code, recorded["encounter"]["id"], patient=patient)
    return ClientAnswer(
        key, "graphql", response.status_code, None, recorded["code"], recorded["recorded"].lower(), patient=patient
    )


Door = Callable[..., Coroutine[Any, Any, ClientAnswer]]
DOORS: Sequence[Door] = (record_over_rest, record_over_graphql)


@asynccontextmanager
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client without a limit of connections."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(limits=limits) as http:
        yield http


@dataclass
class Load:
    """Clients that record one encounter after another, each under a new key, half through each door."""

    origin: str
    patients: Sequence[str] = (PATIENT,)
    answers: list[ClientAnswer] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _over: bool = False

    @classmethod
    @asynccontextmanager
    async def on(
        cls, origin: str, clients: int = 8, patients: Sequence[str] = (PATIENT,), **members: Any
    ) -> AsyncIterator[Self]:
        """Let the clients record during the block, and wait for their last answers."""
        load = cls(origin, patients)
        load._tasks = [asyncio.create_task(load._record(DOORS[number % 2], members)) for number in range(clients)]
        try:
            yield load
        finally:
            load._over = True
            await asyncio.gather(*load._tasks)

    async def _record(self, door: Door, members: dict[str, Any]) -> None:
        async with client() as http:
            while not self._over:
                answer = await door(http, self.origin, str(uuid4()), random.choice(self.patients), **members)
                self.answers.append(answer)
                if not answer.encounter_id:
                    await asyncio.sleep(0.02)

    def recorded(self, since: int = 0) -> int:
        """Return the number of acknowledged encounters, in the answers from index `since` on."""
        return sum(each.encounter_id is not None for each in self.answers[since:])


@asynccontextmanager
async def owner_connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection as the owner of the tables."""
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def encounters_by_key(connection: asyncpg.Connection) -> dict[str, str]:
    """Return the encounter of each key; assert that each has one event and one audit entry."""
    rows = await connection.fetch(
        "SELECT k.key, e.id::text AS id, o.events, a.entries FROM patient_graph.encounters e"
        " LEFT JOIN patient_graph.idempotency_keys k ON k.encounter_id = e.id"
        " LEFT JOIN (SELECT payload ->> 'encounter_id' AS id, count(*) AS events FROM patient_graph.outbox"
        " GROUP BY 1) o ON o.id = e.id::text"
        " LEFT JOIN (SELECT entity_id AS id, count(*) AS entries FROM patient_graph.audit_log"
        " WHERE event_type = 'patient_graph.encounter.recorded' GROUP BY 1) a ON a.id = e.id::text"
    )
    assert all(row["key"] and (row["events"], row["entries"]) == (1, 1) for row in rows)
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row["id"] for row in rows}


def free_port() -> int:
    """Return a TCP port that no process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wrong_answers(answers: Sequence[ClientAnswer], stored: dict[str, str]) -> list[ClientAnswer]:
    """Return the answers that contradict the tables."""
    return [
        each
        for each in answers
        if each.is_wrong(each.key in stored) or (each.encounter_id and stored[each.key] != each.encounter_id)
    ]


async def status_of(origin: str, path: str) -> int | None:
    """Return the status of a request on a new connection; None if the connection fails."""
    try:
        async with httpx2.AsyncClient() as http:
            return (await http.get(origin + path, timeout=30)).status_code
    except httpx2.TransportError:
        return None


async def is_ready(origin: str) -> bool:
    """Whether the gateway is ready."""
    return await status_of(origin, "/readyz") == 200
