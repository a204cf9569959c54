"""Isolation inside PostgreSQL: row-level security and the privileges of both roles."""

from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from gateway.database.database import APP_ROLE, RELAY_ROLE
from models import MEMBERS, Table
from models.base import SCHEMA
from tests.cast import Cast


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection with the role of the gateway, for the brand `loop`."""
    connection = await asyncpg.connect(database_url, server_settings={"role": APP_ROLE, "app.brand_id": "loop"})
    yield connection
    await connection.close()


@pytest.fixture
async def foreign_patient(cast: Cast) -> str:
    patient_id = await cast.patient("loopbio")
    await cast.connection.execute(
        "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type)"
        " VALUES ($1, gen_random_uuid(), 'loopbio', 'lab')",
        patient_id,
    )
    return patient_id


async def test_rows_of_another_brand_are_invisible(app: asyncpg.Connection, foreign_patient: str) -> None:
    for table, column in (("patients", "id"), ("encounters", "patient_id")):
        seen = await app.fetch(f"SELECT 1 FROM patient_graph.{table} WHERE {column} = $1", foreign_patient)
        assert seen == []


async def test_rows_of_another_brand_cannot_be_inserted(app: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await app.execute("INSERT INTO patient_graph.patients (id, brand_id) VALUES ($1, 'loopbio')", str(uuid4()))


async def test_without_a_brand_no_row_is_visible(database_url: str, cast: Cast) -> None:
    await cast.patient()
    connection = await asyncpg.connect(database_url, server_settings={"role": APP_ROLE})

    assert await connection.fetchval("SELECT count(*) FROM patient_graph.patients") == 0

    await connection.close()


@pytest.mark.parametrize("table", ["audit_log", "encounter_versions"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET brand_id = 'x'", "DELETE FROM {}", "TRUNCATE {}"])
async def test_audit_log_and_versions_cannot_be_changed_or_deleted(
    app: asyncpg.Connection, statement: str, table: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.execute(statement.format(f"patient_graph.{table}"))


async def test_every_table_has_row_level_security(cast: Cast) -> None:
    with_policies = await cast.connection.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'patient_graph'::regnamespace AND relkind = 'r'"
        " AND relrowsecurity"
    )

    assert {row["relname"] for row in with_policies} == {
        table.name for table in Table.metadata.tables.values() if table.schema == SCHEMA
    }


async def test_the_app_role_owns_nothing_and_bypasses_no_policy(app: asyncpg.Connection) -> None:
    role = await app.fetchrow("SELECT rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = $1", APP_ROLE)
    owned = await app.fetchval("SELECT count(*) FROM pg_class WHERE relowner = $1::regrole", APP_ROLE)

    assert await app.fetchval("SELECT current_user") == APP_ROLE
    assert not any(role.values())
    assert owned == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE gateway.watermark SET position = 0",
        "SELECT FROM gateway.sinks",
        "SELECT FROM gateway.leases",
        "SELECT FROM patient_graph.dead_letters",
        "UPDATE patient_graph.outbox SET position = 1",
        "DELETE FROM patient_graph.outbox",
    ],
)
async def test_the_app_role_cannot_change_the_feed(app: asyncpg.Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM patient_graph.encounters",
        "SELECT FROM patient_graph.patients",
        "UPDATE patient_graph.outbox SET payload = '{}'",
        "INSERT INTO patient_graph.outbox VALUES ('x', gen_random_uuid(), 'loop', 'x', '{}')",
        "DELETE FROM gateway.watermark",
    ],
)
async def test_the_relay_role_reads_no_encounter_and_inserts_no_event(database_url: str, statement: str) -> None:
    connection = await asyncpg.connect(database_url, server_settings={"role": RELAY_ROLE})

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(statement)

    await connection.close()


# Columns that may contain text about a patient, or the patient's identifiers elsewhere.
CLINICAL = {
    "patients": {"external_ids"},
    "patient_external_ids": {"system", "value"},
    "encounter_external_ids": {"system", "value"},
    "encounters": {member.name for member in MEMBERS.values() if member.clinical},
    "encounter_versions": {"reason", "changes"},
    "idempotency_keys": {"answer"},
}

# A new column fails the test until it is listed here or unreadable for the relay.
READ_BY_THE_RELAY = {
    "idempotency_keys": {"key", "expires_at"},
    "outbox": {
        "patient_id", "id", "brand_id", "event_type", "payload", "created_at", "position", "published_at",
        "actor_id", "provider_ids", "encounter_types", "traceparent",
    },
    "dead_letters": {
        "patient_id", "id", "sink", "brand_id", "event_type", "payload", "created_at", "position", "reason", "died_at",
    },
    "audit_log": {
        "patient_id", "id", "occurred_at", "actor_type", "actor_id", "actor_brand_id", "event_type", "entity_type",
        "entity_id", "brand_id", "request_id", "details",
    },
    "audit_chain": set(Table.metadata.tables[f"{SCHEMA}.audit_chain"].columns.keys()),
}  # fmt: skip


async def test_the_relay_role_reads_no_clinical_column_of_any_table(cast: Cast) -> None:
    rows = await cast.connection.fetch(
        "SELECT relname, array_agg(attname::text) AS columns FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid"
        " WHERE relnamespace = 'patient_graph'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped"
        " AND has_column_privilege($1, pg_class.oid, attnum, 'SELECT') GROUP BY relname",
        RELAY_ROLE,
    )
    readable = {row["relname"]: set(row["columns"]) for row in rows}

    assert readable == READ_BY_THE_RELAY
    for table, columns in CLINICAL.items():
        assert columns <= set(Table.metadata.tables[f"{SCHEMA}.{table}"].columns.keys())
        assert not columns & readable.get(table, set())
