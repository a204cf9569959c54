"""`gateway patients erase` on an embedded PostgreSQL: no file contains the erased text, and everything else stays."""

import asyncio
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.forked_gateway import run_gateway
from tests.gateways import DEV, GENEROUS_LIMITS, PATH, PATIENT, Gateway

PLACES = (
    "notes", "long notes", "compressed notes", "complaint", "metadata", "amended", "reason", "encounter id",
    "patient id", "replaced id", "stored answer",
)  # fmt: skip
MARKS = {place: secrets.token_hex(8) for place in PLACES}
"""A random text for each place. Those of compressed notes have 8 characters: pglz copies 8 literals without a gap."""
MARKS["compressed notes"] = MARKS["compressed notes"][:8]

RECORD = """mutation ($id: ID!, $input: RecordEncounterInput!, $key: String) {
  recordEncounter(patientId: $id, input: $input, idempotencyKey: $key) {
    ... on EncounterRecorded { encounter { id } } ... on Problem { code message } } }"""
AMEND = """mutation ($id: ID!, $input: AmendEncounterInput!) {
  amendEncounter(id: $id, input: $input, idempotencyKey: "amended") { __typename } }"""
CANCEL = "mutation ($id: ID!, $reason: String) { cancelEncounter(id: $id, reason: $reason) { __typename } }"
REGISTER = """mutation ($id: ID!) { registerPatient(input: {id: $id, brandId: "loop"}) {
  ... on PatientRegistered { alreadyKnown } ... on InvalidInput { violations { path rule } } } }"""
IDENTIFY = """mutation ($id: ID!, $value: JSON!) {
  setPatientExternalIds(id: $id, externalIds: $value) { __typename } }"""
NEIGHBOUR = "neighbour-of-the-patient"


