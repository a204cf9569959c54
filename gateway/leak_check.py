"""`gateway leak-check`: send marked values through every door and every failure, and search all outputs for the marks.

The command starts a gateway as a separate process, on a private PostgreSQL in a temporary folder, and captures every
output. Unmistakable marks (canary tokens) replace the clinical content. A mark may appear in a response to an
authorized caller, and in the tables of the record. A mark anywhere else is a leak.
"""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx2
import psutil
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from gateway.database.roles import DATABASE, OWNER
from gateway.http_client import http_client
from gateway.settings import traces_are_installed
from models import MEMBERS, Kind, Member
from resolvers.commands import AmendEncounter
from resolvers.feed_cursors import FeedCursors

PATIENT = "demo-patient"
DEV = {"Authorization": "Bearer dev"}
JSON = {"Content-Type": "application/json"}

# The marks: a text, and a time in every format that a log might use.
MARK = "cAnArY7421"
INSTANT = "2031-07-13T11:42:07.345678Z"
MARKS = (MARK, "345678Z", "07.345678", "1941709327")


def _marked(member: Member) -> Any:
    match member.kind:
        case Kind.INSTANT:
            return INSTANT
        case Kind.JSON:
            return {f"name {MARK}": f"value {MARK}"}
        case _:
            return f"{member.name} {MARK}"


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

CLINICAL = [member for member in MEMBERS.values() if member.clinical]
MARKED = {"brand_id": "loop", "encounter_type": "lab"} | {member.name: _marked(member) for member in CLINICAL}
SHOWN = " ".join(member.graphql_name for member in CLINICAL)

RECORD = f"""mutation ($id: ID!, $input: RecordEncounterInput!, $key: String) {{
  recordEncounter(patientId: $id, input: $input, idempotencyKey: $key) {{
    __typename ... on EncounterRecorded {{ encounter {{ {SHOWN} }} }} ... on Problem {{ code message }}
  }}
}}"""

EVENTS = f"""subscription ($id: ID, $after: String) {{
  encounterEvents(patientId: $id, after: $after) {{ kind encounter {{ {SHOWN} }} }}
}}"""


class Leak(NamedTuple):
    """A mark in an output that must not contain it."""

    where: str
    line: str


