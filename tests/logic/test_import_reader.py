"""Reading files to import: a corrupted file yields no record that the original does not contain."""

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.importers import encounters
from gateway.importers import patients as importing
from gateway.importers.reader import CsvFormat, ImportStopped, LineReader, Record, Refusal, Unknown, records_of

MAX_BYTES = 400

COLUMNS = {
    encounters.TABLE: ("patient_id", "brand_id", "chief_complaint", "notes", "encounter_type"),
    importing.TABLE: ("id", "brand_id", "ward", "remark", "mrn"),
}
TABLES = pytest.mark.parametrize("table", COLUMNS, ids=["encounters", "patients"])

# Quoted text that resembles a row, and quotation marks inside words.
WORDS = [
    "a", "größe", "x, y", 'said "hi" to', '5"x', "one\ntwo", "one\r\ntwo",
    "one\np-evil,loop,c,n,lab\ntwo", '{"patient_id": "p-evil", "brand_id": "loop", "encounter_type": "lab"}x',
]  # fmt: skip

values = st.lists(st.sampled_from(WORDS), max_size=4).map(lambda words: "z".join(["", *words, ""]) if words else "")
rows = st.lists(st.tuples(st.sampled_from(["p-1", "p-2"]), st.just("loop"), values, values, st.just("lab")), min_size=1)


def read(content: bytes, table: CsvFormat, name: str, unknown: Unknown | None = None) -> list[Record | Refusal]:
    with NamedTemporaryFile() as written, Path(written.name).open("rb") as file:
        written.write(content)
        written.flush()
        return list(records_of(LineReader(file, MAX_BYTES), Path(name), table, unknown or Unknown()))


def members_of(records: list[Record | Refusal]) -> Iterator[str]:
    for each in records:
        if isinstance(each, Record):
            yield json.dumps(each.members, sort_keys=True)


def content_of(table: CsvFormat, row: tuple[str, ...]) -> str:
    """Return the content of a row in a comparable form."""
    return json.dumps(table.members(dict(zip(COLUMNS[table], row, strict=True))), sort_keys=True)


def csv_of(row: tuple[str, ...], quoting: Any, end: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=quoting, lineterminator=end).writerow(row)
    return text.getvalue().encode()


@TABLES
@given(rows, st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), st.sampled_from(["\n", "\r\n"]))
def test_csv_of_rfc_4180_is_read(table: CsvFormat, rows: list[tuple[str, ...]], quoting: Any, end: str) -> None:
    written = [csv_of(row, quoting, end) for row in rows]
    content = b"".join([csv_of(COLUMNS[table], quoting, end), *written])

    short = [row for row, line in zip(rows, written, strict=True) if len(line) <= MAX_BYTES]
    if not table.breaks:
        short = [row for row in short if "\n" not in "".join(row)]
    assert list(members_of(read(content, table, "f.csv"))) == [content_of(table, row) for row in short]


FAULTS = ("byte", "long", "mark", "undoubled", "open")


@st.composite
def corrupted(draw: st.DrawFn, line: bytes, faults: Sequence[str] = FAULTS) -> bytes:
    """Corrupt a written row in one of the ways in which exporters do."""
    place = draw(st.integers(0, len(line)))
    match draw(st.sampled_from(faults)):
        case "mark":
            return line[:place] + b'"' + line[place:]
        case "byte":
            return line[:place] + b"\xff" + line[place:]
        case "long":
            filling = (b"x" * 30 + b"\np-evil,loop,c,n,lab\n") * 10
            within = line.find(b"z") + 1
            return line[:within] + filling + line[within:] if within else line
        case "undoubled":
            return line.replace(b'""', b'"')
        case _:
            # The closing quotation mark is missing.
            end = line.find(b'z"')
            return line if end < 0 else line[: end + 1] + line[end + 2 :]


def first_row(line: bytes, columns: int) -> list[tuple[str, ...]]:
    """Return the row that a corrupted row begins with, if it is complete: nothing shows that another was meant.

    An example is the text `c,n,lab` and a line break, with a quotation mark inserted before `,lab`.
    """
    with contextlib.suppress(UnicodeDecodeError, csv.Error):
        row = tuple(next(csv.reader(io.StringIO(line.decode(), newline=""), strict=True)))
        return [row] if len(row) == columns else []
    return []


@TABLES
@given(st.data(), rows, st.sampled_from(["\n", "\r\n"]))
def test_every_row_read_from_a_corrupted_csv_file_is_a_row_of_the_original(
    table: CsvFormat, data: st.DataObject, rows: list[tuple[str, ...]], end: str
) -> None:
    # With all values quoted, quoted text cannot be mistaken for rows.
    written = [csv_of(row, csv.QUOTE_ALL, end) for row in rows]
    place = data.draw(st.integers(0, len(rows) - 1))
    written[place] = data.draw(corrupted(written[place]))
    content = b"".join([csv_of(COLUMNS[table], csv.QUOTE_MINIMAL, end), *written])

    meant = {content_of(table, row) for row in [*rows, *first_row(written[place], len(rows[0]))]}
    assert set(members_of(read(content, table, "f.csv"))) <= meant


@TABLES
@given(st.data(), rows)
def test_every_line_read_from_a_corrupted_json_file_is_one_of_the_original(
    table: CsvFormat, data: st.DataObject, rows: list[tuple[str, ...]]
) -> None:
    lines = [table.members(dict(zip(COLUMNS[table], row, strict=True))) for row in rows]
    written = [json.dumps(line).encode() + b"\n" for line in lines]
    place = data.draw(st.integers(0, len(rows) - 1))
    written[place] = data.draw(corrupted(written[place], ("byte", "long")))

    meant_lines = {json.dumps(line, sort_keys=True) for line in lines}
    assert set(members_of(read(b"".join(written), table, "f.jsonl"))) <= meant_lines