def environment(data_dir: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return inherited | {"GATEWAY_DATA_DIR": str(data_dir), "GATEWAY_PORT": "0"} | GENEROUS_LIMITS


def erase(data_dir: Path, *options: str, patient_id: str = PATIENT, brand_id: str = "loop") -> tuple[int, str, str]:
    return run_gateway(["patients", "erase", patient_id, "--brand", brand_id, *options], env=environment(data_dir))


def ask(gateway: Gateway, query: str, **variables: Any) -> Any:
    answer = httpx2.post(f"{gateway.origin}/graphql", json={"query": query, "variables": variables}, headers=DEV)
    assert "errors" not in answer.json(), answer.text
    return answer.json()["data"]


def record_everywhere(gateway: Gateway) -> None:
    """Record marked text in every place that may hold text about a patient."""
    visit = {"brandId": "loop", "encounterType": "LAB"}
    first = visit | {
        "notes": MARKS["notes"],
        "chiefComplaint": MARKS["complaint"],
        "metadata": {MARKS["metadata"]: MARKS["metadata"]},
        "externalIds": {"emr": MARKS["encounter id"]},
    }
    recorded = ask(gateway, RECORD, id=PATIENT, input=first, key="first")["recordEncounter"]["encounter"]["id"]
    # Random text is not compressed, and is stored outside the row.
    for notes in (MARKS["compressed notes"] + "a" * 20_000, MARKS["long notes"] + secrets.token_urlsafe(9_000)):
        assert "encounter" in ask(gateway, RECORD, id=PATIENT, input=visit | {"notes": notes})["recordEncounter"]
    ask(gateway, AMEND, id=recorded, input={"notes": MARKS["amended"], "reason": MARKS["reason"]})
    ask(gateway, CANCEL, id=recorded, reason=MARKS["reason"])
    ask(gateway, IDENTIFY, id=PATIENT, value={"mrn": MARKS["replaced id"]})
    ask(gateway, IDENTIFY, id=PATIENT, value={"mrn": MARKS["patient id"]})
    body = {"brand_id": "loop", "encounter_type": "lab", "notes": MARKS["stored answer"]}
    httpx2.post(f"{gateway.origin}{PATH}", json=body, headers=DEV | {"Idempotency-Key": "stored"}).raise_for_status()
    ask(gateway, REGISTER, id=NEIGHBOUR)
    of_neighbour = visit | {"notes": "Slept well."}
    assert "encounter" in ask(gateway, RECORD, id=NEIGHBOUR, input=of_neighbour, key="neighbour")["recordEncounter"]


async def settle(data_dir: Path, *, marked_log: bool = False) -> dict[str, str]:
    """Fill the planner's statistics and write all pages to the files; return the statistics that contain a mark."""
    socket = data_dir / "postgres" / "socket"
    connection = await asyncpg.connect(f"postgresql://postgres@/gateway?host={socket}&port=5432")
    await connection.execute("ANALYZE")
    # Segments of the write-ahead log with marked text, which the checkpoint renames for reuse.
    for _ in range(4 if marked_log else 0):
        text = MARKS["notes"] * 500_000
        await connection.execute("SELECT pg_logical_emit_message(false, 'test', $1::text), pg_switch_wal()", text)
    await connection.execute("CHECKPOINT")
    rows = await connection.fetch(
        "SELECT tablename, attname, most_common_vals::text, histogram_bounds::text FROM pg_stats"
    )
    await connection.close()
    return {
        f"{row[0]}.{row[1]}": place for row in rows for place, mark in MARKS.items() if mark in f"{row[2]} {row[3]}"
    }


def found_in(data_dir: Path) -> dict[str, list[str]]:
    """Return the places whose mark a file of the data folder contains, with these files."""
    found: dict[str, list[str]] = {}
    for path in sorted(each for each in data_dir.rglob("*") if each.is_file()):
        content = path.read_bytes()
        for place, mark in MARKS.items():
            if mark.encode() in content:
                found.setdefault(place, []).append(str(path.relative_to(data_dir)))
    return found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a stopped gateway that recorded marked text; no test changes it."""
    data_dir = tmp_path_factory.mktemp("recorded")
    gateway = Gateway(data_dir, **GENEROUS_LIMITS).started()
    try:
        record_everywhere(gateway)
        assert asyncio.run(settle(data_dir, marked_log=True))
    finally:
        gateway.end()
    return data_dir


@pytest.fixture(scope="module")
def erased(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after the patient was erased and the files were rewritten."""
    data_dir = tmp_path_factory.mktemp("erased") / "data"
    shutil.copytree(recorded, data_dir)
    code, output, errors = erase(data_dir, "--yes", "--rewrite", "--actor", "privacy officer")
    assert code == 0, output + errors
    return data_dir


def test_the_search_finds_every_mark_in_tables_and_in_the_log(recorded: Path) -> None:
    """Otherwise the next test could not fail."""
    found = found_in(recorded)

    assert set(found) == set(PLACES)
    for paths in found.values():
        assert any("/base/" in path for path in paths), found
        assert any("/pg_wal/" in path for path in paths), found
    assert len([path for path in found["notes"] if "/pg_wal/" in path]) > 2


def test_no_file_of_the_database_contains_the_erased_text(erased: Path) -> None:
    assert found_in(erased) == {}


def test_without_yes_it_prints_the_rows_and_changes_nothing(recorded: Path, tmp_path: Path) -> None:
    data_dir = shutil.copytree(recorded, tmp_path / "data")

    first, second = erase(data_dir), erase(data_dir)

    assert first == second
    code, output, errors = first
    assert code == 1
    assert "nothing was erased" in errors
    assert {name: int(count) for count, name in map(str.split, output.splitlines())} == {
        "patients": 1,
        "encounters": 4,
        "encounter_versions": 6,
        "encounter_external_ids": 1,
        "patient_external_ids": 1,
        "outbox": 6,
        "dead_letters": 0,
        "idempotency_keys": 3,
    }


def test_another_brand_and_an_unknown_id_have_the_same_answer(recorded: Path, tmp_path: Path) -> None:
    data_dir = shutil.copytree(recorded, tmp_path / "data")

    other_brand = erase(data_dir, "--yes", brand_id="loopbio")
    unknown = erase(data_dir, "--yes", patient_id="nobody")

    assert other_brand == unknown
    assert other_brand[0] == 1
    assert "the brand has no such patient" in other_brand[2]
    assert set(found_in(data_dir)) == set(PLACES)


def test_afterwards_the_audit_chain_verifies_and_others_are_unchanged(
    erased: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A short path: `settle` looks for the socket in the data folder.
    data_dir = shutil.copytree(erased, tmp_path_factory.mktemp("later") / "data")
    gateway = Gateway(data_dir, **GENEROUS_LIMITS).started()
    try:
        unknown = httpx2.get(f"{gateway.origin}{PATH}", headers=DEV)
        listed = httpx2.get(f"{gateway.origin}/v1/patients/{NEIGHBOUR}/encounters", headers=DEV)
        again = ask(gateway, REGISTER, id=PATIENT)["registerPatient"]
        assert asyncio.run(settle(data_dir)) == {}
    finally:
        gateway.end()
    verified = run_gateway(["audit", "verify"], env=environment(data_dir))
    counted, repeated = erase(data_dir), erase(data_dir, "--yes")

    assert (unknown.status_code, unknown.json()["error"]) == (404, "not_found")
    assert [each["notes"] for each in listed.json()["encounters"]] == ["Slept well."]
    assert again == {"violations": [{"path": ["input", "id"], "rule": "erased"}]}
    assert verified[0] == 0, verified
    assert counted[0] == repeated[0] == 0
    assert {line.split()[0] for line in repeated[1].splitlines()[:8]} == {"0"}
    assert found_in(data_dir) == {}
