"""Gateways as processes of their own, and clients that record through them and write down what they were told."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import asyncpg
import httpx2

ROOT = Path(__file__).parent.parent
DEV = {"authorization": "Bearer dev"}
PATIENT = "demo-patient"
PATH = f"/v1/patients/{PATIENT}/encounters"
VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Slept well."}
MUTATION = """mutation ($key: String, $input: RecordEncounterInput!) {
  recordEncounter(patientId: "demo-patient", idempotencyKey: $key, input: $input) {
    ... on EncounterRecorded { encounter { id } } ... on Problem { code recorded } } }"""
PATIENT_SETTINGS = {
    "GATEWAY_RATE_WRITES_PER_MINUTE": "0",
    "GATEWAY_RATE_READS_PER_MINUTE": "0",
    "GATEWAY_RATE_PARSING_MS_PER_MINUTE": "0",
    "GATEWAY_RATE_ANSWER_BYTES_PER_MINUTE": "0",
    # A busy machine is not what these tests are about; those that are about impatience say so.
    "GATEWAY_DATABASE_ACQUIRE_SECONDS": "30",
    "GATEWAY_DATABASE_STATEMENT_SECONDS": "60",
    "GATEWAY_DRAIN_SECONDS": "60",
}
# Not from pg_stat_activity, which within a transaction shows what it showed at first.
WAITING = """SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid
WHERE NOT granted AND datname = current_database()"""


class Gateway:
    """A gateway in a process of its own, on a port of its own."""

    command: Sequence[str | Path] = (sys.executable, "-m", "gateway")
    folder = ROOT

    def __init__(self, data_dir: Path, **settings: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        environment |= {"GATEWAY_DATA_DIR": str(data_dir), "GATEWAY_PORT": "0", **settings}
        # A file, not a pipe: no test reads on while the gateway works, and a full pipe would lose lines.
        self.log = tempfile.NamedTemporaryFile("w")  # noqa: SIM115 - closed at the end
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
        """Start one on a database of the tests' server."""
        named = {"GATEWAY_DATABASE_URL": database_url, "GATEWAY_DATABASE_UNSAFE": "true"}
        return cls(Path("unused"), **(named | PATIENT_SETTINGS | settings))

    def welcome(self) -> str:
        """Read what it says first: up to the empty line that ends it, or the end."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if '\'{"brand_id"' in line:
                break
        said = "".join(lines)
        if found := re.search(r"http://127\.0\.0\.1:\d+", said):
            self.origin = found[0]
        return said

    def started(self) -> Self:
        """Wait until it has said where it listens."""
        assert "GraphQL" in self.welcome(), self.errors()
        return self

    def errors(self) -> str:
        """Give what it wrote to standard error so far."""
        return Path(self.log.name).read_text()

    def record(self) -> httpx2.Response:
        """Record an encounter of the demo patient."""
        return httpx2.post(f"{self.origin}{PATH}", json=VISIT, headers=DEV, timeout=10)

    def total(self) -> int:
        """Count the demo patient's encounters."""
        total: int = httpx2.get(f"{self.origin}{PATH}", headers=DEV, timeout=10).json()["total"]
        return total

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and give the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def end(self) -> None:
        """Stop it unless it has ended, and let go of it."""
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


@asynccontextmanager
async def gateways(database_url: str, number: int = 1, /, **settings: str) -> AsyncIterator[list[Gateway]]:
    """Start some on one database, and end those that are left."""
    running = [Gateway.on(database_url, **settings) for _ in range(number)]
    try:
        for each in running:
            await asyncio.to_thread(each.started)
        for each in running:
            await until(partial(is_ready, each.origin))
        yield running
    finally:
        for each in running:
            await asyncio.to_thread(each.end)


@dataclass(frozen=True)
class Told:
    """What a client was told of what it sent under a key."""

    key: str
    door: str
    status: int | None = None
    """None where the connection broke."""
    encounter_id: str | None = None
    code: str | None = None
    recorded: str | None = None
    retry_after: str | None = None
    body: bytes = b""

    def contradicts(self, kept: bool) -> bool:
        """Whether it was told wrongly."""
        return not kept if self.encounter_id else kept and self.recorded == "no"


async def record_over_rest(client: httpx2.AsyncClient, origin: str, key: str, **members: Any) -> Told:
    """Record over REST, under a key."""
    try:
        response = await client.post(
            origin + PATH, json=VISIT | members, headers=DEV | {"idempotency-key": key}, timeout=60
        )
    except httpx2.TransportError:
        return Told(key, "rest")
    retry_after, body = response.headers.get("retry-after"), response.json()
    if response.status_code == 201:
        return Told(key, "rest", 201, body["id"], body=response.content)
    return Told(key, "rest", response.status_code, None, body["error"], body["recorded"], retry_after)


