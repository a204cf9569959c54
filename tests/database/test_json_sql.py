"""The JSON that PostgreSQL writes of a row is byte for byte that of Python."""

from datetime import UTC, datetime

import pytest

from gateway.database.database import APP_ROLE, Database
from resolvers import json_text
from resolvers.encounters.json_sql import instant_of, items_of
from resolvers.sql import Statement


@pytest.mark.parametrize("year", [1, 1900, 2026, 9999])
async def test_an_instant_has_six_fractional_digits_or_none(database_url: str, year: int) -> None:
    micros = [0, 1, 999_999, *(digit * 10**zeros for zeros in range(6) for digit in (1, 5, 9))]
    instants = [datetime(year, 12, 31, 23, 59, 59, each, UTC) for each in micros]
    database = await Database.connect(database_url, role=APP_ROLE, size=1, acquire_seconds=5, statement_seconds=5)
    written = Statement(
        f"SELECT {items_of(instant_of('e', 'at'))} AS items"
        " FROM (SELECT to_json(at)::text AS at_json FROM unnest($1::timestamptz[]) at) e",
        ["instants"],
    )

    async with database.connection("loop") as connection:
        row = await connection.fetch_one(written, instants=[*instants, None])

    assert row is not None
    assert row["items"] == ",".join([*(f'"{json_text.instant(each)}"' for each in instants), "null"])
    await database.close()