class Outputs:
    """Outputs of the gateway, except responses with the record to an authorized caller."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        self.shown = 0
        """Number of authorized responses with a mark; 0 means that the attempts did not record anything."""
        self.spans = 0
        """Number of exports of spans."""

    def add(self, where: str, text: str) -> None:
        """Add an output to the search."""
        self.texts.append((where, text))

    def leaks(self) -> Iterator[Leak]:
        """Yield each line with a mark; the mark itself is redacted."""
        for where, text in self.texts:
            for line in text.splitlines():
                if any(mark in line for mark in MARKS):
                    yield Leak(where, re.sub("|".join(map(re.escape, MARKS)), "█", line)[:300])


async def leak_check() -> int:
    """Run the check and print the result. Return the exit code: 1 for any leak, or if no mark was shown at all."""
    outputs = Outputs()
    with tempfile.TemporaryDirectory(prefix="gateway-canary-") as folder:
        async with _running(Path(folder), outputs) as (client, owner_url):
            for attempt in ATTEMPTS:
                await attempt(client, owner_url, outputs)
            await _look_at_metrics(client, outputs)
            await _look_into_tables(owner_url, outputs)
            _look_at_processes(outputs)
    if traces_are_installed() and not outputs.spans:
        print("No span arrived, so none was searched.")
        return 1
    leaks = list(outputs.leaks())
    for leak in leaks:
        print(f"LEAK in {leak.where}: {leak.line}")
    searched = sum(len(text) for _, text in outputs.texts)
    print(
        f"{len(outputs.texts)} outputs searched, {searched:,} characters; "
        f"{outputs.shown} marks shown to authorized callers; ",
        end="",
    )
    print(f"{len(leaks)} leaks.")
    return 1 if leaks or not outputs.shown else 0


class _Collector(ThreadingHTTPServer):
    """An OpenTelemetry collector on loopback, which adds the spans to the search as they arrive: texts are UTF-8."""

    def __init__(self, outputs: Outputs) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outputs.add("the exported spans", f"{self.headers}{body.decode(errors='replace')}")
                outputs.spans += 1
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@asynccontextmanager
async def _running(folder: Path, outputs: Outputs) -> AsyncIterator[tuple[httpx2.AsyncClient, str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "OTEL_"))}
    environment |= {"GATEWAY_DATA_DIR": str(folder / "data"), "GATEWAY_PORT": "0"}
    collector = _Collector(outputs)
    if traces_are_installed():
        environment["GATEWAY_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.server_port}"
    log = folder / "log"
    with log.open("wb") as log_file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", env=environment, stdout=subprocess.PIPE, stderr=log_file
        )
    assert process.stdout is not None
    try:
        banner = await asyncio.wait_for(process.stdout.readuntil(b"GraphQL"), 60)
        origin = banner.split()[1].decode().partition("/v1")[0]
        socket_folder = next((folder / "data").rglob("socket"))
        owner_url = f"postgresql://{OWNER}@/{DATABASE}?host={socket_folder}&port=5432"
        async with http_client(over_tls=False, base_url=origin, timeout=30) as client:
            yield client, owner_url
    finally:
        process.terminate()
        rest = await process.stdout.read()
        await process.wait()
        await asyncio.to_thread(collector.shutdown)
        collector.server_close()
        outputs.add("standard output", banner.decode() + rest.decode())
        outputs.add("the log", log.read_text())
        for server_log in (folder / "data").rglob("postgres.log*"):
            outputs.add("PostgreSQL's log", server_log.read_text(errors="replace"))


async def _through_rest(client: httpx2.AsyncClient, _owner_url: str, outputs: Outputs) -> None:
    path = f"/v1/patients/{PATIENT}/encounters"
    body = json.dumps(MARKED)

    async def post(where: str, *, to: str = path, content: str | bytes = body, **headers: str) -> None:
        response = await client.post(to, content=content, headers={**DEV, **JSON, **headers})
        _keep(outputs, f"REST, {where}", response)

    await post("recorded")
    await post("replayed", **{"Idempotency-Key": "canary"})
    await post("replayed", **{"Idempotency-Key": "canary"})
    await post("key of another request", content=_with(notes=f"other {MARK}"), **{"Idempotency-Key": "canary"})
    await post("a bad key", **{"Idempotency-Key": f"two words {MARK}"})
    await post("no token", Authorization="")
    await post("a bad token", Authorization=f"Bearer {MARK}")
    await post("another brand", content=_with(brand_id=f"brand{MARK}"))
    await post("a stated brand", **{"X-Brand-Id": MARK})
    await post("an odd request id", **{"X-Request-Id": f"{MARK} {MARK}"})
    await post("a trace", traceparent=TRACEPARENT, tracestate=f"vendor={MARK}", baggage=f"notes={MARK}")
    await post("a bad trace", traceparent=MARK)
    await post("no such patient", to=f"/v1/patients/{MARK}/encounters")
    await post("a query", to=f"{path}?notes={MARK}")
    await post("no such path", to=f"/v1/{MARK}")
    await post("another media type", **{"Content-Type": f"text/{MARK}"})
    await post("an answer of another type", Accept=f"text/{MARK}")
    await post("as a problem", content=_with(notes=[MARK]), Accept="application/problem+json")
    await post("a coded body", **{"Content-Encoding": MARK})
    await post("half a body", content=body[:-20])
    await post("twice a member", content=body[:-1] + f', "notes": "{MARK}"}}')
    await post("too large a body", content=f'"{MARK * 40_000}"')
    for member in MARKED:
        for value in (f"{MARK}\x00", [MARK], {MARK: None}, MARK * 10_000, f"{INSTANT[:-1]}", None):
            await post(f"a bad {member}", content=_with(**{member: value}))
    for method in ("PUT", "DELETE", "PATCH"):
        _keep(outputs, f"REST, {method}", await client.request(method, path, content=body, headers={**DEV, **JSON}))
    listed = await client.get(path, params={"limit": MARK}, headers=DEV)
    _keep(outputs, "REST, a bad limit", listed)
    _keep(outputs, "REST, listed", await client.get(path, headers=DEV))
    for where in (f"{path}/{MARK}", f"/v1/patients/{MARK}/encounters/{MARK}", f"/rules/{MARK}", f"/problems/{MARK}"):
        odd = {**DEV, "If-None-Match": MARK}
        _keep(outputs, "REST, nothing here", await client.get(where, headers=odd))


async def _through_graphql(client: httpx2.AsyncClient, _owner_url: str, outputs: Outputs) -> None:
    good = {MEMBERS[name].graphql_name: value for name, value in MARKED.items()} | {"encounterType": "LAB"}

    async def post(where: str, query: str, **variables: Any) -> None:
        content = json.dumps({"query": query, "variables": variables})
        for accept in ("application/json", "application/graphql-response+json"):
            headers = {**DEV, **JSON, "Accept": accept}
            _keep(outputs, f"GraphQL, {where}", await client.post("/graphql", content=content, headers=headers))

    await post("recorded", RECORD, id=PATIENT, input=good)
    await post("replayed", RECORD, id=PATIENT, input=good, key="canary2")
    await post("key of another request", RECORD, id=PATIENT, input=good | {"notes": MARK * 2}, key="canary2")
    await post("a bad key", RECORD, id=PATIENT, input=good, key=f"two {MARK}")
    await post("no such patient", RECORD, id=MARK, input=good)
    await post("a key of a marked text", "query ($key: String!) { submission(key: $key) { state } }", key=f"two {MARK}")
    await _through_changes(client, outputs, post)
    await post("another brand", RECORD, id=PATIENT, input=good | {"brandId": MARK})
    await post("an unknown member", RECORD, id=PATIENT, input=good | {"colour": MARK})
    for member in good:
        for value in (f"{MARK}\x00", [MARK], {MARK: MARK}, MARK * 10_000, INSTANT[:-1], None):
            await post(f"a bad {member}", RECORD, id=PATIENT, input=good | {member: value})
    for document in (
        f'{{ patient(id: "{PATIENT}") {{ encounters(after: "{MARK}") {{ nodes {{ id }} }} }} }}',
        f'{{ patient(id: "{PATIENT}") {{ encounters(first: "{MARK}") {{ nodes {{ id }} }} }} }}',
        f'{{ patient(id: "{PATIENT}" "{MARK}',
        f'{{ encounter(id: "{MARK}") {{ id }} }} # {MARK}',
        f'{{ patientsByExternalId(system: "{MARK}", value: "{MARK}") {{ id }} }}',
        f'{{ encountersByExternalId(system: "{MARK}", value: "{MARK * 30}") {{ id }} }}',
        f'{{ patientList(after: "{MARK}") {{ nodes {{ id }} }} }}',
        f'{{ encounter(id: {{a: "{MARK}"}}) {{ id }} }}',
        f'mutation {{ recordEncounter(patientId: "x", input: {{encounterType: {MARK}}}) {{ __typename }} }}',
    ):
        await post("a document", document)
    for content in (f'"{MARK}"', f'["{MARK}"]', f'{{"query": {{"{MARK}": 1}}}}', f'{{"query": "{MARK}', MARK):
        _keep(outputs, "GraphQL, a body", await client.post("/graphql", content=content, headers={**DEV, **JSON}))
    query = {"query": "{ __typename }", "variables": MARK, "operationName": MARK}
    _keep(outputs, "GraphQL, a URL", await client.get("/graphql", params=query, headers=DEV))


async def _through_changes(client: httpx2.AsyncClient, outputs: Outputs, post: Callable[..., Awaitable[None]]) -> None:
    """Send every change of an encounter, with marks in reasons and values."""
    recorded = await client.post(f"/v1/patients/{PATIENT}/encounters", json=MARKED, headers=DEV)
    _keep(outputs, "REST, recorded", recorded)
    amendment: dict[str, Any] = {
        member.graphql_name: {MARK: MARK} if member.kind is Kind.JSON else f"amended {MARK}"
        for member in CLINICAL
        if member.name in AmendEncounter.model_fields
    }
    marked = {
        "id": recorded.json()["id"],
        "text": f"reason {MARK}",
        "at": INSTANT,
        "json": {MARK: MARK},
        "amendment": amendment | {"reason": f"reason {MARK}"},
    }
    for change in (
        "startEncounter(id: $id, expectedVersion: 7)",
        "rescheduleEncounter(id: $id, scheduledAt: $at, reason: $text)",
        'startEncounter(id: $id, idempotencyKey: "canary3")',
        'undoStartEncounter(id: $id, reason: $text, idempotencyKey: "canary3")',
        "undoStartEncounter(id: $id, reason: $text)",
        "completeEncounter(id: $id)",
        "amendEncounter(id: $id, input: $amendment)",
        "cancelEncounter(id: $id, reason: $text)",
        "markEncounterEnteredInError(id: $id, reason: $text)",
        'registerPatient(input: {id: "", brandId: $text, externalIds: $json})',
        "setPatientExternalIds(id: $text, externalIds: $json)",
        f'setPatientExternalIds(id: "{PATIENT}", externalIds: {{{MARK}: 7}})',
        f'setPatientExternalIds(id: "{PATIENT}", externalIds: $json, idempotencyKey: "canary4")',
    ):
        declared = "$id: ID!, $text: String!, $at: DateTime!, $json: JSON!, $amendment: AmendEncounterInput!"
        await post(
            "a change", f"mutation ({declared}) {{ {change} {{ __typename ... on Problem {{ message }} }} }}", **marked
        )
    history = "query ($id: ID!) { encounter(id: $id) { history { reason changes { before after } } } }"
    shown = await client.post("/graphql", json={"query": history, "variables": marked}, headers=DEV)
    _keep(outputs, "GraphQL, a history listed", shown)


async def _beginning(owner_url: str) -> str:
    """Return the cursor of the feed's beginning; clients have no way to get it."""
    connection = await asyncpg.connect(owner_url)
    try:
        return FeedCursors(await connection.fetchval("SELECT key FROM gateway.feed_key")).write(0, "loop")
    finally:
        await connection.close()


