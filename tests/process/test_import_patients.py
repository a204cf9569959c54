"""`gateway patients import`: registered patients, refused lines and interrupted imports."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from subprocess import PIPE
from uuid import uuid4

import pytest

from gateway.erasing import erase
from gateway.importers import patients as importing
from gateway.importers.patients import import_patients
from gateway.importers.reader import ImportStopped
from tests.cast import Cast
from tests.doors import Service
from tests.forked_gateway import run_gateway

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "gateway", "patients", "import"]

Import = Callable[[str, str | bytes], Awaitable[str]]


@pytest.fixture
def import_file(database_url: str, tmp_path: Path) -> Import:
    """Return a function that imports a file of a given name and content and returns the summary."""

    async def from_file(name: str, content: str | bytes) -> str:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(await import_patients(database_url, file))

    return from_file


@pytest.fixture
def prefix() -> str:
    """The prefix of the ids of this test's patients."""
    return uuid4().hex[:12]


async def known(cast: Cast, prefix: str) -> dict[str, dict[str, str]]:
    """Return the external ids of the registered patients, by brand and the id without its prefix."""
    rows = await cast.connection.fetch(
        "SELECT id, brand_id, external_ids FROM patient_graph.patients WHERE starts_with(id, $1)", prefix
    )
    return {f"{row['brand_id']}:{row['id'].removeprefix(prefix)}": json.loads(row["external_ids"]) for row in rows}


def csv_of(prefix: str, numbers: range) -> str:
    return "id,brand_id\n" + "".join(f"{prefix}{number},loop\n" for number in numbers)


# Registered patients


async def test_a_csv_file_registers_patients_with_other_columns_as_external_ids(
    import_file: Import, cast: Cast, prefix: str
) -> None:
    closing = await import_file(
        "p.csv", f'brand_id,mrn,id,"chart, old"\nloop,42,{prefix}a,"x ""y"""\nloopbio,,{prefix}b,\n'
    )

    assert closing == "2 patients registered, 0 known already, 0 lines refused"
    assert await known(cast, prefix) == {"loop:a": {"mrn": "42", "chart, old": 'x "y"'}, "loopbio:b": {}}


async def test_an_imported_patient_is_found_by_its_external_ids(
    import_file: Import, service: Service, prefix: str
) -> None:
    await import_file("p.csv", f"id,brand_id,mrn,emr\n{prefix}a,loop,{prefix},\n{prefix}b,loop,{prefix},7\n")

    query = 'query ($value: String!) { patientsByExternalId(system: "mrn", value: $value) { id externalIds } }'
    found = await service.graphql(query, {"value": prefix})
    assert found["data"]["patientsByExternalId"] == [
        {"id": f"{prefix}a", "externalIds": {"mrn": prefix}},
        {"id": f"{prefix}b", "externalIds": {"mrn": prefix, "emr": "7"}},
    ]


async def test_json_lines_register_patients(import_file: Import, cast: Cast, prefix: str) -> None:
    lines = [
        {"id": f"{prefix}a", "brand_id": "loop", "external_ids": {"mrn": "42", "größe": "🩺"}},
        {"id": f"{prefix}b", "brand_id": "loop", "name": "an unknown member is ignored"},
    ]

    closing = await import_file("p.jsonl", "\n".join(map(json.dumps, lines)))

    assert closing == "2 patients registered, 0 known already, 0 lines refused; ignored: 1 other"
    assert await known(cast, prefix) == {"loop:a": {"mrn": "42", "größe": "🩺"}, "loop:b": {}}


@pytest.mark.parametrize("name", ["p.csv", "p.ndjson", "p", "p.txt"])
async def test_byte_order_marks_crlf_and_blank_lines_are_ignored(
    import_file: Import, cast: Cast, prefix: str, name: str
) -> None:
    json_lines = f'{{"id": "{prefix}a", "brand_id": "loop"}}\n\n{{"id": "{prefix}b", "brand_id": "loop"}}'
    csv_lines = f"id,brand_id\n{prefix}a,loop\n\n{prefix}b,loop"
    text = csv_lines if name == "p.csv" else json_lines

    closing = await import_file(name, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())

    assert closing == "2 patients registered, 0 known already, 0 lines refused"
    assert await known(cast, prefix) == {"loop:a": {}, "loop:b": {}}


