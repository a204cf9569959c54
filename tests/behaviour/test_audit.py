"""The audit of reads and refusals over either door, and the buffer that inserts it."""

import ast
import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.audit import buffer
from gateway.audit.buffer import NOTES_DROPPED, AuditBuffer
from gateway.audit.chain_job import CHAIN_AUDIT, chaining
from gateway.audit.verify import Walk, verify
from gateway.database.database import RELAY_ROLE, Database
from gateway.database.migrate import migrate
from gateway.embedded_postgres.cluster import PrivatePostgres
from gateway.jobs import take_lease
from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.audit_notes import ENCOUNTERS_READ, REQUEST_REFUSED
from resolvers.encounters import read, record
from resolvers.errors import InvalidToken, TemporarilyUnavailable
from resolvers.services import AuditRecord
from tests.cast import Cast
from tests.conftest import GENEROUS_LIMITS, fresh_database
from tests.doors import Door, GraphQLDoor, RestDoor, Service
from tests.logs import captured_logs

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}
DOORS = pytest.mark.parametrize("kind", [RestDoor, GraphQLDoor], ids=["rest", "graphql"])


async def until(look: Callable[[], Awaitable[Any]], enough: Callable[[Any], bool]) -> Any:
    """Return the first result of `look` that is enough; fail after ten seconds."""
    for _ in range(500):
        if enough(seen := await look()):
            return seen
        await asyncio.sleep(0.02)
    raise AssertionError(f"not enough after ten seconds: {seen}")


class Clinic:
    """A service for clients of one test each, so that a test finds its own audit entries.

    A token is `<client> <brand> <scope> …`, with a dash for no brand.
    """

    def __init__(self, service: Service, connection: asyncpg.Connection) -> None:
        self.service = service
        self.connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, **settings: Any) -> AsyncIterator["Clinic"]:
        connection = await asyncpg.connect(url)
        async with Service.running(
            Settings(database_url=url, **GENEROUS_LIMITS, **settings), verify=cls.verify
        ) as service:
            yield cls(service, connection)
        await connection.close()

    @staticmethod
    async def verify(token: str) -> Caller:
        if " " not in token:
            raise InvalidToken
        client_id, brand_id, *scopes = token.split(" ")
        return Caller(client_id, frozenset(scopes), brand_id=None if brand_id == "-" else brand_id)

    async def audited(self, client_id: str, number: int = 1) -> list[dict[str, Any]]:
        """Return the audited reads and refusals of a client, once there are this many entries."""
        entries: list[dict[str, Any]] = await until(
            lambda: self._entries(client_id), lambda entries: len(entries) >= number
        )
        return entries

    async def all_audited(self, client_id: str) -> list[dict[str, Any]]:
        """Return all reads and refusals of a client that were audited until now."""
        # Records are inserted in order, so all earlier ones are there once this one is.
        last = await self.service.rest("GET", "/v1/patients/nobody/encounters?limit=0", token=f"{client_id} - admin:*")
        assert last.status_code == 400
        rules = ["whole_number"]
        entries: list[dict[str, Any]] = await until(
            lambda: self._entries(client_id), lambda entries: bool(entries) and entries[-1]["rules"] == rules
        )
        return entries[:-1]

    async def _entries(self, client_id: str) -> list[dict[str, Any]]:
        rows = await self.connection.fetch(
            "SELECT * FROM patient_graph.audit_log WHERE actor_id = $1"
            " AND event_type <> 'patient_graph.encounter.recorded' ORDER BY id",
            client_id,
        )
        details = [json.loads(row["details"]) for row in rows]
        return [{**row, "rules": each.get("rules"), "details": each} for row, each in zip(rows, details, strict=True)]

    async def wait_for_dropped(self, number: int) -> None:
        """Return once the audit log reports at least this many dropped records."""
        query = "SELECT sum((details->>'dropped')::int) FROM patient_graph.audit_log WHERE event_type = $1"
        await until(lambda: self.connection.fetchval(query, NOTES_DROPPED), lambda dropped: (dropped or 0) >= number)


