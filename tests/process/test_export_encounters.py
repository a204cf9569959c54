"""`gateway encounters export` and `gateway patients export`: round trips, snapshots, interruptions, audit entries."""

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.exporters.encounters import Format, export_encounters
from gateway.exporters.output import ExportStopped, FileOutput, part_of, state_of
from gateway.exporters.patients import export_patients
from gateway.exporters.snapshot import PAGE_ROWS
from gateway.importers.encounters import import_encounters
from gateway.importers.patients import import_patients
from gateway.settings import Settings
from resolvers.ids import new_id
from tests.cast import Cast
from tests.conftest import fresh_database
from tests.doors import Service
from tests.forked_gateway import run_gateway
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
FORMATS = ["jsonl", "csv"]
MARKER = "tuberculosis"


class World(NamedTuple):
    """A database of its own, because an export has all encounters of a brand."""

    url: str
    settings: Settings
    cast: Cast

    async def encounters(self, brand_id: str = "loop") -> list[dict[str, Any]]:
        """Return all columns of the brand's encounters, as PostgreSQL writes them."""
        rows = await self.cast.connection.fetch(
            "SELECT to_jsonb(e) || jsonb_build_object('metadata', e.metadata::text) AS row"
            " FROM patient_graph.encounters e WHERE brand_id = $1 ORDER BY created_at, id",
            brand_id,
        )
        return [json.loads(row["row"]) for row in rows]

    async def audit(self, *event_types: str) -> list[dict[str, Any]]:
        """Return the audit entries of these types, oldest first."""
        rows = await self.cast.connection.fetch(
            "SELECT * FROM patient_graph.audit_log WHERE event_type = ANY($1) ORDER BY occurred_at, id", event_types
        )
        return [{**row, "details": json.loads(row["details"])} for row in rows]


async def new_world(server_url: str) -> World:
    url = await fresh_database(server_url)
    settings = Settings(database_url=url, database_unsafe=True)
    return World(url, settings, Cast(await asyncpg.connect(url)))


@pytest.fixture
async def world(server_url: str) -> AsyncIterator[World]:
    world = await new_world(server_url)
    yield world
    await world.cast.connection.close()


@pytest.fixture
async def other_world(server_url: str) -> AsyncIterator[World]:
    world = await new_world(server_url)
    yield world
    await world.cast.connection.close()


BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


async def fill(world: World, number: int, patients: Sequence[str] | None = None, brand_id: str = "loop") -> list[UUID]:
    """Insert encounters, a second apart, and return their ids."""
    patients = patients or [await world.cast.patient(brand_id) for _ in range(3)]
    ids = [new_id() for _ in range(number)]
    await world.cast.connection.executemany(
        "INSERT INTO patient_graph.encounters"
        " (patient_id, id, brand_id, encounter_type, notes, created_at, updated_at)"
        " VALUES ($1, $2, $3, 'lab', $4, $5, $5)",
        [
            (patients[place % len(patients)], each, brand_id, f"{MARKER} {place}", BEGIN + timedelta(seconds=place))
            for place, each in enumerate(ids)
        ],
    )
    return ids


async def export(world: World, file: Path, **options: Any) -> str:
    file_format: Format = "csv" if file.suffix == ".csv" else "jsonl"
    given: dict[str, Any] = {"brand_id": "loop", "file_format": file_format, "actor": "alice", **options}
    return await export_encounters(world.settings, file, **given)


def ids_in(file: Path) -> list[str]:
    if file.suffix == ".csv":
        return [row["id"] for row in csv.DictReader(io.StringIO(file.read_text(), newline=""))]
    return [json.loads(line)["id"] for line in file.read_text().splitlines()]


