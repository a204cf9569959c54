"""`gateway encounters import`: recorded lines, refused lines, repeated and interrupted imports."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.embedded_postgres.cluster import PrivatePostgres
from gateway.importers.encounters import READ_AHEAD, _encounters, import_encounters
from gateway.importers.reader import ImportStopped, Record
from gateway.settings import Settings, SettingsError
from resolvers.access import Permission
from resolvers.commands import DEFAULT_LIMITS
from tests.cast import Cast
from tests.conftest import fresh_database
from tests.doors import RestDoor, Service
from tests.forked_gateway import run_gateway
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "gateway", "encounters", "import"]
TABLES = ("encounters", "encounter_versions", "audit_log", "outbox", "idempotency_keys")
MARKER = "tuberculosis"

Import = Callable[..., Awaitable[str]]


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url, database_unsafe=True)


@pytest.fixture
def import_file(settings: Settings, tmp_path: Path) -> Import:
    """Return a function that imports a file of a given name and content and returns the summary."""

    async def from_file(name: str, content: str, /, **options: Any) -> str:
        (tmp_path / name).write_text(content)
        return str(await import_encounters(settings, tmp_path / name, **options))

    return from_file


def json_lines(lines: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def visit(patient_id: str, /, **members: Any) -> dict[str, Any]:
    return {"patient_id": patient_id, "brand_id": "loop", "encounter_type": "lab", **members}


async def counts(cast: Cast, patient_id: str) -> set[int]:
    """Return the numbers of rows of a patient in the tables that a recording writes."""
    return {await cast.count(table, patient_id) for table in TABLES}


# Recorded lines

FULL = {
    "encounter_type": "telehealth",
    "provider_id": "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "scheduled_at": "2024-01-31T09:30:00+01:00",
    "chief_complaint": "Cough, dry",
    "notes": 'She said "fine".\nNo fever.',
    "metadata": {"dose": 1, "größe": ["🩺"]},
}


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
async def test_an_imported_line_equals_the_same_recording_over_rest(
    import_file: Import, service: Service, cast: Cast, name: str
) -> None:
    patient_id = await cast.patient()
    text = json_lines([visit(patient_id, **FULL)])
    if name == "e.csv":
        text = (
            "metadata,notes,chief_complaint,scheduled_at,provider_id,encounter_type,brand_id,patient_id\n"
            '"{""dose"": 1, ""größe"": [""🩺""]}","She said ""fine"".\nNo fever.","Cough, dry",'
            f"2024-01-31T09:30:00+01:00,3f2504e0-4f89-11d3-9a0c-0305e82c3301,telehealth,loop,{patient_id}\n"
        )

    closing = await import_file(name, text)
    over_rest = await RestDoor(service).record(patient_id, {"brand_id": "loop", **FULL})

    assert closing == "1 encounter recorded, 0 recorded already, 0 lines refused"
    imported_row, over_rest_row = await cast.rows(patient_id)
    assert over_rest.code is None
    generated = {"id", "created_at", "updated_at"}
    assert {k: v for k, v in imported_row.items() if k not in generated} == {
        k: v for k, v in over_rest_row.items() if k not in generated
    }


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
async def test_an_imported_encounter_has_the_status_and_times_of_its_line(
    import_file: Import, cast: Cast, tmp_path: Path, name: str
) -> None:
    patient_id = await cast.patient()
    columns = ("patient_id", "brand_id", "encounter_type", "status", "started_at", "ended_at")
    times = ("2019-03-01T09:30:00+01:00", "2019-03-01T09:50:00+01:00")
    outcomes = [("completed", *times), ("no_show", "", ""), ("", "", ""), ("completed", times[0], "")]
    rows = [(patient_id, "loop", "lab", *outcome) for outcome in outcomes]
    csv = "".join(",".join(row) + "\n" for row in (columns, *rows))
    lines = json_lines({name: value for name, value in zip(columns, row, strict=True) if value} for row in rows)

    closing = await import_file(name, csv if name == "e.csv" else lines)

    assert closing == "3 encounters recorded, 0 recorded already, 1 line refused"
    (rejected,) = map(json.loads, (tmp_path / f"{name}.rejects.jsonl").read_text().splitlines())
    assert (rejected["rules"], rejected["reason"]) == (
        ["recorded_status"],
        "ended_at is required with this status (recorded_status)",
    )
    stored = {row["status"]: (row["started_at"], row["ended_at"]) for row in await cast.rows(patient_id)}
    assert stored == {
        "completed": tuple(map(datetime.fromisoformat, times)),
        "no_show": (None, None),
        "scheduled": (None, None),
    }
    versions = await cast.connection.fetch(
        "SELECT changes FROM patient_graph.encounter_versions WHERE patient_id = $1", patient_id
    )
    after = [{name: of["after"] for name, of in json.loads(version["changes"]).items()} for version in versions]
    assert sorted(after, key=len) == [
        {},
        {"status": "no_show"},
        {"status": "completed", "started_at": "2019-03-01T08:30:00Z", "ended_at": "2019-03-01T08:50:00Z"},
    ]


async def test_an_imported_encounter_has_its_event_and_audit_entry(import_file: Import, cast: Cast) -> None:
    patient_id = await cast.patient()

    await import_file("e.jsonl", json_lines([visit(patient_id)]), client="old-system")

    assert await counts(cast, patient_id) == {1}
    entry = await cast.connection.fetchrow("SELECT * FROM patient_graph.audit_log WHERE patient_id = $1", patient_id)
    assert [entry[name] for name in ("actor_type", "actor_id", "actor_brand_id", "event_type")] == [
        "service",
        "old-system",
        None,
        "patient_graph.encounter.recorded",
    ]
    assert entry["request_id"].startswith("import-")


async def test_an_empty_cell_is_an_omitted_member(import_file: Import, cast: Cast) -> None:
    patient_id = await cast.patient()
    header = "patient_id,brand_id,encounter_type,provider_id,scheduled_at,chief_complaint,notes,metadata,key,mrn"

    closing = await import_file("e.csv", f"{header}\n{patient_id},loop,lab,,,,,,,4711\n")

    assert closing == "1 encounter recorded, 0 recorded already, 0 lines refused; ignored: 1 other"
    (row,) = await cast.rows(patient_id)
    assert [row[name] for name in ("provider_id", "scheduled_at", "chief_complaint", "notes")] == [None] * 4
    assert json.loads(row["metadata"]) == {}


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
@pytest.mark.parametrize("cluster", [False, True])
async def test_an_imported_encounter_is_found_by_its_external_ids(
    settings: Settings, service: Service, cast: Cast, tmp_path: Path, *, name: str, cluster: bool
) -> None:
    patient_id = await cast.patient()
    external_ids = {"emr": patient_id, "größe": '"7"'}
    text = json_lines([visit(patient_id, external_ids=external_ids), visit(patient_id)])
    if name == "e.csv":
        quoted = json.dumps(external_ids, ensure_ascii=False).replace('"', '""')
        header = "external_ids,patient_id,brand_id,encounter_type"
        text = f'{header}\n"{quoted}",{patient_id},loop,lab\n,{patient_id},loop,lab\n'
    (tmp_path / name).write_text(text)

    done = await import_encounters(settings.model_copy(update={"database_cluster": cluster}), tmp_path / name)

    assert str(done) == "2 encounters recorded, 0 recorded already, 0 lines refused"
    query = 'query ($value: String!) { encountersByExternalId(system: "emr", value: $value) { externalIds } }'
    found = await service.graphql(query, {"value": patient_id})
    assert found["data"]["encountersByExternalId"] == [{"externalIds": external_ids}]


async def test_each_line_is_recorded_in_its_own_brand(import_file: Import, cast: Cast) -> None:
    patients = {brand: await cast.patient(brand) for brand in ("loop", "loopbio")}
    lines = [visit(patients[brand], brand_id=brand) for brand in ("loop", "loopbio") * 50]

    assert (
        await import_file("e.jsonl", json_lines(lines))
        == "100 encounters recorded, 0 recorded already, 0 lines refused"
    )

    for brand, patient_id in patients.items():
        assert [row["brand_id"] for row in await cast.rows(patient_id)] == [brand] * 50


async def test_the_import_has_the_configured_scope_to_record(settings: Settings, cast: Cast, tmp_path: Path) -> None:
    patient_id = await cast.patient()
    (tmp_path / "e.jsonl").write_text(json_lines([visit(patient_id)]))
    renamed = settings.model_copy(update={"scopes": {Permission.RECORD_ENCOUNTER: ("write:visits",)}})

    assert (await import_encounters(renamed, tmp_path / "e.jsonl")).recorded == 1


async def test_an_import_works_on_a_cluster(settings: Settings, cast: Cast, tmp_path: Path) -> None:
    patient_id = await cast.patient()
    (tmp_path / "e.jsonl").write_text(json_lines(visit(patient_id, notes=str(number)) for number in range(100)))

    done = await import_encounters(settings.model_copy(update={"database_cluster": True}), tmp_path / "e.jsonl")

    assert done.recorded == 100
    assert await counts(cast, patient_id) == {100}


# Repeated imports


async def test_a_repeated_import_records_only_new_lines(import_file: Import, cast: Cast) -> None:
    patient_id = await cast.patient()
    lines = [visit(patient_id, notes=f"Visit {number}.") for number in range(10)]

    first = await import_file("e.jsonl", json_lines(lines))
    # Another order and other lines between them: only the content of a line matters.
    moved = [visit(patient_id, notes="A new one."), *(dict(reversed(line.items())) for line in reversed(lines))]
    again = await import_file("e.jsonl", json_lines(moved))

    assert first == "10 encounters recorded, 0 recorded already, 0 lines refused"
    assert again == "1 encounter recorded, 10 recorded already, 0 lines refused"
    assert await counts(cast, patient_id) == {11}


async def test_identical_lines_are_separate_encounters(import_file: Import, cast: Cast) -> None:
    patient_id = await cast.patient()

    closings = [await import_file("e.jsonl", json_lines([visit(patient_id)] * times)) for times in (3, 3, 4)]

    assert [closing.split(", ")[0] for closing in closings] == [
        "3 encounters recorded",
        "0 encounters recorded",
        "1 encounter recorded",
    ]
    assert await counts(cast, patient_id) == {4}


async def test_the_same_line_in_csv_and_json_is_recorded_once(import_file: Import, cast: Cast) -> None:
    patient_id = await cast.patient()
    in_csv = f'patient_id,brand_id,encounter_type,metadata\n{patient_id},loop,lab,"{{""a"": 1.0}}"\n'

    await import_file("e.csv", in_csv, name="once")
    closing = await import_file("e.jsonl", json_lines([visit(patient_id, metadata={"a": 1.0})]), name="once")

    assert closing == "0 encounters recorded, 1 recorded already, 0 lines refused"


@pytest.mark.parametrize("members", [{"status": "scheduled"}, {"external_ids": {}}, {"metadata": {}}])
async def test_a_member_that_changes_nothing_makes_no_new_line(
    import_file: Import, cast: Cast, members: dict[str, Any]
) -> None:
    patient_id = await cast.patient()

    await import_file("e.jsonl", json_lines([visit(patient_id)]))
    closing = await import_file("e.jsonl", json_lines([visit(patient_id, **members)]))

    assert closing == "0 encounters recorded, 1 recorded already, 0 lines refused"


async def test_imports_of_different_names_are_separate(import_file: Import, cast: Cast) -> None:
    patient_id = await cast.patient()

    for name in ("january.jsonl", "february.jsonl"):
        assert (await import_file(name, json_lines([visit(patient_id)]))).startswith("1 encounter recorded")


async def test_the_key_of_a_line_decides_instead_of_its_content(import_file: Import, cast: Cast) -> None:
    patient_id, key = await cast.patient(), str(uuid4())

    await import_file("one.jsonl", json_lines([visit(patient_id, key=key)]))
    again = await import_file("other.jsonl", json_lines([visit(patient_id, key=key), visit(patient_id, key=key)]))
    other = await import_file("other.jsonl", json_lines([visit(patient_id, key=key, notes=MARKER)]))

    assert again == "0 encounters recorded, 2 recorded already, 0 lines refused"
    assert other == "0 encounters recorded, 0 recorded already, 1 line refused"
    assert await counts(cast, patient_id) == {1}


async def test_the_keys_of_an_import_are_kept_as_long_as_configured(import_file: Import, cast: Cast) -> None:
    patient_id = await cast.patient()

    await import_file("e.jsonl", json_lines([visit(patient_id)]))
    await import_file("e.jsonl", json_lines([visit(patient_id)] * 2), keep_keys_days=365)

    kept = await cast.connection.fetch(
        "SELECT expires_at - created_at AS kept FROM patient_graph.idempotency_keys WHERE patient_id = $1"
        " ORDER BY created_at",
        patient_id,
    )
    assert [row["kept"] for row in kept] == [timedelta(days=90), timedelta(days=365)]


async def test_a_line_that_was_recorded_already_is_not_audited_as_a_read(import_file: Import, cast: Cast) -> None:
    patient_id = await cast.patient()

    for _ in range(2):
        await import_file("e.jsonl", json_lines([visit(patient_id, key=patient_id)]))

    events = await cast.connection.fetch(
        "SELECT event_type FROM patient_graph.audit_log WHERE patient_id = $1", patient_id
    )
    assert [row["event_type"] for row in events] == ["patient_graph.encounter.recorded"]


# Refused lines


@pytest.mark.parametrize(
    ("line", "code", "rules"),
    [
        ({"patient_id": None}, "validation_error", ["string"]),
        ({"patient_id": 5}, "validation_error", ["string"]),
        ({"patient_id": "nobody"}, "not_found", []),
        ({"patient_id": MARKER * 100}, "not_found", []),
        ({"brand_id": ""}, "validation_error", ["too_short"]),
        ({"brand_id": "loopbio"}, "not_found", []),
        ({"brand_id": MARKER, "encounter_type": MARKER}, "validation_error", ["enum"]),
        ({"scheduled_at": "2024-01-31T09:30:00", "notes": None}, "validation_error", ["offset", "null"]),
        ({"scheduled_at": "2024-01-31T09:30:00+01:60"}, "validation_error", ["date_time"]),
        ({"scheduled_at": "2016-12-31T23:59:60Z"}, "validation_error", ["date_time"]),
        ({"notes": MARKER * 5_000}, "validation_error", ["too_long"]),
        ({"metadata": {MARKER: "\x00"}}, "validation_error", ["nul"]),
        ({"metadata": MARKER}, "validation_error", ["object"]),
        ({"external_ids": {MARKER: ""}}, "validation_error", ["too_short"]),
        ({"external_ids": {MARKER: 7}}, "validation_error", ["string"]),
        ({"external_ids": None}, "validation_error", ["null"]),
        ({"key": 5}, "validation_error", ["string"]),
        ({"key": None}, "validation_error", ["null"]),
        ({"key": ""}, "validation_error", ["idempotency_key"]),
        ({"key": f"{MARKER} {MARKER}"}, "validation_error", ["idempotency_key"]),
        ({"notes": "x" * 300_000}, "validation_error", ["too_long"]),
    ],
)
async def test_a_refused_line_is_reported_without_its_content(
    import_file: Import,
    cast: Cast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    line: dict[str, Any],
    code: str,
    rules: list[str],
) -> None:
    patient_id = await cast.patient()
    lines = [visit(patient_id), visit(patient_id, **line), visit(patient_id)]

    closing = await import_file("e.jsonl", json_lines(lines))

    assert closing == "2 encounters recorded, 0 recorded already, 1 line refused"
    (rejected,) = map(json.loads, (tmp_path / "e.jsonl.rejects.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["code"], rejected["rules"]) == (2, code, rules)
    assert set(rejected) == {"line", "code", "rules", "reason"}
    printed = capsys.readouterr().err
    assert f"line 2: {rejected['reason']}\n" in printed
    assert MARKER not in printed + json.dumps(rejected)
    assert patient_id not in printed + json.dumps(rejected)


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ("PAT,loop,lab,{", "json"),
        ('PAT,loop,lab,"{""a"": 1, ""a"": 2}"', "duplicate_member"),
        ("PAT,loop,lab,[1]", "object"),
        ("PAT,loop", "columns"),
        ("PAT,loop,lab,{'tuberculosis': 1}", "json"),
        ('PAT,loop,lab,"{""a"": ""' + "x" * 140_000 + '""}"', "too_large"),
        ('PAT,loop,lab,"{""a"": ""' + "x" * 300_000 + '""}"', "too_long"),
        (",loop,lab,", "required"),
    ],
)
async def test_a_refused_row_is_reported_without_its_content(
    import_file: Import, cast: Cast, tmp_path: Path, row: str, rule: str
) -> None:
    patient_id = await cast.patient()
    good = f"{patient_id},loop,lab,"
    rows = ["patient_id,brand_id,encounter_type,metadata", good, row.replace("PAT", patient_id), good]

    closing = await import_file("e.csv", "\n".join(rows))

    assert closing == "2 encounters recorded, 0 recorded already, 1 line refused"
    (rejected,) = map(json.loads, (tmp_path / "e.csv.rejects.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["rules"]) == (3, [rule])
    assert MARKER not in json.dumps(rejected)


async def test_a_refused_row_of_several_lines_is_reported_with_its_range(
    import_file: Import, cast: Cast, tmp_path: Path
) -> None:
    header = "patient_id,brand_id,encounter_type,notes"

    await import_file("e.csv", f'{header}\n{await cast.patient()},loop,house_call,"a\nb\nc"\n')

    rejected = json.loads((tmp_path / "e.csv.rejects.jsonl").read_text())
    assert (rejected["line"], rejected["last_line"], rejected["rules"]) == (2, 4, ["enum"])


@pytest.mark.parametrize(
    ("notes", "lines", "rule"),
    [
        (b'"say "hi" to\nEVIL"', (3, 5), "csv"),
        (b'"half a \xc3\nEVIL"', (3, 4), "utf8"),
        (b'"long ' + b"x" * 300_000 + b'\nEVIL\n"', (3, 5), "too_long"),
    ],
)
async def test_a_fault_in_quoted_text_records_nothing_of_the_quoted_text(
    settings: Settings, cast: Cast, tmp_path: Path, *, notes: bytes, lines: tuple[int, int], rule: str
) -> None:
    imported_row, evil = await cast.patient(), await cast.patient()
    good, quoted = f"{imported_row},loop,lab,fine\n".encode(), f"{evil},loop,lab,forged".encode()
    broken = f"{imported_row},loop,lab,".encode() + notes.replace(b"EVIL", quoted) + b"\n"
    (tmp_path / "e.csv").write_bytes(b"patient_id,brand_id,encounter_type,notes\n" + good + broken + good)

    await import_encounters(settings, tmp_path / "e.csv")

    assert await cast.rows(evil) == []
    assert len(await cast.rows(imported_row)) == (1 if rule == "csv" else 2)
    (rejected,) = map(json.loads, (tmp_path / "e.csv.rejects.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["last_line"], rejected["rules"]) == (*lines, [rule])


async def test_a_line_with_a_misspelt_member_is_refused(import_file: Import, cast: Cast) -> None:
    patient_id = await cast.patient()
    lines = [visit(patient_id, note=MARKER), visit(patient_id, created_at=MARKER, mrn=MARKER), visit(patient_id)]

    closing = await import_file("e.jsonl", json_lines(lines))

    assert closing == "2 encounters recorded, 0 recorded already, 1 line refused; ignored: created_at, 1 other"


async def test_a_misspelt_column_stops_the_import(import_file: Import, cast: Cast) -> None:
    patient_id = await cast.patient()

    with pytest.raises(ImportStopped, match="line 1: column 4 is a misspelling of `notes`"):
        await import_file("e.csv", f"patient_id,brand_id,encounter_type,notes\u00a0\n{patient_id},loop,lab,{MARKER}\n")

    assert await counts(cast, patient_id) == {0}


async def test_a_corrected_line_is_recorded_by_the_next_run(import_file: Import, cast: Cast, tmp_path: Path) -> None:
    patient_id = await cast.patient()

    await import_file("e.jsonl", json_lines([visit(patient_id), visit(patient_id, encounter_type="house_call")]))
    assert (tmp_path / "e.jsonl.rejects.jsonl").exists()
    closing = await import_file("e.jsonl", json_lines([visit(patient_id), visit(patient_id, encounter_type="other")]))

    assert closing == "1 encounter recorded, 1 recorded already, 0 lines refused"
    assert not (tmp_path / "e.jsonl.rejects.jsonl").exists()


async def test_refused_lines_have_one_audit_entry_for_each_code(import_file: Import, cast: Cast) -> None:
    client = f"import-{uuid4().hex[:12]}"

    await import_file("e.jsonl", json_lines([visit("nobody")] * 50), client=client)

    entries = await cast.connection.fetch(
        "SELECT event_type, details FROM patient_graph.audit_log WHERE actor_id = $1", client
    )
    assert [(row["event_type"], json.loads(row["details"])) for row in entries] == [
        ("patient_graph.request.refused", {"code": "not_found"})
    ]


async def test_the_file_of_refused_lines_is_configurable_but_not_the_input(import_file: Import, tmp_path: Path) -> None:
    await import_file("e.jsonl", json_lines([visit("nobody")]), rejects=tmp_path / "elsewhere")
    assert json.loads((tmp_path / "elsewhere").read_text())["line"] == 1

    text = json_lines([visit("nobody")])
    for rejects in (tmp_path / "e.jsonl", tmp_path / "missing" / "x"):
        with pytest.raises(ImportStopped, match=r"must not be the imported file|cannot be written"):
            await import_file("e.jsonl", text, rejects=rejects)
    assert (tmp_path / "e.jsonl").read_text() == text


@pytest.mark.parametrize("header", ["", "patient_id,brand_id", "patient_id;brand_id;encounter_type"])
async def test_a_first_line_without_column_names_stops_the_import(import_file: Import, header: str) -> None:
    with pytest.raises(ImportStopped, match="line 1 must name the columns"):
        await import_file("e.csv", f"{header}\np,loop,lab\n")


async def test_a_database_without_durability_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("")

    with pytest.raises(SettingsError, match="not safe for recording"):
        await import_encounters(settings.model_copy(update={"database_unsafe": False}), tmp_path / "e.jsonl")


# The command


def environment(database_url: str) -> dict[str, str]:
    return os.environ | {"GATEWAY_DATABASE_URL": database_url, "GATEWAY_DATABASE_UNSAFE": "true"}


async def start_command(database_url: str, *arguments: str | Path) -> Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, cwd=ROOT, env=environment(database_url), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def run_command(database_url: str, *arguments: str | Path, text: str = "") -> tuple[int, str, str]:
    """Run the command to its end; return the exit code, standard output and standard error."""
    words = ["encounters", "import", *map(str, arguments)]
    return await asyncio.to_thread(run_gateway, words, env=environment(database_url), text=text)


async def test_the_command_reads_standard_input_and_reports_refused_lines(database_url: str, cast: Cast) -> None:
    patient_id, name = await cast.patient(), f"--name={uuid4()}"
    lines = [visit(patient_id), visit("nobody")]

    code, out, err = await run_command(database_url, "-", name, text=json_lines(lines))

    assert (code, out) == (1, "1 encounter recorded, 0 recorded already, 1 line refused\n")
    assert err == "line 2: The patient was not found.\n"
    code, out, err = await run_command(database_url, "-", name, text=json_lines(lines[:1]))
    assert (code, out, err) == (0, "0 encounters recorded, 1 recorded already, 0 lines refused\n", "")


async def test_on_a_terminal_the_command_shows_a_progress_bar(database_url: str, cast: Cast, tmp_path: Path) -> None:
    patient_id, file = await cast.patient(), tmp_path / "e.jsonl"
    file.write_text(json_lines(visit(patient_id, notes=str(number)) for number in range(2_000)))
    ours, over_rest_row = pty.openpty()
    process = subprocess.Popen(  # noqa: ASYNC220 - asyncio gives no terminal to read from
        [*COMMAND, file],
        cwd=ROOT,
        env=environment(database_url),
        stdin=over_rest_row,
        stdout=subprocess.PIPE,
        stderr=over_rest_row,
    )
    os.close(over_rest_row)
    shown = b""
    try:
        while chunk := await asyncio.to_thread(os.read, ours, 65_536):
            shown += chunk
    except OSError:
        pass  # Linux reports a closed terminal as an error
    os.close(ours)
    out, _ = await asyncio.to_thread(process.communicate)

    assert (process.returncode, out) == (0, b"2000 encounters recorded, 0 recorded already, 0 lines refused\n")
    assert b"\r\x1b[K[" in shown
    assert shown.endswith(b"\r\x1b[K")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_an_import_with_open_input(database_url: str, cast: Cast, number: signal.Signals) -> None:
    patient_id, name = await cast.patient(), f"--name={uuid4()}"
    lines = [visit(patient_id, notes=str(number)) for number in range(READ_AHEAD + 10)]
    process = await start_command(database_url, "-", name)
    process.stdin.write(json_lines(lines).encode())
    # A full batch is recorded without waiting for further lines.
    await wait_until(partial(recorded, cast, patient_id, READ_AHEAD))

    process.send_signal(number)
    async with asyncio.timeout(30):
        assert await process.wait() == -number
    out, err = await process.communicate()

    assert out == b""
    assert b"Traceback" not in err
    assert b"Fatal" not in err
    _, printed, _ = await run_command(database_url, "-", name, text=json_lines(lines))
    assert printed == "10 encounters recorded, 64 recorded already, 0 lines refused\n"
    assert await counts(cast, patient_id) == {READ_AHEAD + 10}


async def recorded(cast: Cast, patient_id: str, number: int) -> bool:
    return await cast.count("encounters", patient_id) >= number


# Interruptions


async def test_an_import_killed_repeatedly_records_each_line_once(server_url: str, tmp_path: Path) -> None:
    # Its own database: `ALONE` counts all connections to it, but those of Citus itself.
    url = await fresh_database(server_url)
    connection = await asyncpg.connect(url)
    cast = Cast(connection)
    patient_id, file = await cast.patient(), tmp_path / "e.jsonl"
    # Some lines are identical, some have keys, one is invalid.
    lines = [visit(patient_id, notes=f"Visit {number // 2}.") for number in range(6_000)]
    lines += [visit(patient_id, key=f"{patient_id}-{number}") for number in range(2_000)]
    lines.insert(1_000, visit("nobody"))
    file.write_text(json_lines(lines))

    seen = 0
    for _ in range(4):
        process = await start_command(url, file)
        await wait_until(partial(recorded, cast, patient_id, seen + 200))
        process.kill()
        await process.communicate()
        # A statement that was sent before the kill may still commit.
        await wait_until(partial(connection.fetchval, ALONE))
        seen = await cast.count("encounters", patient_id)
    assert 800 <= seen < 8_000

    code, out, _ = await run_command(url, file)

    assert (code, out) == (1, f"{8_000 - seen} encounters recorded, {seen} recorded already, 1 line refused\n")
    assert await counts(cast, patient_id) == {8_000}
    await connection.close()


ALONE = """
    SELECT count(*) = 1 FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND application_name NOT LIKE 'citus%'