@pytest.fixture(scope="module")
async def clinic(database_url: str) -> AsyncIterator[Clinic]:
    async with Clinic.open(database_url) as clinic:
        yield clinic


@pytest.fixture
def client() -> str:
    return f"client-{uuid4().hex[:12]}"


@pytest.fixture
def token(client: str) -> str:
    """A token with every permission in the brand `loop`."""
    return f"{client} loop admin:*"


# Reads


@DOORS
async def test_reading_a_list_is_audited_with_the_patient_and_the_count(
    clinic: Clinic, cast: Cast, client: str, token: str, kind: type[Door]
) -> None:
    door, patient_id = kind(clinic.service), await cast.patient()
    for _ in range(3):
        await door.record(patient_id, VISIT, token=token)

    await door.listed(patient_id, token=token)

    (entry,) = await clinic.all_audited(client)
    assert (entry["event_type"], entry["entity_type"], entry["entity_id"]) == (ENCOUNTERS_READ, "patient", patient_id)
    assert (entry["patient_id"], entry["brand_id"], entry["actor_brand_id"]) == (patient_id, "loop", "loop")
    assert (entry["actor_type"], entry["details"]) == ("service", {"encounters": 3})
    assert entry["request_id"]


async def test_an_audited_read_has_its_request_id(clinic: Clinic, cast: Cast, client: str, token: str) -> None:
    patient_id = await cast.patient()
    await RestDoor(clinic.service).record(patient_id, VISIT, token=token)

    headers = {"x-request-id": f"request-of-{client}"}
    await clinic.service.rest("GET", f"/v1/patients/{patient_id}/encounters", token=token, headers=headers)

    (entry,) = await clinic.audited(client)
    assert entry["request_id"] == f"request-of-{client}"


async def test_reading_encounters_of_several_patients_by_id_has_one_audit_entry(
    clinic: Clinic, cast: Cast, client: str, token: str
) -> None:
    patients = [await cast.patient() for _ in range(2)]
    ids = [
        (await RestDoor(clinic.service).record(patient_id, VISIT, token=token)).encounter["id"]
        for patient_id in [*patients, patients[0]]
    ]

    fields = " ".join(f'e{number}: encounter(id: "{each}") {{ notes }}' for number, each in enumerate(ids))
    await clinic.service.graphql(f"{{ {fields} }}", token=token)

    (entry,) = await clinic.all_audited(client)
    assert (entry["entity_type"], entry["entity_id"], entry["details"]["encounters"]) == ("worklist", None, 3)
    assert sorted(entry["details"]["patients"]) == sorted(patients)


async def test_reading_lists_of_several_patients_is_audited_in_one_entry(
    clinic: Clinic, cast: Cast, client: str, token: str
) -> None:
    patients = [await cast.patient() for _ in range(3)]
    for patient_id in patients[:2]:
        await RestDoor(clinic.service).record(patient_id, VISIT, token=token)

    query = "query ($ids: [ID!]!) { patients(ids: $ids) { encounters(first: 1) { nodes { id } edges { cursor } } } }"
    await clinic.service.graphql(query, {"ids": patients}, token=token)

    # Not the third: its list is empty.
    (entry,) = await clinic.all_audited(client)
    assert (entry["entity_type"], entry["entity_id"], entry["details"]["encounters"]) == ("worklist", None, 2)
    assert sorted(entry["details"]["patients"]) == sorted(patients[:2])


@DOORS
async def test_a_replay_is_audited_as_a_read(
    clinic: Clinic, cast: Cast, client: str, token: str, kind: type[Door]
) -> None:
    door, patient_id, key = kind(clinic.service), await cast.patient(), str(uuid4())
    await door.record(patient_id, VISIT, token=token, key=key)

    assert (await door.record(patient_id, VISIT, token=token, key=key)).replayed

    (entry,) = await clinic.all_audited(client)
    assert (entry["event_type"], entry["entity_id"], entry["details"]) == (
        ENCOUNTERS_READ,
        patient_id,
        {"encounters": 1},
    )
    assert await cast.count("audit_log", patient_id) == 1  # only the first recording was audited as a change


