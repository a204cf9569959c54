"""The people of the tests, all made up, and what is kept of them behind the doors."""

from typing import Any
from uuid import uuid4

import asyncpg


class Cast:
    """Registers patients and looks into the tables."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def patient(self, brand_id: str = "loop") -> str:
        """Register a patient nobody else knows, and give the id."""
        patient_id = f"patient-{uuid4().hex[:12]}"
        await self.connection.execute(
            "INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, $2)", patient_id, brand_id
        )
        return patient_id

    async def count(self, table: str, patient_id: str) -> int:
        """Count the rows of a patient in a table; of the audit log only changes, because reads come when they come."""
        changes = " AND entity_type = 'encounter'" if table == "audit_log" else ""
        return await self.connection.fetchval(
            f"SELECT count(*) FROM patient_graph.{table} WHERE patient_id = $1{changes}", patient_id
        )

    async def rows(self, patient_id: str) -> list[dict[str, Any]]:
        """Give the encounters kept for a patient, oldest first."""
        rows = await self.connection.fetch(
            "SELECT * FROM patient_graph.encounters WHERE patient_id = $1 ORDER BY created_at, id", patient_id
        )
        return [dict(row) for row in rows]
