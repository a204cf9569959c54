"""Laws of time: the instant that was sent is the instant that is kept, to the microsecond."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from resolvers.commands import parse_instant

offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(), offsets)
def test_the_same_instant_comes_back_whatever_offset_it_was_told_with(naive: datetime, offset: timezone) -> None:
    told = naive.replace(tzinfo=offset)
    assume(datetime.min.replace(tzinfo=UTC) <= told <= datetime.max.replace(tzinfo=UTC))

    assert parse_instant(told.isoformat()) == told


# Hypothesis tries strings it finds in this project too, and some of those are instants.
@given(st.text().filter(lambda text: not re.match(r"\d{4}-\d\d-\d\d", text)))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(PydanticCustomError):
        parse_instant(text)


def test_digits_beyond_the_microsecond_are_cut_off() -> None:
    assert parse_instant("2026-01-01T00:00:00.123456999Z") == datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)


def test_lower_case_letters_are_read_too() -> None:
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
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "2026-W01-1T00:00:00Z",
        "2026-01-01T00:00:00Z\n",
    ],
)
def test_what_is_no_date_and_time_is_refused(text: str) -> None:
    with pytest.raises(PydanticCustomError) as refusal:
        parse_instant(text)

    assert refusal.value.type == "date_time"