def names_in(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


# Round trips

HOSTILE = [
    "",
    " ",
    '"',
    '""',
    "a,b\nc\r\nd\re",
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2",
    "@SUM(A1)",
    "\t=1",
    "🩺 größe \u2028 \u2029 \x85 \u202e",
    "\ufeff",
    "null",
    "\\N",
    "\x01\x1f\x7f",
    "'; DROP TABLE encounters; --",
]
METADATA = """{
    "a": 1.0, "b": 12345678901234567890.12345678901234567890, "c": 1e-30, "d": 100000000000000000000000,
    "ö\\"": ["\\n,\\"", null, true, {}]
}"""


async def record_everything(service: Service) -> str:
    """Record encounters in every status and with hostile texts, over GraphQL, and return their patient."""
    patient_id = (await service.graphql(REGISTER, {"id": f"patient-{uuid4().hex[:12]}"}))["data"]["registerPatient"][
        "patient"
    ]["id"]
    ids = []
    for text in HOSTILE:
        members = {"notes": text, "chiefComplaint": text[::-1], "externalIds": {"emr": f"x{text}"}}
        ids.append(await record(service, patient_id, members))
    actions = ["start", "start", "start", "cancel", "markNoShow", "markEnteredInError", "cancel", "start"]
    ids += [await record(service, patient_id, {}) for _ in actions]
    for number, action in enumerate(actions):
        await act(service, ids[-1 - number], action)
    await act(service, ids[-1], "complete")
    await act(service, ids[-2], "markEnteredInError")
    await act(service, ids[-8], "cancel")
    await act(service, ids[-4], "markEnteredInError")
    await service.graphql(
        "mutation ($id: ID!) { amendEncounter(id: $id, input: {notes: null}) { __typename } }", {"id": ids[3]}
    )
    return patient_id


REGISTER = """mutation ($id: ID!) {
  registerPatient(input: {id: $id, brandId: "loop", externalIds: {emr: "7"}}) {
    ... on PatientRegistered { patient { id } }
  }
}"""


async def record(service: Service, patient_id: str, members: Mapping[str, Any]) -> str:
    answer = await service.graphql(
        "mutation ($patientId: ID!, $input: RecordEncounterInput!) { recordEncounter(patientId: $patientId,"
        " input: $input) { ... on EncounterRecorded { encounter { id } } ... on Problem { message } } }",
        {"patientId": patient_id, "input": {"brandId": "loop", "encounterType": "LAB", **members}},
    )
    return answer["data"]["recordEncounter"]["encounter"]["id"]


async def act(service: Service, encounter_id: str, action: str) -> None:
    reason = ', reason: "a mistake"' if action == "markEnteredInError" else ""
    name = {"markNoShow": "markEncounterNoShow", "markEnteredInError": "markEncounterEnteredInError"}.get(
        action, f"{action}Encounter"
    )
    answer = await service.graphql(
        f"mutation ($id: ID!) {{ {name}(id: $id{reason}) {{ __typename }} }}", {"id": encounter_id}
    )
    assert answer["data"][name]["__typename"] == "EncounterChanged"


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("cluster", [False, True])
async def test_the_import_of_an_export_gives_the_same_table(
    world: World, other_world: World, tmp_path: Path, *, file_format: str, cluster: bool
) -> None:
    async with Service.running(world.settings) as service:
        patient_id = await record_everything(service)
    # Digits that a client's JSON library could round, a second patient, and the ends of the calendar.
    await world.cast.connection.execute("UPDATE patient_graph.encounters SET metadata = $1 WHERE notes = ''", METADATA)
    await fill(world, 5)
    await world.cast.connection.execute(
        "UPDATE patient_graph.encounters SET scheduled_at = '0001-01-01T00:00:00Z' WHERE id IN"
        " (SELECT id FROM patient_graph.encounters ORDER BY id LIMIT 1)"
    )
    file = tmp_path / f"e.{file_format}"
    restoring = other_world.settings.model_copy(update={"database_cluster": cluster})

    closing = await export(world, file)
    await export_patients(world.settings, tmp_path / "p.jsonl", brand_id="loop", actor="alice")
    patients = await import_patients(other_world.url, tmp_path / "p.jsonl")
    done = [str(await import_encounters(restoring, file, restore=True)) for _ in range(2)]

    expected = await world.encounters()
    number = len(HOSTILE) + 8 + 5
    assert len(expected) == number
    assert {row["status"] for row in expected} == {
        "scheduled", "completed", "in_progress", "entered_in_error", "cancelled", "no_show"
    }  # fmt: skip
    assert closing == f"{number} encounters exported"
    assert (patients.registered, patients.refused) == (4, 0)
    assert done == [
        f"{number} encounters recorded, 0 recorded already, 0 lines refused",
        f"0 encounters recorded, {number} recorded already, 0 lines refused",
    ]
    assert await other_world.encounters() == expected
    async with Service.running(other_world.settings) as service:
        found = await service.graphql(
            'query ($value: String!) { encountersByExternalId(system: "emr", value: $value) { patientId notes } }',
            {"value": f"x{HOSTILE[4]}"},
        )
    assert found["data"]["encountersByExternalId"] == [{"patientId": patient_id, "notes": HOSTILE[4]}]
    again = tmp_path / f"again.{file_format}"
    await export(other_world, again)
    assert again.read_bytes() == file.read_bytes()


async def test_a_line_without_restore_is_a_new_encounter(world: World, tmp_path: Path) -> None:
    await fill(world, 2)
    await export(world, tmp_path / "e.jsonl")

    done = await import_encounters(world.settings, tmp_path / "e.jsonl")

    assert str(done) == (
        "2 encounters recorded, 0 recorded already, 0 lines refused; ignored: id, created_at, updated_at, version"
    )
    assert len(await world.encounters()) == 4


async def test_restored_encounters_have_an_audit_entry_a_version_and_an_event(
    world: World, other_world: World, tmp_path: Path
) -> None:
    patient_id = await world.cast.patient()
    await fill(world, 1, [patient_id])
    await world.cast.connection.execute("UPDATE patient_graph.encounters SET version = 3, status = 'entered_in_error'")
    await export(world, tmp_path / "e.csv")
    await other_world.cast.connection.execute(
        "INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loop')", patient_id
    )

    await import_encounters(other_world.settings, tmp_path / "e.csv", restore=True)

    (entry,) = await other_world.audit("patient_graph.encounter.recorded")
    assert (entry["details"], entry["actor_id"], entry["patient_id"]) == ({"restored": True}, "import", patient_id)
    version = await other_world.cast.connection.fetchrow("SELECT * FROM patient_graph.encounter_versions")
    assert (version["version"], version["kind"], version["changed_at"]) == (3, "recorded", BEGIN)
    payload = await other_world.cast.connection.fetchval("SELECT payload FROM patient_graph.outbox")
    assert json.loads(payload)["recorded_at"].startswith("2024-01-01T00:00:00")
    # Every encounter has its entry.
    assert (await run(other_world, "audit", "verify"))[0] == 0


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"notes": "Another text."}, "The encounter exists with other values."),
        ({"patient_id": "another"}, "The encounter exists with other values."),
        ({"id": str(new_id()), "patient_id": "somebody"}, "The patient was not found."),
        ({"id": str(uuid4())}, "id must be a UUID of version 7 in its hyphenated form (uuid)"),
        ({"version": 0}, "version must be a whole number from 1 to 2147483647 (type)"),
        ({"version": "2"}, "version must be a whole number from 1 to 2147483647 (type)"),
        ({"created_at": "2024-01-01T00:00:00"}, "created_at must end in an offset such as Z or +01:00 (offset)"),
        ({"status": "completed"}, "ended_at is required with this status (recorded_status)"),
    ],
)
@pytest.mark.parametrize("cluster", [False, True])
async def test_a_line_that_cannot_be_restored_is_refused(
    world: World, tmp_path: Path, members: dict[str, Any], reason: str, *, cluster: bool
) -> None:
    await fill(world, 1)
    await world.cast.connection.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ('another', 'loop')")
    before = await world.encounters()
    file = tmp_path / "e.jsonl"
    await export(world, file)
    file.write_text(json.dumps(json.loads(file.read_text()) | members))

    restoring = world.settings.model_copy(update={"database_cluster": cluster})
    done = await import_encounters(restoring, file, restore=True)

    assert (done.recorded, done.already, done.refused) == (0, 0, 1)
    rejected = json.loads((tmp_path / "e.jsonl.rejects.jsonl").read_text())
    assert reason in rejected["reason"]
    assert await world.encounters() == before