async def test_known_patients_are_unchanged(import_file: Import, cast: Cast, prefix: str) -> None:
    await import_file("p.csv", f"id,brand_id,mrn\n{prefix}a,loop,first\n")

    closing = await import_file("p.csv", f"id,brand_id,mrn\n{prefix}a,loop,second\n{prefix}a,loopbio,another\n")

    assert closing == "1 patient registered, 1 known already, 0 lines refused"
    assert await known(cast, prefix) == {"loop:a": {"mrn": "first"}, "loopbio:a": {"mrn": "another"}}


async def test_an_erased_patient_is_refused_and_the_other_lines_are_imported(
    import_file: Import, cast: Cast, database_url: str, prefix: str, tmp_path: Path
) -> None:
    lines = f"id,brand_id\n{prefix}a,loop\n{prefix}b,loop\n{prefix}c,loop\n{prefix}b,loopbio\n"
    await import_file("p.csv", f"id,brand_id\n{prefix}b,loop\n")
    await erase(database_url, f"{prefix}b", "loop", "privacy officer", lambda _: None)

    for closing in (
        "3 patients registered, 0 known already, 1 line refused",
        "0 patients registered, 3 known already, 1 line refused",
    ):
        assert await import_file("p.csv", lines) == closing
        (refused,) = [json.loads(line) for line in (tmp_path / "p.csv.rejects.jsonl").read_text().splitlines()]
        assert (refused["line"], refused["rules"]) == (3, ["erased"])
    assert await known(cast, prefix) == {"loop:a": {}, "loop:c": {}, "loopbio:b": {}}


async def test_of_two_lines_with_one_id_the_first_counts(import_file: Import, cast: Cast, prefix: str) -> None:
    closing = await import_file("p.csv", f"id,brand_id,mrn\n{prefix}a,loop,first\n{prefix}a,loop,second\n")

    assert closing == "1 patient registered, 1 known already, 0 lines refused"
    assert await known(cast, prefix) == {"loop:a": {"mrn": "first"}}


async def test_twenty_thousand_patients_are_imported_within_seconds(import_file: Import, prefix: str) -> None:
    async with asyncio.timeout(15):
        closing = await import_file("p.csv", csv_of(prefix, range(20_000)))

    assert closing == "20000 patients registered, 0 known already, 0 lines refused"


async def test_concurrent_imports_in_opposite_order_do_not_deadlock(
    import_file: Import, cast: Cast, prefix: str
) -> None:
    header, *lines = csv_of(prefix, range(3_000)).splitlines()

    await asyncio.gather(
        import_file("up.csv", "\n".join([header, *lines])),
        import_file("down.csv", "\n".join([header, *reversed(lines)])),
    )

    assert len(await known(cast, prefix)) == 3_000


