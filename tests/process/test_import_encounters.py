"""`gateway encounters import` on a real PostgreSQL: what is recorded, what is refused, what interruptions cost."""

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
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.database.migrate import migrate
from gateway.embedded_postgres.cluster import PrivatePostgres
from gateway.importers.encounters import READ_AHEAD, _encounters, import_encounters
from gateway.importers.reader import ImportStopped, Record
from gateway.settings import Settings, SettingsError
from resolvers.access import Permission
from resolvers.commands import DEFAULT_LIMITS
from tests.cast import Cast
from tests.conftest import create_database
from tests.doors import RestDoor, Service
from tests.event_helpers import fresh_database
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
def imported(settings: Settings, tmp_path: Path) -> Import:
    """Import a file of this name and content, and give the closing sentence."""

    async def from_file(name: str, content: str, /, **options: Any) -> str:
        (tmp_path / name).write_text(content)
        return str(await import_encounters(settings, tmp_path / name, **options))

    return from_file


def json_lines(lines: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def visit(patient_id: str, /, **members: Any) -> dict[str, Any]:
    return {"patient_id": patient_id, "brand_id": "loop", "encounter_type": "lab", **members}


async def counts(cast: Cast, patient_id: str) -> set[int]:
    """Count the rows of the patient in every table that a recording writes to."""
    return {await cast.count(table, patient_id) for table in TABLES}


# What is recorded

FULL = {
    "encounter_type": "telehealth",
    "provider_id": "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "scheduled_at": "2024-01-31T09:30:00+01:00",
    "chief_complaint": "Cough, dry",
    "notes": 'She said "fine".\nNo fever.',
    "metadata": {"dose": 1, "größe": ["🩺"]},
}


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
async def test_a_line_is_recorded_as_the_rest_door_records_its_body(
    imported: Import, service: Service, cast: Cast, name: str
) -> None:
    patient_id = await cast.patient()
    text = json_lines([visit(patient_id, **FULL)])
    if name == "e.csv":
        text = (
            "metadata,notes,chief_complaint,scheduled_at,provider_id,encounter_type,brand_id,patient_id\n"
            '"{""dose"": 1, ""größe"": [""🩺""]}","She said ""fine"".\nNo fever.","Cough, dry",'
            f"2024-01-31T09:30:00+01:00,3f2504e0-4f89-11d3-9a0c-0305e82c3301,telehealth,loop,{patient_id}\n"
        )

    closing = await imported(name, text)
    over_rest = await RestDoor(service).record(patient_id, {"brand_id": "loop", **FULL})

    assert closing == "1 encounter recorded, 0 recorded already, 0 lines refused"
    mine, theirs = await cast.rows(patient_id)
    assert over_rest.code is None
    told = {"id", "created_at", "updated_at"}
    assert {k: v for k, v in mine.items() if k not in told} == {k: v for k, v in theirs.items() if k not in told}


async def test_an_encounter_comes_with_its_event_and_an_audit_entry_of_the_imports_own(
    imported: Import, cast: Cast
) -> None:
    patient_id = await cast.patient()

    await imported("e.jsonl", json_lines([visit(patient_id)]), client="old-system")

    assert await counts(cast, patient_id) == {1}
    entry = await cast.connection.fetchrow("SELECT * FROM patient_graph.audit_log WHERE patient_id = $1", patient_id)
    assert [entry[name] for name in ("actor_type", "actor_id", "actor_brand_id", "event_type")] == [
        "service",
        "old-system",
        None,
        "patient_graph.encounter.recorded",
    ]
    assert entry["request_id"].startswith("import-")


async def test_an_empty_cell_is_a_member_left_out(imported: Import, cast: Cast) -> None:
    patient_id = await cast.patient()
    header = "patient_id,brand_id,encounter_type,provider_id,scheduled_at,chief_complaint,notes,metadata,key,mrn"

    closing = await imported("e.csv", f"{header}\n{patient_id},loop,lab,,,,,,,4711\n")

    assert closing == "1 encounter recorded, 0 recorded already, 0 lines refused; ignored: 1 other"
    (row,) = await cast.rows(patient_id)
    assert [row[name] for name in ("provider_id", "scheduled_at", "chief_complaint", "notes")] == [None] * 4
    assert json.loads(row["metadata"]) == {}


async def test_each_line_is_recorded_in_its_own_brand(imported: Import, cast: Cast) -> None:
    patients = {brand: await cast.patient(brand) for brand in ("loop", "loopbio")}
    lines = [visit(patients[brand], brand_id=brand) for brand in ("loop", "loopbio") * 50]

    assert (
        await imported("e.jsonl", json_lines(lines)) == "100 encounters recorded, 0 recorded already, 0 lines refused"
    )

    for brand, patient_id in patients.items():
        assert [row["brand_id"] for row in await cast.rows(patient_id)] == [brand] * 50


async def test_the_right_to_record_is_all_the_import_has_whatever_it_is_called(
    settings: Settings, cast: Cast, tmp_path: Path
) -> None:
    patient_id = await cast.patient()
    (tmp_path / "e.jsonl").write_text(json_lines([visit(patient_id)]))
    renamed = settings.model_copy(update={"scopes": {Permission.RECORD_ENCOUNTER: ("write:visits",)}})

    assert (await import_encounters(renamed, tmp_path / "e.jsonl")).recorded == 1


async def test_on_a_cluster_too(settings: Settings, cast: Cast, tmp_path: Path) -> None:
    patient_id = await cast.patient()
    (tmp_path / "e.jsonl").write_text(json_lines(visit(patient_id, notes=str(number)) for number in range(100)))

    done = await import_encounters(settings.model_copy(update={"database_cluster": True}), tmp_path / "e.jsonl")

    assert done.recorded == 100
    assert await counts(cast, patient_id) == {100}


# Once


async def test_run_again_nothing_is_recorded_twice_and_what_was_added_is_recorded(imported: Import, cast: Cast) -> None:
    patient_id = await cast.patient()
    lines = [visit(patient_id, notes=f"Visit {number}.") for number in range(10)]

    first = await imported("e.jsonl", json_lines(lines))
    # Written anew, in another order and among others: what is meant counts.
    moved = [visit(patient_id, notes="A new one."), *(dict(reversed(line.items())) for line in reversed(lines))]
    again = await imported("e.jsonl", json_lines(moved))

    assert first == "10 encounters recorded, 0 recorded already, 0 lines refused"
    assert again == "1 encounter recorded, 10 recorded already, 0 lines refused"
    assert await counts(cast, patient_id) == {11}


async def test_lines_that_are_alike_are_as_many_encounters(imported: Import, cast: Cast) -> None:
    patient_id = await cast.patient()

    closings = [await imported("e.jsonl", json_lines([visit(patient_id)] * times)) for times in (3, 3, 4)]

    assert [closing.split(", ")[0] for closing in closings] == [
        "3 encounters recorded",
        "0 encounters recorded",
        "1 encounter recorded",
    ]
    assert await counts(cast, patient_id) == {4}


async def test_the_same_line_in_csv_and_in_json_is_the_same_line(imported: Import, cast: Cast) -> None:
    patient_id = await cast.patient()
    in_csv = f'patient_id,brand_id,encounter_type,metadata\n{patient_id},loop,lab,"{{""a"": 1.0}}"\n'

    await imported("e.csv", in_csv, name="once")
    closing = await imported("e.jsonl", json_lines([visit(patient_id, metadata={"a": 1.0})]), name="once")

    assert closing == "0 encounters recorded, 1 recorded already, 0 lines refused"


async def test_imports_of_two_names_are_two_imports(imported: Import, cast: Cast) -> None:
    patient_id = await cast.patient()

    for name in ("january.jsonl", "february.jsonl"):
        assert (await imported(name, json_lines([visit(patient_id)]))).startswith("1 encounter recorded")


async def test_a_key_of_the_lines_own_is_the_one_that_counts(imported: Import, cast: Cast) -> None:
    patient_id, key = await cast.patient(), str(uuid4())

    await imported("one.jsonl", json_lines([visit(patient_id, key=key)]))
    again = await imported("other.jsonl", json_lines([visit(patient_id, key=key), visit(patient_id, key=key)]))
    other = await imported("other.jsonl", json_lines([visit(patient_id, key=key, notes=MARKER)]))

    assert again == "0 encounters recorded, 2 recorded already, 0 lines refused"
    assert other == "0 encounters recorded, 0 recorded already, 1 line refused"
    assert await counts(cast, patient_id) == {1}


async def test_keys_are_kept_as_long_as_is_said_and_longer_than_those_of_the_doors(
    imported: Import, cast: Cast
) -> None:
    patient_id = await cast.patient()

    await imported("e.jsonl", json_lines([visit(patient_id)]))
    await imported("e.jsonl", json_lines([visit(patient_id)] * 2), keep_keys_days=365)

    kept = await cast.connection.fetch(
        "SELECT expires_at - created_at AS kept FROM patient_graph.idempotency_keys WHERE patient_id = $1"
        " ORDER BY created_at",
        patient_id,
    )
    assert [row["kept"] for row in kept] == [timedelta(days=90), timedelta(days=365)]


async def test_what_was_recorded_already_is_read_by_nobody(imported: Import, cast: Cast) -> None:
    patient_id = await cast.patient()

    for _ in range(2):
        await imported("e.jsonl", json_lines([visit(patient_id, key=patient_id)]))

    events = await cast.connection.fetch(
        "SELECT event_type FROM patient_graph.audit_log WHERE patient_id = $1", patient_id
    )
    assert [row["event_type"] for row in events] == ["patient_graph.encounter.recorded"]


# What is refused


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
        ({"key": 5}, "validation_error", ["string"]),
        ({"key": None}, "validation_error", ["null"]),
        ({"key": ""}, "validation_error", ["idempotency_key"]),
        ({"key": f"{MARKER} {MARKER}"}, "validation_error", ["idempotency_key"]),
        ({"notes": "x" * 300_000}, "validation_error", ["too_long"]),
    ],
)
async def test_a_line_that_is_refused_is_named_without_its_content_and_the_others_count(
    imported: Import,
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

    closing = await imported("e.jsonl", json_lines(lines))

    assert closing == "2 encounters recorded, 0 recorded already, 1 line refused"
    (rejected,) = map(json.loads, (tmp_path / "e.jsonl.rejects.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["code"], rejected["rules"]) == (2, code, rules)
    assert set(rejected) == {"line", "code", "rules", "reason"}
    told = capsys.readouterr().err
    assert f"line 2: {rejected['reason']}\n" in told
    assert MARKER not in told + json.dumps(rejected)
    assert patient_id not in told + json.dumps(rejected)


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
async def test_a_row_that_is_refused_is_named_without_its_content_and_the_others_count(
    imported: Import, cast: Cast, tmp_path: Path, row: str, rule: str
) -> None:
    patient_id = await cast.patient()
    good = f"{patient_id},loop,lab,"
    rows = ["patient_id,brand_id,encounter_type,metadata", good, row.replace("PAT", patient_id), good]

    closing = await imported("e.csv", "\n".join(rows))

    assert closing == "2 encounters recorded, 0 recorded already, 1 line refused"
    (rejected,) = map(json.loads, (tmp_path / "e.csv.rejects.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["rules"]) == (3, [rule])
    assert MARKER not in json.dumps(rejected)


async def test_a_row_of_several_lines_is_refused_by_all_of_them(imported: Import, cast: Cast, tmp_path: Path) -> None:
    header = "patient_id,brand_id,encounter_type,notes"

    await imported("e.csv", f'{header}\n{await cast.patient()},loop,house_call,"a\nb\nc"\n')

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
async def test_a_fault_between_quotation_marks_records_nothing_of_what_is_quoted(
    settings: Settings, cast: Cast, tmp_path: Path, *, notes: bytes, lines: tuple[int, int], rule: str
) -> None:
    mine, evil = await cast.patient(), await cast.patient()
    good, quoted = f"{mine},loop,lab,fine\n".encode(), f"{evil},loop,lab,forged".encode()
    broken = f"{mine},loop,lab,".encode() + notes.replace(b"EVIL", quoted) + b"\n"
    (tmp_path / "e.csv").write_bytes(b"patient_id,brand_id,encounter_type,notes\n" + good + broken + good)

    await import_encounters(settings, tmp_path / "e.csv")

    assert await cast.rows(evil) == []
    assert len(await cast.rows(mine)) == (1 if rule == "csv" else 2)
    (rejected,) = map(json.loads, (tmp_path / "e.csv.rejects.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["last_line"], rejected["rules"]) == (*lines, [rule])


async def test_a_line_with_a_member_that_is_nearly_a_known_one_is_refused(imported: Import, cast: Cast) -> None:
    patient_id = await cast.patient()
    lines = [visit(patient_id, note=MARKER), visit(patient_id, status="completed", mrn=MARKER), visit(patient_id)]

    closing = await imported("e.jsonl", json_lines(lines))

    assert closing == "2 encounters recorded, 0 recorded already, 1 line refused; ignored: status, 1 other"


async def test_a_column_that_is_nearly_a_known_one_records_nothing(imported: Import, cast: Cast) -> None:
    patient_id = await cast.patient()

    with pytest.raises(ImportStopped, match="line 1: column 4 is nearly `notes`"):
        await imported("e.csv", f"patient_id,brand_id,encounter_type,notes\u00a0\n{patient_id},loop,lab,{MARKER}\n")

    assert await counts(cast, patient_id) == {0}


async def test_a_refused_line_that_was_mended_is_recorded_by_the_next_run_and_the_file_of_refused_lines_is_gone(
    imported: Import, cast: Cast, tmp_path: Path
) -> None:
    patient_id = await cast.patient()

    await imported("e.jsonl", json_lines([visit(patient_id), visit(patient_id, encounter_type="house_call")]))
    assert (tmp_path / "e.jsonl.rejects.jsonl").exists()
    closing = await imported("e.jsonl", json_lines([visit(patient_id), visit(patient_id, encounter_type="other")]))

    assert closing == "1 encounter recorded, 1 recorded already, 0 lines refused"
    assert not (tmp_path / "e.jsonl.rejects.jsonl").exists()


async def test_refusals_are_on_the_trail_once_a_kind(imported: Import, cast: Cast) -> None:
    client = f"import-{uuid4().hex[:12]}"

    await imported("e.jsonl", json_lines([visit("nobody")] * 50), client=client)

    entries = await cast.connection.fetch(
        "SELECT event_type, details FROM patient_graph.audit_log WHERE actor_id = $1", client
    )
    assert [(row["event_type"], json.loads(row["details"])) for row in entries] == [
        ("patient_graph.request.refused", {"code": "not_found"})
    ]


async def test_refused_lines_go_where_they_are_told_to_but_never_over_the_file_itself(
    imported: Import, tmp_path: Path
) -> None:
    await imported("e.jsonl", json_lines([visit("nobody")]), rejects=tmp_path / "elsewhere")
    assert json.loads((tmp_path / "elsewhere").read_text())["line"] == 1

    text = json_lines([visit("nobody")])
    for rejects in (tmp_path / "e.jsonl", tmp_path / "missing" / "x"):
        with pytest.raises(ImportStopped, match=r"must not be the imported file|cannot be written"):
            await imported("e.jsonl", text, rejects=rejects)
    assert (tmp_path / "e.jsonl").read_text() == text


@pytest.mark.parametrize("header", ["", "patient_id,brand_id", "patient_id;brand_id;encounter_type"])
async def test_a_first_line_that_does_not_name_the_columns_stops_the_import(imported: Import, header: str) -> None:
    with pytest.raises(ImportStopped, match="line 1 must name the columns"):
        await imported("e.csv", f"{header}\np,loop,lab\n")


async def test_a_database_that_may_lose_what_it_acknowledged_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("")

    with pytest.raises(SettingsError, match="not safe for recording"):
        await import_encounters(settings.model_copy(update={"database_unsafe": False}), tmp_path / "e.jsonl")


# The program


def environment(database_url: str) -> dict[str, str]:
    return os.environ | {"GATEWAY_DATABASE_URL": database_url, "GATEWAY_DATABASE_UNSAFE": "true"}


async def started(database_url: str, *arguments: str | Path) -> Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, cwd=ROOT, env=environment(database_url), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def finished(database_url: str, *arguments: str | Path, text: str = "") -> tuple[int | None, str, str]:
    """Run to the end; give the exit code and what was said on either stream."""
    process = await started(database_url, *arguments)
    out, err = await process.communicate(text.encode())
    return process.returncode, out.decode(), err.decode()


async def test_the_command_reads_standard_input_and_names_refused_lines_there(database_url: str, cast: Cast) -> None:
    patient_id, name = await cast.patient(), f"--name={uuid4()}"
    lines = [visit(patient_id), visit("nobody")]

    code, out, err = await finished(database_url, "-", name, text=json_lines(lines))

    assert (code, out) == (1, "1 encounter recorded, 0 recorded already, 1 line refused\n")
    assert err == "line 2: The patient was not found.\n"
    code, out, err = await finished(database_url, "-", name, text=json_lines(lines[:1]))
    assert (code, out, err) == (0, "0 encounters recorded, 1 recorded already, 0 lines refused\n", "")


async def test_on_a_terminal_a_bar_shows_how_far_it_is(database_url: str, cast: Cast, tmp_path: Path) -> None:
    patient_id, file = await cast.patient(), tmp_path / "e.jsonl"
    file.write_text(json_lines(visit(patient_id, notes=str(number)) for number in range(2_000)))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(  # noqa: ASYNC220 - asyncio gives no terminal to read from
        [*COMMAND, file], cwd=ROOT, env=environment(database_url), stdin=theirs, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := await asyncio.to_thread(os.read, ours, 65_536):
            shown += chunk
    except OSError:
        pass  # what Linux says when the other end of a terminal is gone
    os.close(ours)
    out, _ = await asyncio.to_thread(process.communicate)

    assert (process.returncode, out) == (0, b"2000 encounters recorded, 0 recorded already, 0 lines refused\n")
    assert b"\r\x1b[K[" in shown
    assert shown.endswith(b"\r\x1b[K")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_signal_ends_it_although_its_input_is_still_open_and_what_came_is_recorded(
    database_url: str, cast: Cast, number: signal.Signals, code: int
) -> None:
    patient_id, name = await cast.patient(), f"--name={uuid4()}"
    lines = [visit(patient_id, notes=str(number)) for number in range(READ_AHEAD + 10)]
    process = await started(database_url, "-", name)
    process.stdin.write(json_lines(lines).encode())
    # They do not wait for more to come.
    await wait_until(partial(recorded, cast, patient_id, READ_AHEAD))

    process.send_signal(number)
    async with asyncio.timeout(30):
        assert await process.wait() == code
    out, err = await process.communicate()

    assert out == b""
    assert b"Traceback" not in err
    assert b"Fatal" not in err
    _, said, _ = await finished(database_url, "-", name, text=json_lines(lines))
    assert said == "10 encounters recorded, 64 recorded already, 0 lines refused\n"
    assert await counts(cast, patient_id) == {READ_AHEAD + 10}


async def recorded(cast: Cast, patient_id: str, number: int) -> bool:
    return await cast.count("encounters", patient_id) >= number


# Interruptions


async def test_killed_again_and_again_each_line_is_recorded_once(server_url: str, tmp_path: Path) -> None:
    # Nobody else's connections are there.
    url = await fresh_database(server_url)
    connection = await asyncpg.connect(url)
    cast = Cast(connection)
    patient_id, file = await cast.patient(), tmp_path / "e.jsonl"
    # Some are alike, some have keys, some are wrong: whatever becomes of a line, it becomes of it once.
    lines = [visit(patient_id, notes=f"Visit {number // 2}.") for number in range(6_000)]
    lines += [visit(patient_id, key=f"{patient_id}-{number}") for number in range(2_000)]
    lines.insert(1_000, visit("nobody"))
    file.write_text(json_lines(lines))

    seen = 0
    for _ in range(4):
        process = await started(url, file)
        await wait_until(partial(recorded, cast, patient_id, seen + 200))
        process.kill()
        await process.communicate()
        # What was sent when it died may still be committed.
        await wait_until(partial(connection.fetchval, ALONE))
        seen = await cast.count("encounters", patient_id)
    assert 800 <= seen < 8_000

    code, out, _ = await finished(url, file)

    assert (code, out) == (1, f"{8_000 - seen} encounters recorded, {seen} recorded already, 1 line refused\n")
    assert await counts(cast, patient_id) == {8_000}
    await connection.close()


ALONE = """
    SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
"""


@pytest.fixture
async def server() -> AsyncIterator[PrivatePostgres]:
    """A PostgreSQL that a test may stop and start."""
    with tempfile.TemporaryDirectory(prefix="gateway-tests-") as folder:
        server = PrivatePostgres(Path(folder), durable=False)
        server.start()
        yield server
        server.stop()


async def at_home(server: PrivatePostgres) -> tuple[str, str]:
    """Give the address of a migrated database on the server, and a patient there."""
    url = await create_database(server.url())
    await migrate(url)
    connection = await asyncpg.connect(url)
    patient_id = await Cast(connection).patient()
    await connection.close()
    return url, patient_id


async def number_at(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("SELECT count(*) FROM patient_graph.encounters")
    finally:
        await connection.close()


async def test_a_database_that_starts_again_in_the_middle_is_waited_for(
    server: PrivatePostgres, tmp_path: Path
) -> None:
    url, patient_id = await at_home(server)
    file = tmp_path / "e.jsonl"
    file.write_text(json_lines(visit(patient_id, notes=str(number)) for number in range(8_000)))
    process = await started(url, file)
    for goal in (500, 2_500):
        await wait_until(partial(more_than, url, goal))
        server.stop()
        server.start()
    out, err = await process.communicate()

    assert process.returncode == 0, err
    recorded_now, already = (int(part.split()[0]) for part in out.decode().split(", ")[:2])
    # Those whose answer was lost were found under their keys.
    assert recorded_now + already == 8_000
    assert already < 2_000
    connection = await asyncpg.connect(url)
    assert await counts(Cast(connection), patient_id) == {8_000}
    await connection.close()
    assert b"the database is unavailable; retrying for 300 s" in err


async def more_than(url: str, number: int) -> bool:
    return await number_at(url) > number


async def test_a_database_that_stays_away_is_given_up_in_one_sentence_and_the_next_run_goes_on(
    server: PrivatePostgres, tmp_path: Path
) -> None:
    url, patient_id = await at_home(server)
    file = tmp_path / "e.jsonl"
    file.write_text(json_lines(visit(patient_id, notes=str(number)) for number in range(5_000)))
    process = await started(url, file, "--patience-seconds=1")
    await wait_until(partial(more_than, url, 500))
    server.stop()

    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert b"gateway: the database has been away for " in err
    assert b"run the import again under the same name" in err
    assert b"Traceback" not in err

    server.start()
    kept = await number_at(url)
    _, said, _ = await finished(url, file)
    assert said == f"{5_000 - kept} encounters recorded, {kept} recorded already, 0 lines refused\n"


def test_lines_that_were_begun_in_one_thread_may_be_let_go_in_another() -> None:
    record = Record(range(1, 2), {"patient_id": "somebody", "brand_id": "loop", "encounter_type": "lab"})
    lines = _encounters(iter([record, record]), DEFAULT_LIMITS, "an-import")
    reading = threading.Thread(target=next, args=(lines,))
    reading.start()
    reading.join()

    lines.close()