# One brand, in one snapshot


async def test_an_export_has_one_brand(world: World, tmp_path: Path) -> None:
    ids = {brand: await fill(world, 3, brand_id=brand) for brand in ("loop", "loopbio")}

    for brand, expected in ids.items():
        await export(world, tmp_path / f"{brand}.jsonl", brand_id=brand)
        assert ids_in(tmp_path / f"{brand}.jsonl") == [str(each) for each in expected]


@pytest.mark.parametrize("file_format", FORMATS)
async def test_an_export_without_encounters_is_an_empty_file(world: World, tmp_path: Path, file_format: str) -> None:
    await world.cast.patient()

    assert await export(world, tmp_path / f"e.{file_format}") == "0 encounters exported"

    assert ids_in(tmp_path / f"e.{file_format}") == []
    done = await import_encounters(world.settings, tmp_path / f"e.{file_format}", restore=file_format == "csv")
    assert str(done) == "0 encounters recorded, 0 recorded already, 0 lines refused"


async def test_an_export_behind_a_pooler_in_transaction_mode_is_the_same(world: World, tmp_path: Path) -> None:
    expected = await fill(world, 1_000)
    pooled = Settings(
        database_url=f"{world.url}{'&' if '?' in world.url else '?'}pool_mode=transaction", database_unsafe=True
    )

    await export(world._replace(settings=pooled), tmp_path / "e.jsonl")

    assert ids_in(tmp_path / "e.jsonl") == [str(each) for each in expected]


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "GATEWAY_DATABASE_URL": url, "GATEWAY_DATABASE_UNSAFE": "true"}


