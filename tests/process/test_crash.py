"""A short run of `make crash`: killed under load, nothing acknowledged is lost, nothing is there twice or in part."""

from tests.crash import crash


async def test_after_a_few_kills_under_load_everything_acknowledged_is_there_once_and_whole() -> None:
    assert await crash(rounds=4, seed=7) == []