# Refused lines


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('{"brand_id": "loop"}', "id is required (required)"),
        ('{"id": 5, "brand_id": "loop"}', "id must be a string (string)"),
        ('{"id": "PRE/secret", "brand_id": "loop"}', "(patient_id)"),
        ('{"id": "PRE\\nsecret", "brand_id": "loop"}', "(patient_id)"),
        ('{"id": "..", "brand_id": "loop"}', "(patient_id)"),
        ('{"id": "PRE' + "x" * 200 + '", "brand_id": "loop"}', "(patient_id)"),
        ('{"id": "PRE\\u0000", "brand_id": "loop"}', "id must not contain the NUL character (nul)"),
        ('{"id": "PRE\\ud800", "brand_id": "loop"}', "(surrogate)"),
        ('{"id": "PREsecret"}', "brand_id is required (required)"),
        ('{"id": "PREsecret", "brand_id": "loop "}', "(slug)"),
        ('{"id": "PREsecret", "brand_id": "Loop"}', "(slug)"),
        ('{"id": "PREsecret", "brand_id": "' + "l" * 64 + '"}', "(slug)"),
        ('{"id": "PREsecret", "brand_id": "loop", "external_ids": null}', "external_ids must be an object (object)"),
        ('{"id": "PREsecret", "brand_id": "loop", "external_ids": {"secret": 5}}', "a part of external_ids must be"),
        ('{"id": "PREsecret", "brand_id": "loop", "external_ids": {"secret": "\\u0000"}}', "(nul)"),
        ('{"id": "PREsecret", "brand_id": "loop", "external_ids": {"secret": ""}}', "(too_short)"),
        ('{"id": "PREsecret", "brand_id": "loop", "external_ids": {"secret": "' + "x" * 201 + '"}}', "(too_long)"),
        ('{"id": "PREsecret", "id": "PREa", "brand_id": "loop"}', "(duplicate_member)"),
        ('{"id": "PREsecret", "brand_id": "loop"', "(json)"),
        ('["PREsecret", "loop"]', "must be a JSON object (object)"),
        ('{"id": "PREsecret", "brand_id": "loop", "x": "' + "x" * 65_536 + '"}', "must have at most 65536 bytes"),
    ],
)
async def test_a_line_that_breaks_a_rule_is_reported_without_its_content(
    import_file: Import, cast: Cast, prefix: str, capsys: pytest.CaptureFixture[str], *, line: str, rule: str
) -> None:
    good = [json.dumps({"id": f"{prefix}{name}", "brand_id": "loop"}) for name in "ab"]

    closing = await import_file("p.jsonl", "\n".join([good[0], line.replace("PRE", prefix), good[1]]))

    assert closing == "2 patients registered, 0 known already, 1 line refused"
    assert await known(cast, prefix) == {"loop:a": {}, "loop:b": {}}
    printed = capsys.readouterr().err
    assert printed.startswith("line 2: ")
    assert rule in printed
    assert "secret" not in printed
    assert prefix not in printed


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"PREsecret,loop", "line 3: must have 3 values, like line 1 (columns)"),
        (b"PREsecret,loop,1,2", "line 3: must have 3 values, like line 1 (columns)"),
        (b",loop,1", "line 3: id must have"),
        (b"PREsecret,loop,\xff", "line 3: must be UTF-8 (utf8)"),
        (b"PREsecret,loop,a\rPREsecret,loop,b", "line 3: must be CSV"),
        (
            b'PREsecret,loop,"1\nPREsecret,loop,2"',
            "lines 3 to 4: a quoted value must end on the line on which it begins",
        ),
    ],
)
async def test_a_malformed_row_is_reported_without_its_content(
    import_file: Import, cast: Cast, prefix: str, capsys: pytest.CaptureFixture[str], *, lines: bytes, message: str
) -> None:
    text = b"id,brand_id,mrn\nPREa,loop,1\n" + lines + b"\nPREb,loop,2\n"

    closing = await import_file("p.csv", text.replace(b"PRE", prefix.encode()))

    assert closing.startswith("2 patients registered, 0 known already, ")
    assert await known(cast, prefix) == {"loop:a": {"mrn": "1"}, "loop:b": {"mrn": "2"}}
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert "secret" not in error


