"""The in-memory sliding window and token bucket, with a clock that the test sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rate_limits.sliding_window import InMemorySlidingWindow, TokenBucket, Usage


class Clock:
    """A clock that advances only when the test sets it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_the_allowance_and_its_reset_are_reported(clock: Clock) -> None:
    window = InMemorySlidingWindow(60, clock)

    first = await window.take("a", 3, 1)
    clock.now += 10
    second = await window.take("a", 3, 1)

    assert first == Usage(granted=True, remaining=2, more_in_seconds=60)
    assert second == Usage(granted=True, remaining=1, more_in_seconds=50)


async def test_a_refused_request_is_not_counted_and_is_granted_when_promised(clock: Clock) -> None:
    window = InMemorySlidingWindow(60, clock)
    for _ in range(3):
        await window.take("a", 3, 1)
        clock.now += 10

    refused = [await window.take("a", 3, 2) for _ in range(5)]
    clock.now += refused[-1].more_in_seconds
    granted = await window.take("a", 3, 2)

    assert refused == [Usage(granted=False, remaining=0, more_in_seconds=40)] * 5
    assert granted.granted


async def test_more_units_than_the_limit_are_never_granted_or_counted(clock: Clock) -> None:
    window = InMemorySlidingWindow(60, clock)

    refused = await window.take("a", 3, 4)

    assert refused == Usage(granted=False, remaining=3, more_in_seconds=60)
    assert (await window.take("a", 3, 3)).granted


async def test_each_key_has_its_own_window(clock: Clock) -> None:
    window = InMemorySlidingWindow(60, clock)

    taken = [await window.take(key, 1, 1) for key in ("a", "b", "a")]

    assert [each.granted for each in taken] == [True, True, False]


async def test_an_idle_key_is_forgotten(clock: Clock) -> None:
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
async def test_no_span_exceeds_the_limit_and_every_request_within_it_is_granted(
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
async def test_a_wait_is_never_longer_than_the_window(now: float) -> None:
    clock = Clock()
    clock.now = now

    taken = await InMemorySlidingWindow(60, clock).take("a", 1, 1)

    assert taken.more_in_seconds == 60


async def test_returned_units_can_be_used_again(clock: Clock) -> None:
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


def test_a_full_bucket_is_forgotten(clock: Clock) -> None:
    bucket = TokenBucket(per_second=1, capacity=5, clock=clock)
    for number in range(100):
        bucket.use(f"passer-by {number}", 0.5)

    clock.now += 10
    bucket.use("a", 1)

    assert set(bucket._full_at) == {"a"}