async def _through_sockets(client: httpx2.AsyncClient, owner_url: str, outputs: Outputs) -> None:
    """Send marks over WebSockets: in authentication, operations, and invalid messages."""
    url = str(client.base_url.join("/graphql")).replace("http", "ws", 1)
    authenticate = json.dumps({"type": "connection_init", "payload": DEV})
    good = {MEMBERS[name].graphql_name: value for name, value in MARKED.items()} | {"encounterType": "LAB"}
    asked = [
        {"query": RECORD, "variables": {"id": PATIENT, "input": good}},
        {"query": RECORD, "variables": {"id": MARK, "input": good}},
        {"query": RECORD, "variables": {"id": PATIENT, "input": good | {"notes": f"{MARK}\x00"}}},
        {"query": RECORD, "variables": {"id": PATIENT, "input": good | {"encounterType": MARK}}},
        {"query": f'{{ encounter(id: "{MARK}', "operationName": MARK},
        {"query": EVENTS, "variables": {"id": MARK}},
        {"query": EVENTS, "variables": {"after": MARK}},
        {"query": EVENTS, "variables": {"id": PATIENT, "after": await _beginning(owner_url)}},
    ]
    sessions = [
        [json.dumps({"type": "connection_init", "payload": {"Authorization": f"Bearer {MARK}"}})],
        [
            authenticate,
            *(json.dumps({"type": "subscribe", "id": str(n), "payload": ask}) for n, ask in enumerate(asked)),
        ],
        *(
            [authenticate, odd]
            for odd in (
                MARK,
                f'"{MARK}"',
                f'{{"type": "{MARK}"}}',
                f'{{"type": "subscribe", "id": "5", "payload": "{MARK}"}}',
            )
        ),
    ]
    for frames in sessions:
        received = []
        async with connect(url, subprotocols=["graphql-transport-ws"], proxy=None) as socket:  # type: ignore[list-item]
            for frame in frames:
                await socket.send(frame)
            with contextlib.suppress(TimeoutError, ConnectionClosed):
                async with asyncio.timeout(1):
                    while True:
                        received.append(str(await socket.recv()))
        for frame in [*received, f"{socket.close_code} {socket.close_reason}"]:
            if "EncounterRecorded" in frame or '"kind"' in frame:
                outputs.shown += MARK in frame
            else:
                outputs.add("WebSocket", frame)


