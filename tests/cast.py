"""Invented patients of the tests, and direct access to the tables."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import asyncpg


class Cast:
    """Registers patients and reads the tables."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def patient(self, brand_id: str = "loop") -> str:
        """Register a patient with a new id, and return the id."""
        patient_id = f"patient-{uuid4().hex[:12]}"
        await self.connection.execute(
            "INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, $2)", patient_id, brand_id
        )
        return patient_id

    async def patients(self, count: int, brand_id: str = "loop", *, visits: Sequence[str] = ("lab",) * 5) -> list[str]:
        """Register patients with one encounter for each item of `visits`, and return their ids."""
        ids = [await self.patient(brand_id) for _ in range(count)]
        await self.connection.executemany(
            "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type) VALUES ($1, $2, $3, $4)",
            [(patient_id, uuid4(), brand_id, kind) for patient_id in ids for kind in visits],
        )
        return ids

    async def count(self, table: str, patient_id: str) -> int:
        """Count the rows of a patient in a table; of the audit log only changes, as reads are written later."""
        changes = " AND entity_type = 'encounter'" if table == "audit_log" else ""
        return await self.connection.fetchval(
            f"SELECT count(*) FROM patient_graph.{table} WHERE patient_id = $1{changes}", patient_id
        )

    async def rows(self, patient_id: str) -> list[dict[str, Any]]:
        """Return the stored encounters of a patient, oldest first."""
        rows = await self.connection.fetch(
            "SELECT * FROM patient_graph.encounters WHERE patient_id = $1 ORDER BY created_at, id", patient_id
        )
        return [dict(row) for row in rows]
