"""Export the patients of a brand as JSON Lines: the lines that `gateway patients import` reads.

Not as CSV, whose columns after the first two are the names of external ids: a patient may have one named `id`.
"""

from collections.abc import Sequence
from pathlib import Path

import orjson

from gateway.exporters.export import Export
from gateway.exporters.output import FileOutput, Place, output_of
from gateway.exporters.snapshot import Auditor, Snapshot, instant_text
from gateway.settings import Settings
from resolvers.access import Caller
from resolvers.audit_notes import patients_read
from resolvers.services import AuditRecord
from resolvers.sql import Row

FIRST = Place("-infinity", "")
"""A place before that of every patient."""

PAGE = f"""
SELECT p.id, p.brand_id, CAST(p.external_ids AS text) AS external_ids, {instant_text("p.created_at")} AS created_at
FROM patient_graph.patients p
WHERE p.brand_id = $1 AND (p.created_at, p.id) > (CAST(CAST($2 AS text) AS timestamptz), CAST($3 AS text))
ORDER BY p.created_at, p.id LIMIT $4
"""  # noqa: S608 - of names above


async def export_patients(settings: Settings, file: Path, *, brand_id: str, actor: str, force: bool = False) -> str:
    """Export the patients of a brand, and return the final sentence. Raises the errors of `export_encounters`."""
    with output_of(file, {"rows": "patients", "brand": brand_id}, resume=None, force=force) as output:
        async with Auditor.open(settings, actor) as auditor, Snapshot.open(settings, brand_id) as snapshot:
            if isinstance(output, FileOutput):
                output.begin(snapshot.at)
            export = Export(snapshot, auditor, output, "patients")
            await export.begin(0)
            return await export.write_rows(PAGE, FIRST, _lines, _note)


def _note(caller: Caller, request_id: str, brand_id: str, rows: Sequence[Row]) -> AuditRecord:
    return patients_read(caller, request_id, brand_id, [row["id"] for row in rows])


def _lines(rows: Sequence[Row]) -> bytes:
    return b"".join(orjson.dumps(_members(row), option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def _members(row: Row) -> dict[str, object]:
    return {"id": row["id"], "brand_id": row["brand_id"], "external_ids": orjson.Fragment(row["external_ids"])}