def command(world: World, *arguments: str | Path, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Start an export of the brand `loop` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", "encounters", "export", *arguments, "--brand=loop"],
        cwd=ROOT,
        env=environment(world.url),
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
    )


async def run(world: World, *arguments: str | Path) -> tuple[int, str, str]:
    """Run a command to its end; return the exit code, standard output and standard error."""
    return await asyncio.to_thread(run_gateway, [*map(str, arguments)], env=environment(world.url))


async def change(service: Service, encounter_id: object) -> None:
    answer = await service.graphql(
        'mutation ($id: ID!) { amendEncounter(id: $id, input: {notes: "Changed."}) { __typename } }',
        {"id": str(encounter_id)},
    )
    assert answer["data"]["amendEncounter"]["__typename"] == "EncounterChanged"


async def test_an_export_is_one_snapshot_under_load(world: World) -> None:
    patients = [await world.cast.patient() for _ in range(3)]
    ids = await fill(world, 5_000, patients)
    expected = [(str(each), f"{MARKER} {place}") for place, each in enumerate(ids)]
    process = command(world, "-")
    assert process.stdout is not None
    # The export waits until the pipe is read, with most of its lines still in the database.
    lines = [await asyncio.to_thread(process.stdout.readline)]

    async with Service.running(world.settings) as service:
        for number in range(100):
            await record(service, patients[0], {"notes": str(number)})
            await change(service, ids[-1 - number])
    lines += await asyncio.to_thread(process.stdout.readlines)
    _, errors = await asyncio.to_thread(process.communicate)

    assert (process.returncode, errors) == (0, b"5000 encounters exported\n")
    assert [(line["id"], line["notes"]) for line in map(json.loads, lines)] == expected


# Interrupted exports


async def many(world: World, number: int) -> list[str]:
    """Insert encounters in one statement, and return their ids in order."""
    patient_id = await world.cast.patient()
    await world.cast.connection.execute(
        "INSERT INTO patient_graph.encounters"
        " (patient_id, id, brand_id, encounter_type, notes, created_at, updated_at)"
        " SELECT $1, gen_random_uuid(), 'loop', 'lab', 'line one' || chr(10) || i, at, at"
        " FROM generate_series(1, $2::integer) i, LATERAL (SELECT $3::timestamptz + i / 3 * interval '1 s' AS at) at",
        patient_id,
        number,
        BEGIN,
    )
    rows = await world.cast.connection.fetch(
        "SELECT id FROM patient_graph.encounters WHERE patient_id = $1 ORDER BY created_at, id", patient_id
    )
    return [str(row["id"]) for row in rows]


def checkpoints(file: Path) -> int:
    try:
        return len(json.loads(state_of(file).read_text())["checkpoints"])
    except FileNotFoundError:
        return 0


async def kill_after(world: World, file: Path, number: int) -> None:
    """Start or resume an export, and kill it when its state has this number of checkpoints."""
    process = command(world, file, "--resume")
    await wait_until(lambda: checkpoints(file) >= number or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.communicate)
    assert file.name not in names_in(file.parent)