HEADER = b"patient_id,brand_id,encounter_type,notes\n"
PHANTOM = b"p-evil,loop,lab,x\n"
GOOD = b"p-1,loop,lab,fine\n"


@pytest.mark.parametrize(
    ("record", "lines", "rule", "goes_on"),
    [
        (b'p,loop,lab,"a\xff\n' + PHANTOM + b'b"\n', (3, 5), "utf8", True),
        (b'p,loop,lab,"\n' + PHANTOM + b'\xff"\n', (3, 5), "utf8", True),
        (b'p,loop,lab,"' + b"x" * MAX_BYTES + b"\n" + PHANTOM + b'b"\n', (3, 5), "too_long", True),
        (b'p,loop,lab,"' + PHANTOM * 30 + b'b"\n', (3, 33), "too_long", True),
        (b'p,loop,lab,"' + b'""' * MAX_BYTES + b"\n" + PHANTOM + b'b"\n', (3, 5), "too_long", True),
        (b"p,loop,lab," + b"x" * MAX_BYTES + b"\n", (3, 3), "too_long", True),
        (b"p,loop,lab,\xff\n", (3, 3), "utf8", True),
        (b"p,loop,lab,a\rp,loop,lab,b\n", (3, 3), "csv", True),
        (b"p,loop,lab\n", (3, 3), "columns", True),
        (b'p,loop,lab,"say "x"\n' + PHANTOM + b'"\n', (3, 6), "csv", False),
        (b'p,loop,"5"\n' + PHANTOM + b'a",lab\n', (3, 6), "columns", False),
        (b'p,loop,lab,5" pipe\n', (3, 4), "csv", False),
        (b'p,loop,lab, "a\n' + PHANTOM + b'"\n', (3, 6), "csv", False),
        (b'p,loop,lab,"a"\r' + PHANTOM, (3, 4), "csv", False),
        (b'p,loop,lab,"open\n' + PHANTOM, (3, 5), "csv", False),
    ],
)
def test_after_an_error_no_row_is_read_up_to_a_provable_end_of_a_row(
    record: bytes, lines: tuple[int, int], rule: str, goes_on: bool
) -> None:
    records = read(HEADER + GOOD + record + GOOD, encounters.TABLE, "f.csv")

    (refusal,) = [each for each in records if isinstance(each, Refusal)]
    assert (refusal.lines[0], refusal.lines[-1], refusal.rules) == (*lines, (rule,))
    assert len(records) == 2 + goes_on
    assert not [line for line in members_of(records) if "evil" in line]


@pytest.mark.parametrize(
    "name", [" notes", "notes ", "Notes", "note", "NOTES", "nots", "notes\u00a0", "\u200bnotes", "scheduledAt", "Key",
             "scheduled at", "scheduled-at", "chiefComplaint", "metdata", "provider_ID", "\uff4eotes"]
)  # fmt: skip
def test_a_nearly_known_column_stops_an_import_before_it_begins(name: str) -> None:
    content = f"patient_id,brand_id,encounter_type,{name}\np-1,loop,lab,tuberculosis\n".encode()

    with pytest.raises(ImportStopped, match=r"line 1: column 4 is a misspelling of `\w+`") as stopped:
        read(content, encounters.TABLE, "f.csv")
    assert "tuberculosis" not in str(stopped.value)


@pytest.mark.parametrize("name", ["Id", " brand_id", "brandId", "brand-id", "ID\u00a0"])
def test_a_nearly_known_column_of_patients_stops_an_import(name: str) -> None:
    with pytest.raises(ImportStopped, match=r"line 1: column 3 is a misspelling of `(brand_)?id`"):
        read(f"id,brand_id,{name}\np-1,loop,x\n".encode(), importing.TABLE, "f.csv")


@pytest.mark.parametrize(
    ("lines", "report"),
    [
        ("patient_id,brand_id,encounter_type\n", ""),
        ("patient_id,brand_id,encounter_type,created_at,tuberculosis\n", "; ignored: created_at, 1 other"),
        ("patient_id,brand_id,encounter_type,mrn,dob,updated_at\n", "; ignored: updated_at, 2 others"),
    ],
)
def test_other_columns_are_counted_and_only_known_names_are_printed(lines: str, report: str) -> None:
    unknown = Unknown()

    read(lines.encode(), encounters.TABLE, "f.csv", unknown)

    assert str(unknown) == report


def test_unknown_members_of_json_lines_follow_the_same_rules() -> None:
    visit: Mapping[str, Any] = {"patient_id": "p-1", "brand_id": "loop", "encounter_type": "lab"}
    others: list[dict[str, Any]] = [{"note": "tuberculosis"}, {"created_at": "x", "tuberculosis": 1}, {"mrn": 1}, {}]
    lines = [{**visit, **each} for each in others]
    unknown = Unknown()

    refused, *read_lines = read("\n".join(map(json.dumps, lines)).encode(), encounters.TABLE, "f.jsonl", unknown)

    assert isinstance(refused, Refusal)
    assert (refused.rules, "tuberculosis" in str(refused)) == (("misspelt_name",), False)
    assert str(refused) == "line 1: notes must be spelt exactly so; a misspelling was sent (misspelt_name)"
    assert [isinstance(each, Record) for each in read_lines] == [True] * 3
    assert str(unknown) == "; ignored: created_at, 2 others"


def test_invalid_json_is_reported_with_its_column() -> None:
    (refused,) = read(b'{"patient_id": tuberculosis}\n', encounters.TABLE, "f.jsonl")

    assert str(refused) == "line 1: must be unambiguous JSON (RFC 7493) (column 16) (json)"
