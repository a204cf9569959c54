"""An export: the rows of a snapshot to an output, each page after its audit entry."""

import sys
import time
from collections.abc import Callable, Sequence

from gateway.exporters.output import Output, Place
from gateway.exporters.snapshot import Auditor, Snapshot
from resolvers.access import Caller
from resolvers.audit_notes import export_note
from resolvers.services import AuditRecord
from resolvers.sql import Row

BAR_SECONDS = 0.2
LINE_SECONDS = 5.0
"""Seconds between two reports of progress, on a terminal and elsewhere."""


class Export:
    """One export of a brand's rows.

    Args:
        snapshot: Where the rows are read.
        auditor: Where the reads are recorded.
        output: Where the rows are written.
        noun: What the rows are, in the plural.
    """

    def __init__(self, snapshot: Snapshot, auditor: Auditor, output: Output, noun: str) -> None:
        self._snapshot = snapshot
        self._auditor = auditor
        self._output = output
        self._noun = noun
        self._before = 0
        self._rows = 0
        self._on_terminal = sys.stderr.isatty()
        self._began_at = self._printed_at = time.monotonic()

    async def begin(self, before: int) -> None:
        """Record the begin of the export, with the number of rows that the output already has."""
        self._before = before
        await self._note("export_begun", {"resumed_after": before} if before else {})

    async def write_rows(
        self,
        sql: str,
        after: Place,
        lines: Callable[[Sequence[Row]], bytes],
        note: Callable[[Caller, str, str, Sequence[Row]], AuditRecord],
    ) -> str:
        """Write the rows of a statement from a place on, finish the output, and return the final sentence.

        Args:
            sql: The statement of `Snapshot.pages`.
            after: The place.
            lines: Returns the lines of a page.
            note: Returns the audit entry of a page, from the caller, the request id, the brand and the rows.
        """
        auditor, brand_id = self._auditor, self._snapshot.brand_id
        async for page in self._snapshot.pages(sql, after):
            await auditor.record(note(auditor.caller, auditor.request_id, brand_id, page))
            self._output.write(lines(page), len(page), Place(page[-1]["created_at"], page[-1]["id"]))
            self._rows += len(page)
            self._report()
        self._output.sync()
        total = self._before + self._rows
        await self._note("exported", {self._noun: total})
        self._output.finish()
        if self._on_terminal:
            sys.stderr.write("\r\x1b[K")
        noun = self._noun if total != 1 else self._noun.removesuffix("s")
        return f"{total} {noun} exported" + (f", {self._before} of them before" if self._before else "")

    async def _note(self, event: str, details: dict[str, object]) -> None:
        auditor, brand_id = self._auditor, self._snapshot.brand_id
        event_type = f"patient_graph.{self._noun}.{event}"
        await auditor.record(export_note(event_type, auditor.caller, auditor.request_id, brand_id, details))

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._printed_at < (BAR_SECONDS if self._on_terminal else LINE_SECONDS):
            return
        self._printed_at = now
        per_second = self._rows / (now - self._began_at)
        text = f"{self._before + self._rows:,} {self._noun} exported, {per_second:,.0f} a second"
        sys.stderr.write(f"\r\x1b[K{text}" if self._on_terminal else f"{text}\n")
        sys.stderr.flush()
