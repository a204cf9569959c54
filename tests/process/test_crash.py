"""A short run of `make crash`: after kills under load, each acknowledged encounter is stored once and complete."""

from tests.crash import crash


async def test_after_kills_each_acknowledged_encounter_is_stored_once() -> None:
    assert await crash(rounds=4, seed=7) == []