async def _through_streams(client: httpx2.AsyncClient, owner_url: str, outputs: Outputs) -> None:
    """Subscribe to events over HTTP: one authorized stream, and marks in cursors, variables and headers."""
    accept = {**DEV, "Accept": "text/event-stream"}

    async def ask(where: str, headers: Mapping[str, str] | None = None, **variables: Any) -> None:
        sent_headers = {**accept, **(headers or {})}
        for response in (
            await client.post("/graphql", json={"query": EVENTS, "variables": variables}, headers=sent_headers),
            await client.get(
                "/graphql", params={"query": EVENTS, "variables": json.dumps(variables)}, headers=sent_headers
            ),
        ):
            _keep(outputs, f"event stream, {where}", response)

    await ask("no such patient", id=MARK)
    await ask("a bad cursor", after=MARK)
    await ask("a bad event id", {"Last-Event-ID": MARK})
    await ask("a bad token", {"Authorization": f"Bearer {MARK}"})
    await ask("another brand", {"X-Brand-Id": MARK})
    await ask("a bad variable", id=[MARK])
    everything = {"query": EVENTS, "variables": {"id": PATIENT, "after": await _beginning(owner_url)}}
    async with client.stream("POST", "/graphql", json=everything, headers=accept) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                outputs.shown += MARK in line
                break
            outputs.add("event stream, around the events", line)


