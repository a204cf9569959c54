"""Properties of instants: the stored instant equals the sent one, to the microsecond."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from resolvers.commands import parse_instant

offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(), offsets)
def test_an_instant_is_the_same_in_any_offset(naive: datetime, offset: timezone) -> None:
    instant = naive.replace(tzinfo=offset)
    assume(datetime.min.replace(tzinfo=UTC) <= instant <= datetime.max.replace(tzinfo=UTC))

    assert parse_instant(instant.isoformat()) == instant


# Hypothesis also tries strings of this project, and some of those are instants.
@given(st.text().filter(lambda text: not re.match(r"\d{4}-\d\d-\d\d", text)))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(PydanticCustomError):
        parse_instant(text)


def test_digits_after_the_microsecond_are_cut_off() -> None:
    assert parse_instant("2026-01-01T00:00:00.123456999Z") == datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)


def test_lower_case_letters_are_accepted() -> None:
    assert parse_instant("2026-01-01t00:00:00z") == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-01T00:00:60Z",
        "2026-01-01T24:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-01-01 00:00:00Z",
        "2026-01-01T00:00Z",
        "2026-01-01T00:00:00+1",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00-24:00",
        "2026-01-01T00:00:00+01:60",
        "2026-01-01T00:00:00-00:60",
        "2026-01-01T00:00:00+23:99",
        "2026-01-01T00:60:00Z",
        "2026-01-01T24:00:00.0Z",
        "2026-01-01T23:59:61Z",
        "2026-02-30T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-00:01",
        "2026-W01-1T00:00:00Z",
        "2026-01-01T00:00:00Z\n",
    ],
)
def test_an_invalid_date_and_time_is_refused(text: str) -> None:
    with pytest.raises(PydanticCustomError) as refusal:
        parse_instant(text)

    assert refusal.value.type == "date_time"


@pytest.mark.parametrize("text", ["2016-12-31T23:59:60Z", "2017-01-01T00:59:60.5+01:00"])
def test_a_leap_second_is_refused_as_such(text: str) -> None:
    with pytest.raises(PydanticCustomError) as refusal:
        parse_instant(text)

    assert refusal.value.type == "date_time"
    assert "leap second" in refusal.value.message()


@given(st.integers(0, 99), st.integers(0, 99))
def test_an_offset_is_at_most_23_hours_and_59_minutes(hours: int, minutes: int) -> None:
    text = f"2026-01-02T00:00:00-{hours:02}:{minutes:02}"

    if hours <= 23 and minutes <= 59:
        assert parse_instant(text) == datetime(2026, 1, 2, tzinfo=UTC) + timedelta(hours=hours, minutes=minutes)
    else:
        with pytest.raises(PydanticCustomError):
            parse_instant(text)
