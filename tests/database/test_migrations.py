"""The migrations create exactly the tables of the models, even if several processes run them."""

import asyncio
import json
import re
import runpy
from enum import StrEnum
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from gateway.database.migrate import MIGRATIONS, migrate
from models import EncounterEventKind, EncounterStatus, EncounterType, Table
from models.base import PROCESS_SCHEMA, SCHEMA
from models.oldest_revision import SCHEMA_REVISION
from tests.conftest import create_database
from tests.waiting import wait_until


async def test_ten_concurrent_migrations_succeed(server_url: str) -> None:
    url = await create_database(server_url)

    await asyncio.gather(*(migrate(url) for _ in range(10)))

    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM patient_graph.encounters") == 0
    await connection.close()


async def migrate_to(url: str, revision: str) -> None:
    """Migrate an empty database to an earlier revision."""
    upgrade = command.upgrade
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, revision))
        await migrate(url)


async def test_an_interrupted_creation_of_an_index_is_repeated(server_url: str) -> None:
    url = await create_database(server_url)
    await migrate_to(url, "0009")
    connection = await asyncpg.connect(url)
    # What CREATE INDEX CONCURRENTLY leaves when it is interrupted.
    name = "ix_encounters_brand_id_updated_at_id"
    await connection.execute(f"CREATE INDEX {name} ON patient_graph.encounters (id)")
    await connection.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = $1::regclass", f"patient_graph.{name}"
    )

    await migrate(url)

    assert await connection.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
    assert "updated_at" in await connection.fetchval("SELECT indexdef FROM pg_indexes WHERE indexname = $1", name)
    await connection.close()


async def test_writes_continue_while_indexes_are_created(server_url: str) -> None:
    url = await create_database(server_url)
    await migrate_to(url, "0009")
    early, late = await asyncpg.connect(url), await asyncpg.connect(url)
    await early.execute("BEGIN")
    await early.execute("INSERT INTO patient_graph.patients VALUES ('early', 'loop')")
    await early.execute(
        "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type)"
        " VALUES ('early', gen_random_uuid(), 'loop', 'lab')"
    )

    migrations = [asyncio.create_task(migrate(url)) for _ in range(3)]
    try:

        async def waits() -> bool:
            return await late.fetchval("SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%'")

        await wait_until(waits)
        await late.execute("SET lock_timeout = '5s'; INSERT INTO patient_graph.patients VALUES ('late', 'loop')")
        await late.execute(
            "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type)"
            " VALUES ('late', gen_random_uuid(), 'loop', 'lab')"
        )
        assert not any(each.done() for each in migrations)
    finally:
        await early.execute("COMMIT")
        await asyncio.gather(*migrations)

    assert await late.fetchval("SELECT count(*) FROM pg_indexes WHERE indexname ~ '^ix_encounters_brand_id'") == 6
    await early.close()
    await late.close()


async def test_the_migrated_database_matches_the_models(database_url: str) -> None:
    def differences(connection: Connection) -> Any:
        options = {
            "include_schemas": True,
            "compare_server_default": True,
            "include_name": lambda name, kind, _: kind != "schema" or name in {SCHEMA, PROCESS_SCHEMA},
            "version_table": SCHEMA_REVISION,
            "version_table_schema": PROCESS_SCHEMA,
        }
        return compare_metadata(MigrationContext.configure(connection, opts=options), Table.metadata)

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(database_url), poolclass=NullPool
    )
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


@pytest.mark.parametrize(
    ("check", "enum"),
    [
        ("ck_encounters_encounter_type", EncounterType),
        ("ck_encounters_status", EncounterStatus),
        ("ck_encounter_versions_kind", EncounterEventKind),
    ],
)
async def test_a_check_allows_exactly_the_values_of_its_enum(
    database_url: str, check: str, enum: type[StrEnum]
) -> None:
    # Alembic does not compare CHECK constraints.
    connection = await asyncpg.connect(database_url)
    definition = await connection.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = $1", check
    )
    await connection.close()

    assert set(definition.split("'")[1::2]) == {member.value for member in enum}


async def test_earlier_external_ids_of_patients_can_be_found_after_the_migration(cast) -> None:
    (migration,) = (MIGRATIONS / "versions").glob("*_external_ids.py")
    earlier = {"mrn": "7", "a long id": "x" * 201, "an empty id": "", "": "7", "x" * 201: "7", "lis": "🩺" * 200}
    patient_id = await cast.patient()
    await cast.connection.execute(
        "UPDATE patient_graph.patients SET external_ids = $1 WHERE id = $2", json.dumps(earlier), patient_id
    )

    for _ in range(2):
        await cast.connection.execute(runpy.run_path(str(migration))["PATIENTS"])

    rows = await cast.connection.fetch(
        "SELECT brand_id, system, value FROM patient_graph.patient_external_ids WHERE patient_id = $1", patient_id
    )
    assert {tuple(row) for row in rows} == {("loop", "mrn", "7"), ("loop", "lis", "🩺" * 200)}


CONTRACTIONS = re.compile(
    r"op\.drop_(?:table|column)|op\.rename_table|new_column_name|nullable=False|DROP (?:TABLE|COLUMN)|RENAME|REVOKE"
)


@pytest.mark.parametrize("path", sorted((MIGRATIONS / "versions").glob("*.py")), ids=lambda path: path.stem[:4])
def test_a_migration_that_removes_raises_the_oldest_revision(path: Path) -> None:
    """Expand, then contract: gateways of the previous version serve on the new schema."""
    expanded = re.sub(r"op\.create_table\(.*?\n    \)", "", path.read_text(), flags=re.DOTALL)
    # A column with a default needs no value of an earlier gateway.
    expanded = re.sub(r"sa\.Column\([^\n]*server_default=[^\n]*nullable=False\)", "", expanded)

    is_released = path.stem[:4] <= "0009"
    assert is_released or "UPDATE gateway.alembic_version" in expanded or not CONTRACTIONS.search(expanded)


async def test_every_table_has_its_patient_in_the_key_and_a_brand(database_url: str) -> None:
    patient = {"patients": "id", "idempotency_keys": None}
    for table in (table for table in Table.metadata.tables.values() if table.schema == SCHEMA):
        column = patient.get(table.name, "patient_id")
        assert column is None or column in table.primary_key.columns
        assert not table.columns["brand_id"].nullable


async def test_a_foreign_key_keeps_an_encounter_in_the_brand_of_its_patient(database_url: str, cast) -> None:
    patient_id = await cast.patient("loop")

    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await cast.connection.execute(
            "INSERT INTO patient_graph.encounters (patient_id, id, brand_id, encounter_type)"
            " VALUES ($1, gen_random_uuid(), 'loopbio', 'lab')",
            patient_id,
        )