async def test_no_patient_is_registered_from_text_after_a_stray_quotation_mark(
    import_file: Import, cast: Cast, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    closing = await import_file(
        "p.csv", f'id,brand_id,mrn\n{prefix}a,loop,1\n{prefix}b,loop,"say "hi\n{prefix}evil,loop,2\n"\n'
    )

    assert closing == "1 patient registered, 0 known already, 3 lines refused"
    assert await known(cast, prefix) == {"loop:a": {"mrn": "1"}}
    assert capsys.readouterr().err.startswith("lines 3 to 5: must be CSV")


@pytest.mark.parametrize("column", ["ID", " brand_id", "brandId"])
async def test_a_misspelt_column_stops_the_import(import_file: Import, cast: Cast, prefix: str, column: str) -> None:
    with pytest.raises(ImportStopped, match="line 1: column 3 is a misspelling of"):
        await import_file("p.csv", f"id,brand_id,{column}\n{prefix}a,loop,1\n")

    assert await known(cast, prefix) == {}


async def test_the_file_of_refused_lines_is_removed_when_there_are_none(
    import_file: Import, prefix: str, tmp_path: Path
) -> None:
    await import_file("p.csv", f'id,brand_id,mrn\n{prefix}a,Loop,1\n{prefix}b,loop,"2\n{prefix}c,loop,3"\n')

    rejected = [json.loads(line) for line in (tmp_path / "p.csv.rejects.jsonl").read_text().splitlines()]
    assert [(each["line"], each.get("last_line"), each["rules"]) for each in rejected] == [
        (2, None, ["slug"]),
        (3, 4, ["line_break"]),
    ]
    assert prefix not in json.dumps(rejected)

    await import_file("p.csv", f"id,brand_id,mrn\n{prefix}a,loop,1\n")
    assert not (tmp_path / "p.csv.rejects.jsonl").exists()


async def test_no_patient_is_registered_from_text_after_an_open_quotation_mark(
    import_file: Import, cast: Cast, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    closing = await import_file("p.csv", f'id,brand_id,mrn\n{prefix}a,loop,"1\n{prefix}b,loop,2\n{prefix}c,loop,3\n')

    assert closing == "0 patients registered, 0 known already, 3 lines refused"
    assert capsys.readouterr().err.startswith("lines 2 to 4: ")
    assert await known(cast, prefix) == {}


@pytest.mark.parametrize(
    "header", [b"", b"id;brand_id", b"id,brand", b"id,brand_id,id", b"id,brand_id,", b"\xff\xfei\0d\0", b'"id,brand_id']
)
async def test_a_first_line_without_column_names_stops_the_import(import_file: Import, header: bytes) -> None:
    with pytest.raises(ImportStopped, match="line 1 must name the columns"):
        await import_file("p.csv", header + b"\np1,loop\n")


async def test_an_unreadable_file_stops_the_import(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(ImportStopped, match="cannot be read"):
        await import_patients(database_url, tmp_path / "missing.csv")


async def test_an_unusable_database_stops_the_import_without_showing_a_password(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,brand_id\n")

    with pytest.raises(ImportStopped, match=r"the database cannot be used \(ConnectionRefusedError\)") as stopped:
        await import_patients("postgresql://someone:secret@127.0.0.1:1/x", tmp_path / "p.csv")
    assert "secret" not in str(stopped.value)


# The command


def environment(database_url: str) -> dict[str, str]:
    return os.environ | {"GATEWAY_DATABASE_URL": database_url}


def run(database_url: str, *arguments: str, text: str = "") -> tuple[int, str, str]:
    return run_gateway(["patients", "import", *arguments], env=environment(database_url), text=text)


async def test_the_command_reads_csv_and_json_lines_from_standard_input(
    database_url: str, cast: Cast, prefix: str
) -> None:
    code, out, _ = run(database_url, "-", text=f"id,brand_id\n{prefix}a,loop\n")
    assert (code, out) == (0, "1 patient registered, 0 known already, 0 lines refused\n")

    code, out, _ = run(database_url, "-", text=f'{{"id": "{prefix}b", "brand_id": "loop"}}\n')
    assert (code, out) == (0, "1 patient registered, 0 known already, 0 lines refused\n")

    assert await known(cast, prefix) == {"loop:a": {}, "loop:b": {}}


def test_the_command_exits_with_1_if_a_line_was_refused(database_url: str) -> None:
    code, out, err = run(database_url, "-", text="id,brand_id\na/b,loop\n")

    assert (code, out) == (1, "0 patients registered, 0 known already, 1 line refused\n")
    assert err.startswith("line 2: id must have")


def test_the_command_reports_an_unreadable_file_in_one_sentence(database_url: str) -> None:
    code, out, err = run(database_url, "/nowhere.csv")

    assert (code, out) == (1, "")
    assert err == "gateway: /nowhere.csv cannot be read (No such file or directory)\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_an_interrupted_import_is_completed_by_running_it_again(
    database_url: str, cast: Cast, prefix: str, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "-", cwd=ROOT, env=environment(database_url), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    assert process.stdin is not None
    process.stdin.write(csv_of(prefix, range(importing.BATCH_LINES + 500)).encode())
    await wait_for_first_batch(cast, prefix)
    process.send_signal(number)
    # The input is still open, so the signal has ended the process.
    assert await process.wait() == -number
    out, err = await process.communicate()
    assert out == b""
    assert b"Traceback" not in err
    assert len(await known(cast, prefix)) == importing.BATCH_LINES

    _, printed, _ = run(database_url, "-", text=csv_of(prefix, range(2 * importing.BATCH_LINES)))

    assert printed == "1000 patients registered, 1000 known already, 0 lines refused\n"
    assert len(await known(cast, prefix)) == 2 * importing.BATCH_LINES


async def wait_for_first_batch(cast: Cast, prefix: str) -> None:
    """Return once the first batch of patients is registered."""
    async with asyncio.timeout(30):
        while not await known(cast, prefix):  # noqa: ASYNC110 - another process sends no event
            await asyncio.sleep(0.01)
