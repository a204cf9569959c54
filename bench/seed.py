"""The encounters that are asked for: made up, the same at each run, made by PostgreSQL itself.

Small patients have 60 encounters each and large ones 860, strewn over time and over the disk as in life; a third kind has
none, and is written to.
"""

import asyncpg

BRAND = "loop"
SMALL, LARGE, WRITTEN = 1_900, 100, 1_000
OF_SMALL, OF_LARGE = 60, 860
ENCOUNTERS = SMALL * OF_SMALL + LARGE * OF_LARGE

PATIENTS = """
INSERT INTO patient_graph.patients (id, brand_id)
SELECT kind || '-' || number, $1
FROM (VALUES ('small', $2::int), ('large', $3::int), ('written', $4::int)) AS kinds (kind, count),
     generate_series(0, count - 1) AS number
"""

# 7919 is prime to the count, so that every encounter has a place of its own in time, and a patient's lie far apart.
ENCOUNTERS_STREWN = """
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
        CASE WHEN n < $2::int THEN 'small-' || n % $3::int ELSE 'large-' || n % $4::int END AS patient_id,
        timestamptz '2024-01-01 00:00:00Z' + make_interval(secs => n::bigint * 7919 % $5::int * 300 + n / 1e6) AS at,
        md5(n::text) AS hash
    FROM generate_series(0, $5::int - 1) AS n
) AS made
ORDER BY at
"""


async def seed(owner_url: str) -> None:
    """Put the patients and their encounters into empty tables. Takes about ten seconds."""
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.execute(PATIENTS, BRAND, SMALL, LARGE, WRITTEN)
        await connection.execute(ENCOUNTERS_STREWN, BRAND, SMALL * OF_SMALL, SMALL, LARGE, ENCOUNTERS, timeout=600)
        await connection.execute("VACUUM ANALYZE", timeout=600)
    finally:
        await connection.close()