"""


@pytest.fixture
async def server() -> AsyncIterator[PrivatePostgres]:
    """A PostgreSQL that the test stops and starts."""
    with tempfile.TemporaryDirectory(prefix="gateway-tests-") as folder:
        server = PrivatePostgres(Path(folder), durable=False)
        server.start()
        yield server
        server.stop()


async def database_with_patient(server: PrivatePostgres) -> tuple[str, str]:
    """Return the URL of a migrated database on the server, and the id of a patient in it."""
    url = await fresh_database(server.url())
    connection = await asyncpg.connect(url)
    patient_id = await Cast(connection).patient()
    await connection.close()
    return url, patient_id


async def count_encounters(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("SELECT count(*) FROM patient_graph.encounters")
    finally:
        await connection.close()


async def test_an_import_survives_restarts_of_the_database(server: PrivatePostgres, tmp_path: Path) -> None:
    url, patient_id = await database_with_patient(server)
    file = tmp_path / "e.jsonl"
    file.write_text(json_lines(visit(patient_id, notes=str(number)) for number in range(8_000)))
    process = await start_command(url, file)
    for goal in (500, 2_500):
        await wait_until(partial(more_than, url, goal))
        server.stop()
        server.start()
    out, err = await process.communicate()

    assert process.returncode == 0, err
    recorded_now, already = (int(part.split()[0]) for part in out.decode().split(", ")[:2])
    # Lines whose answer was lost are found by their keys.
    assert recorded_now + already == 8_000
    assert already < 2_000
    connection = await asyncpg.connect(url)
    assert await counts(Cast(connection), patient_id) == {8_000}
    await connection.close()
    assert b"the database is unavailable; retrying for 300 s" in err


async def more_than(url: str, number: int) -> bool:
    return await count_encounters(url) > number


async def test_an_import_stops_if_the_database_stays_unavailable(server: PrivatePostgres, tmp_path: Path) -> None:
    url, patient_id = await database_with_patient(server)
    file = tmp_path / "e.jsonl"
    file.write_text(json_lines(visit(patient_id, notes=str(number)) for number in range(5_000)))
    process = await start_command(url, file, "--patience-seconds=1")
    await wait_until(partial(more_than, url, 500))
    server.stop()

    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert b"gateway: the database has been unavailable for " in err
    assert b"run the import again under the same name" in err
    assert b"Traceback" not in err

    server.start()
    kept = await count_encounters(url)
    _, printed, _ = await run_command(url, file)
    assert printed == f"{5_000 - kept} encounters recorded, {kept} recorded already, 0 lines refused\n"


def test_the_lines_of_an_import_may_be_closed_in_another_thread() -> None:
    record = Record(range(1, 2), {"patient_id": "somebody", "brand_id": "loop", "encounter_type": "lab"})
    lines = _encounters(iter([record, record]), DEFAULT_LIMITS, "an-import")
    reading = threading.Thread(target=next, args=(lines,))
    reading.start()
    reading.join()

    lines.close()