@pytest.mark.parametrize("file_format", FORMATS)
async def test_an_export_killed_repeatedly_has_each_encounter_once(
    world: World, tmp_path: Path, file_format: str
) -> None:
    ids = await many(world, 60_000)
    file = tmp_path / f"e.{file_format}"
    for number in (1, 2, 4):
        await kill_after(world, file, number)
        # The rest of a line, as after a power cut.
        with part_of(file).open("ab") as stream:
            stream.write(b'{"id": "')

    code, out, errors = await run(world, "encounters", "export", file, "--brand=loop", "--resume")

    assert code == 0, errors
    total, before = (int(part.split()[0]) for part in out.split(", "))
    assert total == 60_000
    assert 40_000 <= before < 60_000
    assert ids_in(file) == ids
    assert file.stat().st_mode & 0o777 == 0o600
    assert names_in(tmp_path) == [file.name]


async def test_a_resumed_export_is_one_snapshot_of_its_last_start(world: World, tmp_path: Path) -> None:
    ids = await many(world, 40_000)
    file = tmp_path / "e.jsonl"
    await kill_after(world, file, 2)
    async with Service.running(world.settings) as service:
        await change(service, ids[15_000])
        (patient_id,) = {row["patient_id"] for row in await world.cast.connection.fetch(ONE)}
        new = await record(service, patient_id, {})

    closing = await export(world, file, resume=True)

    # The checkpoint after the changed encounter is discarded.
    assert closing == "40001 encounters exported, 10240 of them before"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["id"] for line in lines] == [*ids, new]
    assert [place for place, line in enumerate(lines) if line.get("notes") == "Changed."] == [15_000]


ONE = "SELECT patient_id FROM patient_graph.encounters LIMIT 1"


async def test_a_resumed_export_begins_again_after_deletions(world: World, tmp_path: Path) -> None:
    ids = await many(world, 30_000)
    file = tmp_path / "e.jsonl"
    await kill_after(world, file, 1)
    await world.cast.connection.execute("DELETE FROM patient_graph.encounters WHERE id = $1", UUID(ids[5]))

    assert await export(world, file, resume=True) == "29999 encounters exported"

    assert ids_in(file) == [*ids[:5], *ids[6:]]


async def test_an_interrupted_export_is_only_resumed_as_the_same_export(world: World, tmp_path: Path) -> None:
    await many(world, 30_000)
    await fill(world, 1, brand_id="loopbio")
    file = tmp_path / "e.jsonl"
    await kill_after(world, file, 1)

    with pytest.raises(ExportStopped, match="continue it with --resume, or begin again with --force"):
        await export(world, file)
    for options, name in (({"brand_id": "loopbio"}, "brand"), ({"file_format": "csv"}, "format")):
        with pytest.raises(ExportStopped, match=f"was begun with another {name}; begin again with --force"):
            await export(world, file, resume=True, **options)

    assert await export(world, file, force=True, brand_id="loopbio") == "1 encounter exported"


async def test_the_state_of_an_interrupted_export_has_nothing_clinical(world: World, tmp_path: Path) -> None:
    (patient_id,) = [await world.cast.patient()]
    # One checkpoint, and enough rows after it that the process is killed before the end.
    await fill(world, 19_900, [patient_id])
    file = tmp_path / "e.jsonl"
    await kill_after(world, file, 1)

    state = json.loads(state_of(file).read_text())

    assert state.keys() == {"about", "checkpoints"}
    assert state["about"].keys() == {"rows", "brand", "format", "snapshot_at"}
    ((rows, size, (created_at, last)),) = state["checkpoints"]
    lines = part_of(file).read_bytes()[:size].splitlines()
    assert len(lines) == rows
    assert {"id": last, "created_at": created_at}.items() <= json.loads(lines[-1]).items()
    assert {state_of(file).stat().st_mode & 0o777, part_of(file).stat().st_mode & 0o777} == {0o600}


