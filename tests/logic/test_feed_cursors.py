"""Cursors of the feed: opaque, deterministic, and valid for one brand and one database."""

import struct
from base64 import urlsafe_b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolvers.errors import InvalidInput
from resolvers.feed_cursors import FeedCursors
from tests.event_helpers import cursor_v1

CURSORS = FeedCursors(bytes(range(32)))
OTHERS = FeedCursors(bytes(32))
POSITIONS = st.integers(0, 2**48 - 1)


def decoded(cursor: str) -> bytes:
    return urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))


@given(POSITIONS, st.sampled_from(["loop", "loopbio"]))
def test_a_cursor_decodes_to_its_position_and_is_deterministic(position: int, brand_id: str) -> None:
    cursor = CURSORS.write(position, brand_id)

    assert CURSORS.read(cursor, brand_id) == position
    assert CURSORS.write(position, brand_id) == cursor


@given(POSITIONS)
def test_a_cursor_does_not_reveal_the_position(position: int) -> None:
    here, next_one = (decoded(CURSORS.write(each, "loop"))[1:] for each in (position, position ^ 1))

    assert struct.pack(">q", position)[2:] not in here
    # Cursors of adjacent positions resemble each other no more than any others.
    assert sum(a == b for a, b in zip(here, next_one, strict=True)) < 8


@given(POSITIONS)
def test_a_salted_cursor_does_not_reveal_equal_positions(position: int) -> None:
    cursors = {CURSORS.write(position, "loop", salted=True) for _ in range(20)}

    assert len(cursors) == 20
    assert {CURSORS.read(cursor, "loop") for cursor in cursors} == {position}


@given(POSITIONS)
def test_a_cursor_of_another_brand_or_database_is_invalid(position: int) -> None:
    cursor = CURSORS.write(position, "loop")

    for cursors, brand_id in ((CURSORS, "loopbio"), (OTHERS, "loop")):
        with pytest.raises(InvalidInput):
            cursors.read(cursor, brand_id)


@pytest.mark.parametrize("brand_id", ["loop", "loopbio"])
def test_a_cursor_of_the_previous_version_is_read(brand_id: str) -> None:
    assert CURSORS.read(cursor_v1(brand_id, 1284), brand_id) == 1284


@given(st.one_of(st.text(), st.binary(max_size=40).map(lambda raw: raw.hex())))
def test_an_invalid_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        CURSORS.read(text, "loop")


@given(POSITIONS)
def test_a_cursor_from_before_a_restore_is_expired(position: int) -> None:
    restored = FeedCursors(bytes(range(1, 33)), [bytes(32), bytes(range(32))])

    for earlier in (CURSORS, OTHERS):
        with pytest.raises(InvalidInput) as refusal:
            restored.read(earlier.write(position, "loop"), "loop")
        assert [violation.rule for violation in refusal.value.violations] == ["cursor_expired"]
    with pytest.raises(InvalidInput) as refusal:
        restored.read(cursor_v1("loop", position), "loop")
    assert [violation.rule for violation in refusal.value.violations] == ["cursor_expired"]
    assert restored.read(restored.write(position, "loop"), "loop") == position
