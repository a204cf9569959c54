"""Export the encounters of a brand as JSON Lines or CSV: the lines that `gateway encounters import --restore` reads.

All lines of a file are of one snapshot. They are in the order of recording, which never changes. So an interrupted
export is resumed after the last line that is on disk, in a new snapshot, if the lines before it are the same in both.
The audit log names the encounters that were changed meanwhile, and the file is cut before the first of them.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import orjson

from gateway.exporters.export import Export
from gateway.exporters.output import FileOutput, Place, output_of
from gateway.exporters.snapshot import Auditor, Snapshot, instant_text
from gateway.settings import Settings
from models import MEMBERS, Kind, Member
from models.encounter import OF_BRAND
from resolvers.access import Caller
from resolvers.audit_chain import LOOK_BACK
from resolvers.audit_notes import worklist_read
from resolvers.services import AuditRecord
from resolvers.sql import Row

Format = Literal["jsonl", "csv"]

EMPTY_TEXTS = "empty_texts"
"""The column of a CSV file that names the texts that are empty. An empty cell is null."""

FIRST = Place("-infinity", "00000000-0000-0000-0000-000000000000")
"""A place before that of every encounter."""

TEXTS = [name for name, member in MEMBERS.items() if member.kind is Kind.TEXT]
JSON_MEMBERS = [name for name, member in MEMBERS.items() if member.kind is Kind.JSON]


def _text(member: Member) -> str:
    if member.kind is Kind.INSTANT:
        return f"{instant_text(member.name)} AS {member.name}"
    # JSON as its own text, which keeps every digit.
    return member.name if member.kind is Kind.INTEGER else f"CAST({member.name} AS text) AS {member.name}"


_PLACE = "(CAST(CAST($2 AS text) AS timestamptz), CAST(CAST($3 AS text) AS uuid))"

PAGE = f"""
SELECT {", ".join(map(_text, MEMBERS.values()))} FROM patient_graph.encounters e
WHERE e.{OF_BRAND} = $1 AND (e.created_at, e.id) > {_PLACE}
ORDER BY e.created_at, e.id LIMIT $4
"""  # noqa: S608 - of names above

# Every change of an encounter has an entry in its own transaction, and no transaction lasts longer than `LOOK_BACK`.
# An aggregate, because PostgreSQL would serve an order by walking through all encounters.
FIRST_CHANGED = f"""
SELECT min(({instant_text("e.created_at")} || ' ' || CAST(e.id AS text)) COLLATE "C") AS place
FROM patient_graph.audit_log a JOIN patient_graph.encounters e
    ON e.patient_id = a.patient_id AND e.id = CAST(a.entity_id AS uuid)
WHERE a.brand_id = $1 AND e.brand_id = $1 AND a.entity_type = 'encounter'
    AND a.occurred_at >= CAST(CAST($2 AS text) AS timestamptz) - make_interval(secs => {LOOK_BACK.total_seconds():.0f})
"""  # noqa: S608 - of names above

ROWS_UNTIL = f"""
SELECT count(*) FROM patient_graph.encounters e
WHERE e.{OF_BRAND} = $1 AND (e.created_at, e.id) <= {_PLACE}
"""  # noqa: S608 - of names above


async def export_encounters(
    settings: Settings,
    file: Path,
    *,
    brand_id: str,
    file_format: Format,
    actor: str,
    resume: bool = False,
    force: bool = False,
) -> str:
    """Export the encounters of a brand, and return the final sentence.

    Raises `SettingsError` if the database cannot be used, `ExportStopped`, or `BrokenPipeError` if the reader of
    standard output has closed its end.

    Args:
        settings: The gateway's settings, which name the database.
        file: The file; `-` for standard output.
        brand_id: The brand.
        file_format: The format of the file.
        actor: The person or the program whom the audit log names.
        resume: Whether to continue an interrupted export of the file.
        force: Whether to replace an existing file.
    """
    about = {"rows": "encounters", "brand": brand_id, "format": file_format}
    with output_of(file, about, resume=resume, force=force) as output:
        async with Auditor.open(settings, actor) as auditor, Snapshot.open(settings, brand_id) as snapshot:
            export = Export(snapshot, auditor, output, "encounters")
            before, after = 0, FIRST
            if isinstance(output, FileOutput):
                await _rewind(snapshot, output)
                output.begin(snapshot.at)
                if output.checkpoint:
                    before, _, after = output.checkpoint
            await export.begin(before)
            if file_format == "csv" and not before:
                output.write(CSV_HEADER)
            lines = csv_lines if file_format == "csv" else json_lines
            return await export.write_rows(PAGE, after, lines, _note)


async def _rewind(snapshot: Snapshot, output: FileOutput) -> None:
    """Forget the checkpoints of lines that are not the same in this snapshot."""
    if output.snapshot_at is None:
        return
    ((changed,),) = await snapshot.fetch(FIRST_CHANGED, output.snapshot_at)
    if changed is not None:
        output.rewind(Place(*changed.split(" ")))
    if output.checkpoint:
        ((rows,),) = await snapshot.fetch(ROWS_UNTIL, *output.checkpoint.last)
        # Encounters were erased, or restored without the gateway.
        if rows != output.checkpoint.rows:
            output.rewind(None)


def _note(caller: Caller, request_id: str, brand_id: str, rows: Sequence[Row]) -> AuditRecord:
    return worklist_read(caller, request_id, brand_id, Counter(row["patient_id"] for row in rows))


def json_lines(rows: Sequence[Row]) -> bytes:
    """Return a JSON object for each row, without the members that are null."""
    return b"".join(orjson.dumps(_members(row), option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def _members(row: Row) -> dict[str, object]:
    members = {name: value for name, value in row.items() if value is not None}
    return members | {name: orjson.Fragment(members[name]) for name in JSON_MEMBERS}


CSV_HEADER = ",".join([*MEMBERS, EMPTY_TEXTS]).encode() + b"\n"


def csv_lines(rows: Sequence[Row]) -> bytes:
    """Return a CSV record for each row, with every value in quotation marks. Source: RFC 4180."""
    text = io.StringIO()
    # Values are exact, also those that a spreadsheet would take for a formula.
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows((*row, " ".join(name for name in TEXTS if row[name] == "")) for row in rows)
    return text.getvalue().encode()
