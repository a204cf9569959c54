"""A short run of `make crash`: after kills under load, each acknowledged encounter is stored once and complete."""

import pytest

from tests.citus_servers import PROGRAMS
from tests.crash import crash, crash_cluster


async def test_after_kills_each_acknowledged_encounter_is_stored_once() -> None:
    assert await crash(rounds=4, seed=7) == []


@pytest.mark.skipif(PROGRAMS is None, reason="needs TEST_CITUS_BIN")
async def test_kills_on_a_cluster_lose_no_acknowledged_encounter() -> None:
    assert await crash_cluster(rounds=4, seed=7) == []