async def test_a_signal_interrupts_an_export(world: World, tmp_path: Path) -> None:
    ids = await many(world, 30_000)
    file = tmp_path / "e.jsonl"
    process = command(world, file)
    await wait_until(lambda: checkpoints(file) >= 1)
    process.send_signal(signal.SIGTERM)
    out, errors = await asyncio.to_thread(process.communicate)

    assert (process.returncode, out) == (-signal.SIGTERM, b"")
    assert b"Traceback" not in errors
    await export(world, file, resume=True)
    assert ids_in(file) == ids


async def test_a_lost_connection_stops_an_export(world: World) -> None:
    await many(world, 20_000)
    process = command(world, "-")
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)
    await world.cast.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    await asyncio.to_thread(process.stdout.read)
    _, errors = await asyncio.to_thread(process.communicate)

    assert process.returncode == 1
    assert errors.startswith(b"gateway: the database cannot be used (")
    assert errors.count(b"\n") == 1


# Audit


async def test_an_export_is_audited_with_the_patients_that_it_read(world: World, tmp_path: Path) -> None:
    patients = [await world.cast.patient() for _ in range(3)]
    await fill(world, 300, patients)
    unread = await world.cast.patient()

    await export(world, tmp_path / "e.jsonl")

    begun, *pages, end = await world.audit(
        "patient_graph.encounters.export_begun", "patient_graph.encounters.read", "patient_graph.encounters.exported"
    )
    assert [entry["event_type"].rsplit(".", 1)[1] for entry in (begun, end)] == ["export_begun", "exported"]
    assert (begun["details"], end["details"]) == ({}, {"encounters": 300})
    assert [page["details"]["encounters"] for page in pages] == [256, 44]
    assert {page["entity_type"] for page in pages} == {"worklist"}
    assert {tuple(sorted(page["details"]["patients"])) for page in pages} == {tuple(sorted(patients))}
    for entry in (begun, *pages, end):
        assert [entry[name] for name in ("actor_type", "actor_id", "brand_id")] == ["user", "alice", "loop"]
        assert entry["request_id"] == begun["request_id"]
        assert entry["request_id"].startswith("export-")
    who_read = (
        "SELECT count(*) FROM patient_graph.audit_log WHERE entity_type = 'worklist' AND details -> 'patients' ? $1"
    )
    read = [await world.cast.connection.fetchval(who_read, each) for each in (patients[0], unread)]
    assert read == [2, 0]


async def test_an_export_names_its_user_or_the_given_actor(world: World, tmp_path: Path) -> None:
    await fill(world, 1)
    user = await asyncio.to_thread(subprocess.check_output, ["id", "-un"], text=True)

    codes = [
        (await run(world, "encounters", "export", tmp_path / f"{name}.jsonl", "--brand=loop", *options))[0]
        for name, options in (("one", []), ("two", ["--actor=bob"]), ("three", ["--actor=bob\n"]))
    ]

    assert codes == [0, 0, 2]
    entries = await world.audit("patient_graph.encounters.exported")
    assert [entry["actor_id"] for entry in entries] == [user.strip(), "bob"]


async def test_a_reader_that_closes_the_pipe_ends_the_export_quietly(world: World) -> None:
    ids = await many(world, 20_000)
    process = command(world, "-")
    assert process.stdout is not None
    assert process.stderr is not None
    lines = [await asyncio.to_thread(process.stdout.readline) for _ in range(1_000)]

    process.stdout.close()
    with process.stderr as stream:
        errors = await asyncio.to_thread(stream.read)

    assert (await asyncio.to_thread(process.wait), errors) == (128 + signal.SIGPIPE, b"")
    assert [json.loads(line)["id"] for line in lines] == ids[:1_000]
    # The encounters that left, and no others but those of the page that could not be written.
    pages = await world.audit("patient_graph.encounters.read")
    assert 1_000 <= sum(page["details"]["encounters"] for page in pages) < 20_000
    assert await world.audit("patient_graph.encounters.exported") == []


# Files


async def test_standard_output_has_the_lines_and_standard_error_the_summary(world: World) -> None:
    ids = await fill(world, 3)

    code, out, errors = await run(world, "encounters", "export", "-", "--brand=loop", "--format=csv")

    assert (code, errors) == (0, "3 encounters exported\n")
    assert [row["id"] for row in csv.DictReader(io.StringIO(out))] == [str(each) for each in ids]