async def _through_the_database(client: httpx2.AsyncClient, owner_url: str, outputs: Outputs) -> None:
    """Provoke database errors: a violated constraint, a failing cast, a missing table and a blocked statement."""
    path = f"/v1/patients/{PATIENT}/encounters"
    owner = await asyncpg.connect(owner_url)
    table = "patient_graph.encounters"
    try:
        for name, condition in (("check", "notes IS NULL"), ("cast", "notes::integer > 0")):
            await owner.execute(f"ALTER TABLE {table} ADD CONSTRAINT canary_{name} CHECK ({condition}) NOT VALID")
            response = await client.post(path, content=json.dumps(MARKED), headers={**DEV, **JSON})
            _keep(outputs, f"REST, a refused row ({name})", response)
            await owner.execute(f"ALTER TABLE {table} DROP CONSTRAINT canary_{name}")
        await owner.execute(f"ALTER TABLE {table} RENAME TO away")
        _keep(outputs, "REST, no table", await client.post(path, content=json.dumps(MARKED), headers={**DEV, **JSON}))
        await owner.execute("ALTER TABLE patient_graph.away RENAME TO encounters")
        transaction = owner.transaction()
        await transaction.start()
        await owner.execute(f"LOCK TABLE {table}")
        waiting = asyncio.create_task(client.post(path, content=json.dumps(MARKED), headers={**DEV, **JSON}))
        async with asyncio.timeout(30):
            while not await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await transaction.rollback()
        _keep(outputs, "REST, after a wait", await waiting)
    finally:
        await owner.close()


ATTEMPTS = (_through_rest, _through_graphql, _through_sockets, _through_streams, _through_the_database)


async def _look_at_metrics(client: httpx2.AsyncClient, outputs: Outputs) -> None:
    """Add the metrics to the search: a label may contain a value from a request."""
    response = await client.get("/metrics", headers=DEV)
    response.raise_for_status()
    outputs.add("the metrics", response.text)


async def _look_into_tables(owner_url: str, outputs: Outputs) -> None:
    """Add all tables except those of the record, such as events and the audit log, to the search."""
    owner = await asyncpg.connect(owner_url)
    try:
        tables = await owner.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
            " WHERE schemaname IN ('patient_graph', 'gateway')"
            " AND tablename NOT IN ('encounters', 'encounter_versions', 'encounter_external_ids', 'idempotency_keys',"
            " 'patients', 'patient_external_ids')"
        )
        for table in tables:
            rows = await owner.fetch(f"SELECT row_to_json(t)::text AS row FROM {table['name']} t")  # noqa: S608 - the name comes from the catalogue
            outputs.add(f"table {table['name']}", "\n".join(row["row"] for row in rows))
    finally:
        await owner.close()


def _look_at_processes(outputs: Outputs) -> None:
    """Add the command lines to the search: PostgreSQL shows its current activity there."""
    for process in psutil.Process().children(recursive=True):
        try:
            outputs.add("the process list", " ".join(process.cmdline()))
        except psutil.Error:
            continue


def _keep(outputs: Outputs, where: str, response: httpx2.Response) -> None:
    """Add a response to the search, unless it may contain the record; its headers are always added."""
    headers = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
    outputs.add(f"{where}: headers", headers)
    shows = response.status_code == 201 or where.endswith("listed") or '"EncounterRecorded"' in response.text
    if shows:
        outputs.shown += MARK in response.text
    else:
        outputs.add(f"{where}: {response.status_code}", response.text)


def _with(**members: Any) -> str:
    return json.dumps(MARKED | members)
