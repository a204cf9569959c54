"""The encounters that are asked for: made up, the same at each run, made by PostgreSQL itself.

Small patients have 60 encounters each and large ones 860, strewn over time and over the disk as in life; a third kind
has none, and is written to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import asyncpg

BRAND = "loop"
OF_SMALL, OF_LARGE = 60, 860
WRITTEN = 1_000


@dataclass(frozen=True)
class Population:
    """How many patients of each kind there are, and the ids of their encounters once there are any."""

    small: int = 1_900
    large: int = 100
    ids: Sequence[str] = field(default=(), repr=False)

    @classmethod
    def share(cls, part: float) -> Self:
        """Give a part of the usual one."""
        return cls(max(20, round(part * cls.small)), max(1, round(part * cls.large)))

    @property
    def encounters(self) -> int:
        """How many encounters they have, all together."""
        return self.small * OF_SMALL + self.large * OF_LARGE


PATIENTS = """
INSERT INTO patient_graph.patients (id, brand_id)
SELECT kind || '-' || number, $1
FROM (VALUES ('small', $2::int), ('large', $3::int), ('written', $4::int)) AS kinds (kind, count),
     generate_series(0, count - 1) AS number
"""

# 7919 is prime to the count, so that every encounter has a place of its own in time, and a patient's lie far apart.
STREWN = """
INSERT INTO patient_graph.encounters (
    patient_id, id, brand_id, provider_id, encounter_type, status, scheduled_at, started_at, ended_at,
    chief_complaint, notes, metadata, created_at, updated_at
)
SELECT
    patient_id,
    (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
        || '7' || substr(hash, 1, 3) || '8' || substr(hash, 4, 15))::uuid,
    $1,
    CASE WHEN n % 4 > 0 THEN md5('provider' || n % 50)::uuid END,
    (ARRAY['office_visit', 'telehealth', 'lab', 'pharmacy', 'other'])[1 + n % 5],
    (ARRAY['scheduled', 'in_progress', 'completed'])[1 + n % 3],
    at + interval '2 days',
    CASE WHEN n % 3 > 0 THEN at + interval '49 hours' END,
    CASE WHEN n % 3 = 2 THEN at + interval '50 hours' END,
    'Complaint ' || n || ': a cough that will not go',
    CASE WHEN n % 8 > 0 THEN 'Made up, number ' || n || '. ' || repeat('Slept well, ate little, walks again. ', 5) END,
    jsonb_build_object('room', n % 30, 'source', 'clinic', 'weight_kg', 50 + n % 50 / 10.0, 'flags', ARRAY['a', 'b']),
    at, at
FROM (
    SELECT
        n,
        {patient} AS patient_id,
        timestamptz '2024-01-01Z' + make_interval(secs => n::bigint * 7919 % $2::int * {apart} + n / 1e6) AS at,
        md5(n::text) AS hash
    FROM generate_series(0, $2::int - 1) AS n
) AS made
ORDER BY at
"""
YEARS_SECONDS = 60_000_000
"""Over so long the encounters are strewn: the last is not in the future."""


async def seed(owner_url: str, population: Population) -> None:
    """Put the patients and their encounters into empty tables. Takes about fifteen seconds."""
    connection = await asyncpg.connect(owner_url)
    try:
        small, large = population.small, population.large
        await connection.execute(PATIENTS, BRAND, small, large, WRITTEN)
        whose = f"CASE WHEN n < {small * OF_SMALL} THEN 'small-' || n % {small} ELSE 'large-' || n % {large} END"
        await strew(connection, population.encounters, whose)
    finally:
        await connection.close()


async def strew(connection: "asyncpg.Connection[asyncpg.Record]", encounters: int, patient: str) -> None:
    """Put so many encounters into the table; `patient` is SQL that says whose the nth is."""
    statement = STREWN.format(patient=patient, apart=YEARS_SECONDS // encounters)
    await connection.execute(statement, BRAND, encounters, timeout=7200)
    await connection.execute("VACUUM ANALYZE patient_graph.encounters, patient_graph.patients", timeout=7200)
