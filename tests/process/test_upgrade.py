"""Upgrade and rollback by one version while clients record: no recording is refused, lost or made twice."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Self
from uuid import uuid4

import asyncpg
import pytest

from gateway.database.migrate import migrate
from gateway.settings import SettingsError
from tests.conftest import create_database, fresh_database
from tests.gateways import (
    DOORS,
    ROOT,
    ClientAnswer,
    Door,
    ExecutedGateway,
    Gateway,
    client,
    encounters_by_key,
    is_ready,
    owner_connection,
    wrong_answers,
)
from tests.waiting import wait_until

PREVIOUS = "v0.1.0"
"""The release before this version."""


class Fleet:
    """Gateways behind a load balancer that sends each request to one that is ready, and none to one that stops."""

    def __init__(self) -> None:
        self.running: list[Gateway] = []
        self.answers: list[ClientAnswer] = []
        self._over = False

    @classmethod
    @asynccontextmanager
    async def under_load(cls, *first: Gateway) -> AsyncIterator[Self]:
        """Start the first gateways, and let eight clients record during the block, half of them through each door."""
        fleet = cls()
        try:
            for each in first:
                await fleet.add(each)
            clients = [asyncio.create_task(fleet._record(DOORS[number % 2])) for number in range(8)]
            try:
                yield fleet
            finally:
                fleet._over = True
                await asyncio.gather(*clients)
        finally:
            for each in fleet.running:
                await asyncio.to_thread(each.end)

    async def add(self, gateway: Gateway) -> None:
        """Wait until the gateway is ready, then send requests to it too."""
        await asyncio.to_thread(gateway.started)
        await wait_until(partial(is_ready, gateway.origin))
        self.running.append(gateway)

    async def replace(self, *successors: Gateway) -> None:
        """Replace the gateways one after another: start the successor, then stop the predecessor by SIGTERM."""
        for successor in successors:
            await self.add(successor)
            predecessor = self.running.pop(0)
            assert await asyncio.to_thread(predecessor.stop) == 0
            await asyncio.to_thread(predecessor.end)
            await self.records()

    async def records(self, number: int = 50) -> None:
        """Wait for further acknowledged recordings."""
        more = len(self.answers) + number
        await wait_until(lambda: len(self.answers) >= more)

    async def _record(self, door: Door) -> None:
        turn = 0
        async with client() as http:
            while not self._over:
                turn += 1
                origin = self.running[turn % len(self.running)].origin
                self.answers.append(await door(http, origin, str(uuid4())))
                # Eight clients without a pause would take the processors from the gateways that start.
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def previous_version(tmp_path_factory: pytest.TempPathFactory) -> type[Gateway]:
    """The gateway of the previous release, from the history of this checkout."""
    archive = subprocess.run(["git", "archive", PREVIOUS], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"the checkout has no tag {PREVIOUS}")
    release = tmp_path_factory.mktemp("previous")
    subprocess.run(["tar", "--extract"], cwd=release, input=archive.stdout, check=True)

    class PreviousGateway(ExecutedGateway):
        folder = release

    return PreviousGateway


def refused(answers: Sequence[ClientAnswer]) -> list[ClientAnswer]:
    """Return the answers other than an acknowledged recording."""
    return [each for each in answers if each.encounter_id is None]


async def assert_each_was_recorded_once(url: str, answers: Sequence[ClientAnswer]) -> None:
    async with owner_connection(url) as connection:
        stored = await encounters_by_key(connection)
    assert refused(answers) == []
    assert wrong_answers(answers, stored) == []
    assert stored.keys() == {each.key for each in answers}


async def test_an_upgrade_and_a_rollback_under_load_refuse_no_recording(
    server_url: str, previous_version: type[Gateway]
) -> None:
    url = await create_database(server_url)

    async with Fleet.under_load(previous_version.on(url), previous_version.on(url)) as fleet:
        await fleet.records()
        await migrate(url)
        await fleet.records()
        # The upgrade.
        await fleet.replace(ExecutedGateway.on(url), ExecutedGateway.on(url))
        # The rollback: gateways of the previous version start on the schema of this one.
        await fleet.replace(previous_version.on(url), previous_version.on(url))
        # And the second attempt.
        await fleet.replace(ExecutedGateway.on(url), ExecutedGateway.on(url))

    await assert_each_was_recorded_once(url, fleet.answers)


async def test_a_gateway_serves_the_schema_of_a_newer_one_that_allows_it(server_url: str) -> None:
    url = await fresh_database(server_url)
    async with Fleet.under_load(Gateway.on(url)) as fleet:
        await fleet.records()
        async with owner_connection(url) as owner:
            # As a newer version does: a column that may be null, then its revision.
            await owner.execute("ALTER TABLE patient_graph.encounters ADD COLUMN of_a_newer_version text")
            await owner.execute("UPDATE gateway.schema_revision SET version_num = '9999'")
        await fleet.records()
        await fleet.replace(Gateway.on(url))

    await assert_each_was_recorded_once(url, fleet.answers)


async def test_a_newer_schema_refuses_a_gateway_that_is_too_old(server_url: str) -> None:
    url = await fresh_database(server_url)
    async with owner_connection(url) as owner:
        await owner.execute("UPDATE gateway.schema_revision SET version_num = '9999'")
        await owner.execute("UPDATE gateway.alembic_version SET version_num = '9998'")

    with pytest.raises(SettingsError, match="gateways older than revision 9998 may not serve it"):
        await migrate(url)


async def test_recordings_continue_while_a_migration_waits_for_a_table(
    server_url: str, previous_version: type[Gateway]
) -> None:
    url = await create_database(server_url)
    async with Fleet.under_load(previous_version.on(url)) as fleet, owner_connection(url) as reader:
        await fleet.records()
        # A long transaction that has read the table, such as a backup.
        await reader.execute("BEGIN; SELECT count(*) FROM patient_graph.outbox")
        migration = asyncio.create_task(migrate(url))
        try:
            async with owner_connection(url) as owner:
                await wait_until(lambda: waits_for_the_table(owner), 90)
                await wait_until(lambda: is_given_up(owner))
            await fleet.records(100)
            assert not migration.done()
        finally:
            await reader.execute("COMMIT")
            await migration
        await fleet.records()

    await assert_each_was_recorded_once(url, fleet.answers)


WAITS_FOR_THE_TABLE = """SELECT count(*) > 0 FROM pg_locks
WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relation = 'patient_graph.outbox'::regclass"""


async def waits_for_the_table(connection: asyncpg.Connection) -> bool:
    waits: bool = await connection.fetchval(WAITS_FOR_THE_TABLE)
    return waits


async def is_given_up(connection: asyncpg.Connection) -> bool:
    return not await waits_for_the_table(connection)