@DOORS
async def test_an_empty_list_is_not_audited(
    clinic: Clinic, cast: Cast, client: str, token: str, kind: type[Door]
) -> None:
    await kind(clinic.service).listed(await cast.patient(), token=token)

    assert await clinic.all_audited(client) == []


def test_every_function_that_returns_encounters_audits_the_read() -> None:
    modules = [ast.parse(Path(str(module.__file__)).read_text()) for module in (read, record)]
    calls = {
        function.name: {
            getattr(call.func, "attr", getattr(call.func, "id", None))
            for call in ast.walk(function)
            if isinstance(call, ast.Call)
        }
        for module in modules
        for function in module.body
        if isinstance(function, ast.AsyncFunctionDef | ast.FunctionDef)
    }
    readers = {name for name, called in calls.items() if "encounter_of" in called}

    assert readers >= {"encounters_by_ids", "list_encounters", "visible_encounter", "encounter_of_key"}
    # A function that changes an encounter audits the change instead.
    assert [name for name in readers if not calls[name] & {"note_read", "append_entry"}] == []


# Refusals

Ask = Callable[[Clinic, Door, str, str], Awaitable[Any]]


def recording(members: dict[str, Any], scopes: str = "loop admin:*", **options: Any) -> Ask:
    async def ask(_: Clinic, door: Door, client: str, patient_id: str) -> None:
        await door.record(patient_id, members, token=f"{client} {scopes}", **options)

    return ask


@DOORS
@pytest.mark.parametrize(
    ("ask", "details"),
    [
        (
            recording(VISIT, "loop read:encounters"),
            {"code": "insufficient_scope", "scopes": ["write:encounters"]},
        ),
        (recording(VISIT, brand_header="loopbio"), {"code": "forbidden"}),
        (recording(VISIT | {"brand_id": "loopbio"}), {"code": "forbidden"}),
        (recording(VISIT | {"notes": "\x00", "metadata": 5}), {"code": "validation_error", "rules": ["nul", "object"]}),
        (recording(VISIT, key="two words"), {"code": "validation_error", "rules": ["idempotency_key"]}),
    ],
)
async def test_a_refusal_is_audited_with_its_code_and_rules(  # noqa: PLR0917 - fixtures
    clinic: Clinic, cast: Cast, client: str, kind: type[Door], ask: Ask, details: dict[str, Any]
) -> None:
    await ask(clinic, kind(clinic.service), client, await cast.patient())

    (entry,) = await clinic.all_audited(client)
    assert (entry["event_type"], entry["entity_type"], entry["entity_id"]) == (REQUEST_REFUSED, "request", None)
    assert (entry["patient_id"], entry["brand_id"], entry["actor_brand_id"]) == ("", "loop", "loop")
    assert entry["details"] == details


@DOORS
async def test_a_request_for_an_unknown_patient_is_audited_without_the_id(
    clinic: Clinic, cast: Cast, client: str, token: str, kind: type[Door]
) -> None:
    await kind(clinic.service).record("nobody", VISIT, token=token)
    await kind(clinic.service).record(await cast.patient("loopbio"), VISIT, token=token)

    entries = await clinic.all_audited(client)
    assert [(entry["patient_id"], entry["details"]) for entry in entries] == [("", {"code": "not_found"})] * 2


@DOORS
async def test_reuse_of_a_key_for_another_request_is_audited(
    clinic: Clinic, cast: Cast, client: str, token: str, kind: type[Door]
) -> None:
    door, patient_id, key = kind(clinic.service), await cast.patient(), str(uuid4())
    await door.record(patient_id, VISIT, token=token, key=key)
    await door.record(patient_id, VISIT | {"notes": "Other."}, token=token, key=key)

    (entry,) = await clinic.all_audited(client)
    assert entry["details"] == {"code": "idempotency_key_payload_mismatch"}