async def record_over_graphql(client: httpx2.AsyncClient, origin: str, key: str, **members: Any) -> Told:
    """Record over GraphQL, under a key."""
    visit = {"brandId": "loop", "encounterType": "LAB", "notes": VISIT["notes"]} | members
    asked = {"query": MUTATION, "variables": {"key": key, "input": visit}}
    try:
        response = await client.post(f"{origin}/graphql", json=asked, headers=DEV, timeout=60)
    except httpx2.TransportError:
        return Told(key, "graphql")
    retry_after, body = response.headers.get("retry-after"), response.json()
    if "errors" in body:
        told = body["errors"][0]["extensions"]
        return Told(key, "graphql", response.status_code, None, told["code"], told["recorded"], retry_after)
    recorded = body["data"]["recordEncounter"]
    if "encounter" in recorded:
        return Told(key, "graphql", response.status_code, recorded["encounter"]["id"])
    return Told(key, "graphql", response.status_code, None, recorded["code"], recorded["recorded"].lower())


Door = Callable[..., Coroutine[Any, Any, Told]]
DOORS: Sequence[Door] = (record_over_rest, record_over_graphql)


@asynccontextmanager
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """Lend a client that opens as many connections as are asked for."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(limits=limits) as lent:
        yield lent


@dataclass
class Load:
    """Clients that record one encounter after the other, each under a key of its own, half through each door."""

    origin: str
    told: list[Told] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _over: bool = False

    @classmethod
    @asynccontextmanager
    async def on(cls, origin: str, clients: int = 8, **members: Any) -> AsyncIterator[Self]:
        """Let them record for as long as the block lasts, and until each has heard its last answer."""
        load = cls(origin)
        load._tasks = [asyncio.create_task(load._record(DOORS[number % 2], members)) for number in range(clients)]
        try:
            yield load
        finally:
            load._over = True
            await asyncio.gather(*load._tasks)

    async def _record(self, door: Door, members: dict[str, Any]) -> None:
        async with client() as mine:
            while not self._over:
                told = await door(mine, self.origin, str(uuid4()), **members)
                self.told.append(told)
                if told.status is None:
                    await asyncio.sleep(0.02)

    def recorded(self, since: int = 0) -> int:
        """Count the encounters that were acknowledged, of the answers from this one on."""
        return sum(each.encounter_id is not None for each in self.told[since:])


@asynccontextmanager
async def looking_into(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection of the tables' owner."""
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def kept_under(connection: asyncpg.Connection) -> dict[str, str]:
    """Give the encounter that is kept under each key, seeing that each is whole: one event and one audit entry."""
    rows = await connection.fetch(
        "SELECT k.key, e.id::text AS id,"
        " (SELECT count(*) FROM patient_graph.outbox o WHERE o.payload ->> 'encounter_id' = e.id::text) AS events,"
        " (SELECT count(*) FROM patient_graph.audit_log a WHERE a.entity_id = e.id::text"
        " AND a.event_type = 'patient_graph.encounter.recorded') AS entries"
        " FROM patient_graph.encounters e LEFT JOIN patient_graph.idempotency_keys k ON k.encounter_id = e.id"
    )
    assert all(row["key"] and (row["events"], row["entries"]) == (1, 1) for row in rows)
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row["id"] for row in rows}


def contradictions(told: Sequence[Told], kept: dict[str, str]) -> list[Told]:
    """Give what clients were told wrongly."""
    return [
        each
        for each in told
        if each.contradicts(each.key in kept) or (each.encounter_id and kept[each.key] != each.encounter_id)
    ]


async def until(condition: Callable[[], Awaitable[Any] | Any], seconds: float = 30) -> None:
    """Return when the condition holds, which may have to be awaited; fail when it still does not after a while."""
    async with asyncio.timeout(seconds):
        for _ in count():
            holds = condition()
            if await holds if isinstance(holds, Awaitable) else holds:
                return
            await asyncio.sleep(0.02)


async def status_of(origin: str, path: str) -> int | None:
    """Ask on a connection of its own; None where nobody listens."""
    try:
        async with httpx2.AsyncClient() as lent:
            return (await lent.get(origin + path, timeout=30)).status_code
    except httpx2.TransportError:
        return None


async def is_ready(origin: str) -> bool:
    """Ask whether a gateway is ready."""
    return await status_of(origin, "/readyz") == 200