async def test_a_full_disk_stops_the_export(world: World) -> None:
    await fill(world, 3)
    full = os.open("/dev/full", os.O_WRONLY)
    process = command(world, "-", stdout=full)
    os.close(full)
    _, errors = await asyncio.to_thread(process.communicate)

    assert (process.returncode, errors) == (
        1,
        b"gateway: standard output cannot be written (No space left on device)\n",
    )


async def test_an_existing_file_is_only_replaced_by_force(world: World, tmp_path: Path) -> None:
    await fill(world, 3)
    file = tmp_path / "e.jsonl"
    file.write_text("kept")
    words = ("encounters", "export", file, "--brand=loop")

    code, out, errors = await run(world, *words)
    assert (code, out) == (1, "")
    assert errors == f"gateway: {file} exists; name another file, or replace it with --force\n"
    assert file.read_text() == "kept"
    assert names_in(tmp_path) == ["e.jsonl"]

    assert (await run(world, *words, "--force"))[:2] == (0, "3 encounters exported\n")
    assert len(ids_in(file)) == 3


async def test_a_file_that_is_no_regular_file_is_never_replaced(world: World, tmp_path: Path) -> None:
    await fill(world, 1)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")

    for name in ("folder.jsonl", "link.jsonl"):
        with pytest.raises(ExportStopped, match="is not a regular file; export to - and redirect it"):
            await export(world, tmp_path / name, force=True)
    with pytest.raises(ExportStopped, match="cannot be written"):
        await export(world, tmp_path / "nowhere" / "e.jsonl")


async def test_two_exports_never_write_the_same_file(world: World, tmp_path: Path) -> None:
    await fill(world, 1)
    file = tmp_path / "e.jsonl"

    writing = FileOutput.open(file, {}, resume=False, force=False)
    with writing, pytest.raises(ExportStopped, match="another export is writing"):
        await export(world, file, force=True)


async def test_a_brand_without_patients_is_refused(world: World, tmp_path: Path) -> None:
    code, out, errors = await run(world, "encounters", "export", tmp_path / "e.jsonl", "--brand=lop")

    assert (code, out, errors) == (1, "", "gateway: the brand has no patients; check --brand\n")
    assert await world.audit("patient_graph.encounters.export_begun") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encounters", "export", "e.txt", "--brand=loop"], "Invalid value for --format: is required"),
        (["encounters", "export", "-", "--brand=loop", "--resume"], "standard output cannot be resumed"),
        (["encounters", "export", "e.csv"], "Missing option '--brand'"),
        (["patients", "export", "p.csv", "--brand=loop"], "patients are exported as JSON Lines only"),
    ],
)
async def test_wrong_arguments_are_explained(world: World, words: list[str], message: str) -> None:
    code, out, errors = await run(world, *words)

    assert (code, out) == (2, "")
    assert message in " ".join(errors.split())


# Patients


async def test_the_import_of_exported_patients_gives_the_same_ids(
    world: World, other_world: World, tmp_path: Path
) -> None:
    for brand in ("loop", "loopbio"):
        for _ in range(PAGE_ROWS + 1):
            await world.cast.patient(brand)
    external_ids = {f"id{each}": each or "-" for each in HOSTILE}
    await world.cast.connection.execute(
        "UPDATE patient_graph.patients SET external_ids = $1 WHERE id = (SELECT min(id) FROM patient_graph.patients)",
        json.dumps(external_ids),
    )
    every = "SELECT id, brand_id, external_ids FROM patient_graph.patients WHERE brand_id = 'loop' ORDER BY id"

    code, out, _ = await run(world, "patients", "export", tmp_path / "p.jsonl", "--brand=loop", "--actor=alice")
    done = await import_patients(other_world.url, tmp_path / "p.jsonl")

    assert (code, out) == (0, "257 patients exported\n")
    assert str(done) == "257 patients registered, 0 known already, 0 lines refused"
    assert await other_world.cast.connection.fetch(every) == await world.cast.connection.fetch(every)
    pages = await world.audit("patient_graph.patients.read")
    assert [len(page["details"]["patients"]) for page in pages] == [256, 1]
    (end,) = await world.audit("patient_graph.patients.exported")
    assert (end["details"], end["actor_id"]) == ({"patients": 257}, "alice")