@pytest.mark.parametrize(
    ("method", "path", "options", "code"),
    [
        ("GET", "/v1/nothing", {}, "not_found"),
        ("DELETE", "/v1/patients/p/encounters", {}, "method_not_allowed"),
        ("POST", "/v1/patients/p/encounters", {"content": "x"}, "unsupported_media_type"),
        ("POST", "/v1/patients/p/encounters", {"json": []}, "validation_error"),
        ("GET", "/v1/patients/p/encounters", {"headers": {"origin": "https://evil.example"}}, "forbidden"),
        ("PUT", "/graphql", {}, "method_not_allowed"),
        ("POST", "/graphql", {"content": "x"}, "unsupported_media_type"),
        ("POST", "/graphql", {"json": {"query": 5}}, "validation_error"),
        ("POST", "/graphql", {"json": {"query": "{"}}, "validation_error"),
        ("POST", "/graphql", {"json": {"query": "{ nothing }"}}, "validation_error"),
        ("GET", "/graphql?query={__typename}", {"headers": {"accept": "text/csv"}}, "not_acceptable"),
        ("POST", "/graphql", {"json": {"query": "query ($i: ID!) { patient(id: $i) { id } }"}}, "validation_error"),
    ],
)
async def test_a_refusal_before_the_resolvers_is_audited(  # noqa: PLR0917 - fixtures
    clinic: Clinic, client: str, token: str, method: str, path: str, options: dict[str, Any], code: str
) -> None:
    response = await clinic.service.rest(method, path, token=token, **options)

    assert response.status_code >= 400 or "errors" in response.json()
    (entry,) = await clinic.all_audited(client)
    assert entry["details"]["code"] == code


@pytest.mark.parametrize("path", ["/v1/nothing", "/graphql?query={__typename}"])
async def test_rate_limited_requests_have_one_audit_entry_with_a_count(
    database_url: str, cast: Cast, client: str, path: str
) -> None:
    """An audit log that cannot be pruned must not grow with the requests of one client."""
    settings = Settings(database_url=database_url, rate_reads_per_minute=1)
    async with Service.running(settings, verify=Clinic.verify) as service:
        for brand_id in ["loop"] * 200 + ["loopbio"]:
            await service.rest("GET", path, token=f"{client} {brand_id} admin:*")

    counted = [each for each in await entries_of(cast, client) if each["entity_type"] == "client"]
    assert [(each["event_type"], each["entity_id"]) for each in counted] == [(REQUEST_REFUSED, client)] * 2
    assert [(each["brand_id"], json.loads(each["details"])) for each in counted] == [
        ("loop", {"code": "rate_limited", "count": 199}),
        ("loopbio", {"code": "rate_limited", "count": 1}),
    ]


