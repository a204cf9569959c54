"""A moving window, with a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rate_limits.sliding_window import InMemorySlidingWindow, TokenBucket, Usage


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_what_is_left_and_when_there_is_more(clock: Clock) -> None:
    window = InMemorySlidingWindow(60, clock)

    first = await window.take("a", 3, 1)
    clock.now += 10
    second = await window.take("a", 3, 1)

    assert first == Usage(granted=True, remaining=2, more_in_seconds=60)
    assert second == Usage(granted=True, remaining=1, more_in_seconds=50)


async def test_what_is_refused_is_not_counted_and_granted_at_the_very_moment_it_was_told(clock: Clock) -> None:
    window = InMemorySlidingWindow(60, clock)
    for _ in range(3):
        await window.take("a", 3, 1)
        clock.now += 10

    refused = [await window.take("a", 3, 2) for _ in range(5)]
    clock.now += refused[-1].more_in_seconds
    granted = await window.take("a", 3, 2)

    assert refused == [Usage(granted=False, remaining=0, more_in_seconds=40)] * 5
    assert granted.granted


async def test_more_than_the_limit_at_once_is_never_granted_and_takes_nothing(clock: Clock) -> None:
    window = InMemorySlidingWindow(60, clock)

    refused = await window.take("a", 3, 4)

    assert refused == Usage(granted=False, remaining=3, more_in_seconds=60)
    assert (await window.take("a", 3, 3)).granted


async def test_each_key_counts_for_itself(clock: Clock) -> None:
    window = InMemorySlidingWindow(60, clock)

    taken = [await window.take(key, 1, 1) for key in ("a", "b", "a")]

    assert [each.granted for each in taken] == [True, True, False]


async def test_who_does_not_come_back_is_forgotten(clock: Clock) -> None:
    window = InMemorySlidingWindow(60, clock)
    for number in range(1_000):
        await window.take(f"passer-by {number}", 10, 1)

    clock.now += 61
    await window.take("a", 10, 1)

    assert set(window._uses) == {"a"}


@given(
    limit=st.integers(1, 5),
    asked=st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, 3.0, 7.0, 12.0]), st.integers(1, 3)), max_size=60),
)
async def test_no_span_holds_more_than_the_limit_and_nothing_that_fits_is_refused(
    limit: int, asked: list[tuple[float, int]]
) -> None:
    clock, granted = Clock(), list[float]()
    window = InMemorySlidingWindow(10, clock)

    for pause, units in asked:
        clock.now += pause
        in_window = sum(at > clock.now - 10 for at in granted)
        taken = await window.take("a", limit, units)
        assert taken.granted == (in_window + units <= limit)
        granted += [clock.now] * units if taken.granted else []
        assert taken.remaining == limit - sum(at > clock.now - 10 for at in granted)


@given(st.floats(0, 10**7))
async def test_there_is_never_longer_to_wait_than_the_window(now: float) -> None:
    clock = Clock()
    clock.now = now

    taken = await InMemorySlidingWindow(60, clock).take("a", 1, 1)

    assert taken.more_in_seconds == 60


async def test_what_is_given_back_can_be_taken_again(clock: Clock) -> None:
    window = InMemorySlidingWindow(60, clock)
    for _ in range(3):
        await window.take("a", 3, 1)

    await window.release("a", 3, 2)
    await window.release("nobody", 3, 2)

    assert (await window.take("a", 3, 2)).granted
    assert not (await window.take("a", 3, 1)).granted


def test_a_bucket_refills_at_its_rate_and_may_be_overdrawn(clock: Clock) -> None:
    bucket = TokenBucket(per_second=0.1, capacity=0.5, clock=clock)

    waits = []
    for _ in range(3):
        bucket.use("a", 0.25)
        waits.append(round(bucket.wait_seconds("a"), 6))
    clock.now += 2

    assert waits == [0, 0, 2.5]
    assert round(bucket.wait_seconds("a"), 6) == 0.5
    assert bucket.wait_seconds("b") == 0


def test_a_bucket_that_is_full_again_is_forgotten(clock: Clock) -> None:
    bucket = TokenBucket(per_second=1, capacity=5, clock=clock)
    for number in range(100):
        bucket.use(f"passer-by {number}", 0.5)

    clock.now += 10
    bucket.use("a", 1)

    assert set(bucket._full_at) == {"a"}
