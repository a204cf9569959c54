"""An idempotency key that a transaction holds blocks the requests under this key, and no others."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from statistics import median
from uuid import uuid4

import asyncpg
import pytest

from gateway.settings import Settings
from tests.cast import Cast
from tests.doors import Door, GraphQLDoor, Outcome, RestDoor, Service

VISIT = {"brand_id": "loop", "encounter_type": "lab", "notes": "Fasting."}
CLIENT = "dev"
"""The client of the token `dev`."""

OTHERS, EACH = 16, 30
RETRIES = 20


@asynccontextmanager
async def holding(database_url: str, *keys: str) -> AsyncIterator[None]:
    """Insert keys in a transaction that is rolled back at the end, like that of a killed gateway."""
    connection = await asyncpg.connect(database_url)
    await connection.transaction().start()
    for key in keys:
        await connection.execute(
            "INSERT INTO patient_graph.idempotency_keys (brand_id, client_id, key, request_hash, patient_id,"
            " encounter_id, answer, expires_at) VALUES ('loop', $1, $2, '', 'x', $3, '', now())",
            CLIENT, key, uuid4(),
        )  # fmt: skip
    try:
        yield
    finally:
        await connection.close()


@pytest.fixture
async def impatient(database_url: str) -> AsyncIterator[Service]:
    """A service with the default pool and timeouts, without rate limits."""
    settings = Settings(database_url=database_url, rate_writes_per_minute=0, rate_reads_per_minute=0)
    async with Service.running(settings) as service:
        yield service


@pytest.fixture(params=[RestDoor, GraphQLDoor], ids=["rest", "graphql"])
def impatient_door(request: pytest.FixtureRequest, impatient: Service) -> Door:
    door: Door = request.param(impatient)
    return door


async def record_often(door: Door, patient_id: str, times: list[float]) -> list[Outcome]:
    outcomes = []
    for _ in range(EACH):
        begun = time.monotonic()
        outcomes.append(await door.record(patient_id, VISIT, key=str(uuid4())))
        times.append(time.monotonic() - begun)
    return outcomes


@pytest.mark.parametrize("held", [1, 12])
async def test_a_locked_key_blocks_neither_its_brand_nor_another(
    impatient_door: Door, database_url: str, cast: Cast, held: int
) -> None:
    patient_id, foreign_id = await cast.patient(), await cast.patient("loopbio")
    keys, times = [str(uuid4()) for _ in range(held)], list[float]()
    foreign = partial(impatient_door.record, foreign_id, VISIT | {"brand_id": "loopbio"}, token="dev-loopbio")

    async with holding(database_url, *keys):
        retries = [
            asyncio.create_task(impatient_door.record(patient_id, VISIT, key=keys[number % held]))
            for number in range(RETRIES)
        ]
        others = await asyncio.gather(*(record_often(impatient_door, patient_id, times) for _ in range(OTHERS)))
        of_another_brand = [await foreign() for _ in range(EACH)]
        assert not all(task.done() for task in retries)
    outcomes = await asyncio.gather(*retries)

    assert {outcome.code for outcomes in others for outcome in outcomes} == {None}
    assert {outcome.code for outcome in of_another_brand} == {None}
    assert median(times) < 0.5
    # The requests under the keys were recorded once each, or answered that they were not.
    assert {(outcome.code, outcome.recorded) for outcome in outcomes if outcome.code} <= {
        ("temporarily_unavailable", "no")
    }
    recorded = {outcome.encounter["id"] for outcome in outcomes if outcome.code is None}
    assert 1 <= len(recorded) <= held
    assert await cast.count("encounters", patient_id) == OTHERS * EACH + len(recorded)