@pytest.mark.parametrize("sent", [None, "invalid"])
async def test_an_unauthenticated_request_is_not_audited(
    clinic: Clinic, sent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[AuditRecord] = []
    monkeypatch.setattr(AuditBuffer, "record", lambda _, audit_record: recorded.append(audit_record))

    for path in ("/v1/patients/p/encounters", "/v1/nothing", "/graphql"):
        assert (await clinic.service.rest("GET", path, token=sent)).status_code == 401

    assert recorded == []


async def test_a_refusal_has_no_brand_if_only_the_request_names_it(clinic: Clinic, cast: Cast, client: str) -> None:
    await RestDoor(clinic.service).record(
        "nobody", VISIT | {"brand_id": "made-up"}, token=f"{client} - admin:*", brand_header="made-up"
    )

    (entry,) = await clinic.all_audited(client)
    assert (entry["brand_id"], entry["actor_brand_id"]) == ("", None)


async def test_fields_refused_for_the_same_reason_have_one_audit_entry(clinic: Clinic, client: str) -> None:
    fields = " ".join(f'e{number}: encounter(id: "{uuid4()}") {{ id }}' for number in range(50))

    await clinic.service.graphql(f"{{ {fields} }}", token=f"{client} loop read:patients")

    assert len(await clinic.all_audited(client)) == 1


async def test_no_audit_entry_contains_text_of_the_caller(clinic: Clinic, cast: Cast, client: str, token: str) -> None:
    mark = "xyzzy"
    known = await cast.patient()
    for door in (RestDoor(clinic.service), GraphQLDoor(clinic.service)):
        for patient_id in (known, mark):
            for member in ("brand_id", "encounter_type", "provider_id", "scheduled_at", "metadata", mark):
                await door.record(patient_id, VISIT | {member: mark}, token=token, key=mark)
            for text in (mark + "\x00", mark * 50_000):
                await door.record(patient_id, VISIT | {"notes": text, "chief_complaint": text}, token=token)
            await door.record(patient_id, VISIT, token=token, brand_header=mark)
        await door.record(known, VISIT | {"notes": mark, "metadata": {mark: mark}}, token=token, key=f"{mark} {mark}")
    for query in (f"{{ {mark} }}", f'{{ patient(id: "{mark}") {{ {mark} }} }}', f"query {mark}($x: {mark}) {{ a }}"):
        await clinic.service.graphql(query, {mark: mark}, token=token)
    for method, path in ((mark, "/graphql"), ("GET", f"/v1/{mark}"), ("GET", f"/v1/patients/{mark}/encounters?{mark}")):
        await clinic.service.rest(method, path, token=token, headers={"origin": f"https://{mark}.example"})
        await clinic.service.rest(method, path, token=token, headers={"accept": mark, "content-type": mark})

    entries = await clinic.all_audited(client)
    assert len(entries) > 30
    assert mark not in str(entries)


# Effect on requests


@asynccontextmanager
async def blocked_buffer(service: Service) -> AsyncIterator[AuditBuffer]:
    """Keep the buffer from inserting: the test holds its only connection."""
    audit_buffer: AuditBuffer = service.services.audit_sink
    async with audit_buffer._database.unscoped():
        yield audit_buffer


@DOORS
async def test_a_full_audit_buffer_delays_no_write_and_its_loss_is_audited(
    server_url: str, client: str, token: str, kind: type[Door]
) -> None:
    url = await fresh_database(server_url)
    async with Clinic.open(url, audit_queue=4) as clinic:
        cast, door = Cast(clinic.connection), kind(clinic.service)
        patient_id = await cast.patient()
        await door.record(patient_id, VISIT, token=token)
        with captured_logs() as logged:
            async with blocked_buffer(clinic.service), asyncio.timeout(5):
                for _ in range(10):
                    await door.listed(patient_id, token=token)
                outcomes = [await door.record(patient_id, VISIT, token=token) for _ in range(20)]
            await clinic.wait_for_dropped(6)

        assert {outcome.code for outcome in outcomes} == {None}
        assert await cast.count("encounters", patient_id) == 21
        assert len(await clinic.audited(client, 4)) == 4
        assert sum(line.get("dropped", 0) for line in logged if line["event"] == "trail") == 6


@DOORS
async def test_audit_records_survive_an_outage_of_the_database(
    tmp_path: Path, client: str, token: str, kind: type[Door]
) -> None:
    with PrivatePostgres(tmp_path, durable=False) as postgres:
        await migrate(postgres.url())
        async with Clinic.open(postgres.url()) as clinic:
            cast, door = Cast(clinic.connection), kind(clinic.service)
            patient_id = await cast.patient()

            async def record(**changed: Any) -> str | None:
                return (await door.record(patient_id, VISIT | changed, token=token)).code

            before = [await record() for _ in range(3)]
            postgres.stop()
            refused = [await record(notes=5) for _ in range(5)]
            away = [await record() for _ in range(3)]
            postgres.start()

            clinic.connection = cast.connection = await asyncpg.connect(postgres.url())
            after = await until(record, lambda code: code is None)
            entries = await clinic.audited(client, 5)
            recorded = await cast.count("encounters", patient_id)
            changes = await clinic.connection.fetchval(
                "SELECT count(*) FROM patient_graph.audit_log WHERE patient_id = $1", patient_id
            )
            await clinic.connection.close()

    assert [*before, after] == [None] * 4
    assert set(away) == {"temporarily_unavailable"}
    assert refused == ["validation_error"] * 5
    assert [entry["details"]["code"] for entry in entries] == ["validation_error"] * 5
    assert recorded == changes == 4


async def test_shutdown_inserts_the_remaining_audit_records(
    database_url: str, cast: Cast, client: str, token: str
) -> None:
    async with Clinic.open(database_url) as clinic:
        for _ in range(3):
            await clinic.service.rest("GET", "/v1/nothing", token=token)

    written = await cast.connection.fetchval("SELECT count(*) FROM patient_graph.audit_log WHERE actor_id = $1", client)
    assert written == 3


async def test_the_flush_at_shutdown_has_a_deadline(
    database_url: str, client: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer, "FLUSH_SECONDS", 0.2)
    async with Clinic.open(database_url) as clinic:
        held = await clinic.service.services.audit_sink._database._pool.acquire(1)
        await clinic.service.rest("GET", "/v1/nothing", token=token)
        stopping = asyncio.create_task(clinic.service.services.audit_sink.flush())
        async with asyncio.timeout(3):
            await stopping
        clinic.service.services.audit_sink._database._pool.release(held)


# The buffer


@pytest.fixture
async def audit_buffer(database_url: str) -> AsyncIterator[AuditBuffer]:
    """A buffer that inserts only when the test flushes it."""
    database = await Database.connect(database_url, role="gateway_app", size=1, acquire_seconds=1, statement_seconds=5)
    yield AuditBuffer(database, capacity=10)
    await database.close()


def audit_record(client: str, event_type: str = ENCOUNTERS_READ, brand_id: str = "loop", **changed: Any) -> AuditRecord:
    audit_record = AuditRecord(
        event_type, "user", client, brand_id, "patient", "p", "p", brand_id, "request", {"encounters": 1}
    )
    return audit_record._replace(**changed)


async def entries_of(cast: Cast, client: str) -> list[dict[str, Any]]:
    rows = await cast.connection.fetch(
        "SELECT *, now() - occurred_at AS age FROM patient_graph.audit_log WHERE actor_id = $1 ORDER BY id", client
    )
    return [dict(row) for row in rows]


async def test_refusals_fill_at_most_half_of_the_audit_buffer(
    audit_buffer: AuditBuffer, cast: Cast, client: str
) -> None:
    for _ in range(100):
        audit_buffer.record(audit_record(client, REQUEST_REFUSED))
    for _ in range(100):
        audit_buffer.record(audit_record(client, ENCOUNTERS_READ))
    await audit_buffer.flush()

    kinds = [entry["event_type"] for entry in await entries_of(cast, client)]
    assert kinds == [REQUEST_REFUSED] * 5 + [ENCOUNTERS_READ] * 5


async def test_a_count_is_inserted_when_its_minute_ends(
    audit_buffer: AuditBuffer, cast: Cast, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer, "COUNT_SECONDS", 0)
    writing = asyncio.create_task(audit_buffer.write())
    for _ in range(50):
        audit_buffer.record(audit_record(client, REQUEST_REFUSED, entity_id=client, details={"code": "rate_limited"}))

    (entry,) = await until(lambda: entries_of(cast, client), bool)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert json.loads(entry["details"]) == {"code": "rate_limited", "count": 50}


async def test_dropped_records_are_audited_for_each_brand(audit_buffer: AuditBuffer, cast: Cast) -> None:
    ours, theirs = f"brand-{uuid4().hex}", f"brand-{uuid4().hex}"
    for brand_id in (ours, theirs, theirs):
        for _ in range(10):
            audit_buffer.record(audit_record("somebody", brand_id=brand_id))
    await audit_buffer.flush()

    rows = await cast.connection.fetch(
        "SELECT brand_id, patient_id, actor_type, details FROM patient_graph.audit_log WHERE event_type = $1"
        " AND brand_id = ANY($2)",
        NOTES_DROPPED,
        [ours, theirs],
    )
    assert [tuple(row) for row in rows] == [(theirs, "", "system", '{"dropped": 20}')]


async def test_a_full_batch_is_inserted_without_waiting(
    audit_buffer: AuditBuffer, cast: Cast, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a busy process would insert slower than it records, and drop the rest."""
    monkeypatch.setattr(buffer, "GATHER_SECONDS", 3600)
    monkeypatch.setattr(buffer, "BATCH_SIZE", 3)
    for _ in range(6):
        audit_buffer.record(audit_record(client))
    writing = asyncio.create_task(audit_buffer.write())

    await until(lambda: entries_of(cast, client), lambda kept: len(kept) == 6)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_an_invalid_audit_record_does_not_block_the_others(
    audit_buffer: AuditBuffer, cast: Cast, client: str
) -> None:
    for request_id in ("one", "\x00", "\ud800", "two"):
        audit_buffer.record(audit_record(client, request_id=request_id))
    await audit_buffer.flush()

    assert [entry["request_id"] for entry in await entries_of(cast, client)] == ["one", "two"]


async def test_an_insert_without_a_confirmed_commit_is_not_repeated(
    audit_buffer: AuditBuffer, cast: Cast, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = audit_buffer._insert

    async def insert_and_fail(brand_id, records):
        await insert(brand_id, records)
        monkeypatch.undo()
        raise TemporarilyUnavailable

    monkeypatch.setattr(audit_buffer, "_insert", insert_and_fail)
    audit_buffer.record(audit_record(client))
    await audit_buffer.flush()

    assert len(await entries_of(cast, client)) == 1


async def test_an_audit_entry_has_the_time_of_its_record_unless_too_late(
    audit_buffer: AuditBuffer, cast: Cast, client: str
) -> None:
    for age in (60, buffer.LATE_SECONDS + 60):
        audit_buffer.record(audit_record(client))
        audit_buffer._queue[-1] = audit_buffer._queue[-1]._replace(left_at=audit_buffer._queue[-1].left_at - age)
    await audit_buffer.flush()

    on_time, late = await entries_of(cast, client)
    assert 59 < on_time["age"].total_seconds() < 70
    assert late["age"].total_seconds() < 10
    assert json.loads(late["details"]) == {"encounters": 1, "late_seconds": 360}


# Everything together


async def test_the_audit_log_of_a_busy_gateway_verifies(server_url: str, client: str, token: str) -> None:
    url = await fresh_database(server_url)
    key = b"sixteen or more bytes"
    async with Clinic.open(url, audit_key=key.decode()) as clinic:
        patients = [await Cast(clinic.connection).patient() for _ in range(3)]

        async def visit(number: int) -> None:
            door = (RestDoor, GraphQLDoor)[number % 2](clinic.service)
            await door.record(patients[number % 3], VISIT, token=token, key=str(number // 2))
            await door.record("nobody", VISIT, token=token)
            await door.listed(patients[number % 3], token=token)

        await asyncio.gather(*(visit(number) for number in range(40)))
        entries = await clinic.all_audited(client)

    relay = await Database.connect(url, role=RELAY_ROLE, size=2, acquire_seconds=10, statement_seconds=20)
    await until(lambda: take_lease(relay, CHAIN_AUDIT, uuid4()), bool)
    while await chaining(key)(relay):
        pass
    await relay.close()

    walk = Walk(key)
    assert [finding async for finding in verify(url, walk)] == []
    assert walk.links > len(entries) >= 80
