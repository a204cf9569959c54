"""Properties of strict JSON: writing and reading are inverse, and text that `jsonb` cannot store is refused."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolvers import json_text
from resolvers.errors import MalformedBody

text = st.text(st.characters(codec="utf-8"))
numbers = st.integers(-(10**40), 10**40) | st.decimals(allow_nan=False, allow_infinity=False, places=12)
values = st.recursive(
    st.none() | st.booleans() | numbers | text, lambda inner: st.lists(inner) | st.dictionaries(text, inner)
)


@given(values)
def test_written_json_is_read_back_equal(value: Any) -> None:
    assert json_text.read(json_text.write(value)) == value


@given(values)
def test_reading_and_writing_again_gives_the_same_text(value: Any) -> None:
    written = json_text.write(value)

    assert json_text.write(json_text.read(written)) == written


@given(values)
def test_both_writers_write_the_same_text(value: Any) -> None:
    # The fast writer is not called for values that it cannot write; for all others both write the same bytes.
    assert json_text.write(value) == json_text._written(value, None)


@given(values, st.integers(0, 60))
def test_a_too_large_text_is_refused_in_any_spelling(value: Any, most: int) -> None:
    too_large = len(json_text._written(value, None).encode()) > most
    for write in (json_text.write, json_text._written):
        if too_large:
            with pytest.raises(json_text.TooLarge):
                write(value, most)
        else:
            write(value, most)


@given(values)
def test_written_json_is_read_by_the_standard_library(value: Any) -> None:
    assert json.loads(json_text.write(value), parse_int=Decimal, parse_float=Decimal) == value


@given(st.dictionaries(text, st.integers()))
def test_the_order_of_members_makes_no_difference(members: dict[str, int]) -> None:
    backwards = dict(reversed(members.items()))

    assert json_text.write(members) == json_text.write(backwards)


@given(st.binary())
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        json_text.read(body)
    except MalformedBody as refusal:
        assert refusal.violations


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (b"", "json"),
        (b"{", "json"),
        (b"{} {}", "json"),
        (b"{'a': 1}", "json"),
        (b'{"a": 01}', "json"),
        (b'"\x00"', "json"),
        (b"\xff", "utf8"),
        (b"\xef\xbb\xbf{}", "json"),
        (b'{"a": 1, "a": 1}', "duplicate_member"),
        (b'{"a": {"b": 1, "\\u0062": 2}}', "duplicate_member"),
        (b"[" * 100_000, "too_deep"),
        (b"NaN", "number_range"),
        (b"[-Infinity]", "number_range"),
        (b"1e131072", "number_range"),
        (b"1e-16384", "number_range"),
        (b"1e99999999999999999999", "number_range"),
        (b"-1e-99999999999999999999", "number_range"),
    ],
)
def test_json_that_parsers_read_differently_is_refused(body: bytes, rule: str) -> None:
    with pytest.raises(MalformedBody) as refusal:
        json_text.read(body)

    assert [violation.rule for violation in refusal.value.violations] == [rule]


def test_a_short_number_is_measured_by_its_full_length() -> None:
    value = json_text.read(b"[" + b"1e131071," * 5_000 + b"1]")

    with pytest.raises(json_text.TooLarge):
        json_text.write(value, max_bytes=65_536)


@pytest.mark.parametrize("literal", [b"-0.0", b"-0.00", b"-0e5", b"-0E-3", b"-0", b"-0." + b"0" * 50])
def test_a_negative_zero_is_written_as_the_database_stores_it(literal: bytes) -> None:
    value = json_text.read(literal)

    assert not json_text.write(value).startswith("-")
    assert not json_text._written(value, None).startswith("-")


@pytest.mark.parametrize(
    ("body", "line", "column"),
    [
        (b"", 1, 1),
        (b'{"a": tuberculosis}', 1, 7),
        (b'{\n "a": 1,\n}', 3, 1),
        (b'{"a": 1} {}', 1, 10),
        ('{"größe": 1,,}'.encode(), 1, 13),
        (b'["tuberculosis", "\xff"]', 1, 19),
        ('["ö",\n"ö'.encode() + b"\xff", 2, 3),
        (b'{"a": 1,\n "a": 1}', 2, 2),
        (b'{"a": {"b": 1, "\\u0062": 2}}', 1, 16),
        (b'{"a": [{"x": 1}, {"x": 1}], "x": "a", "a": 2}', 1, 39),
        (b'{"a": "1e999999 \\" NaN",\n"b": [1, NaN]}', 2, 10),
        (b"[-Infinity]", 1, 2),
        (b"[0, 1e131072]", 1, 5),
    ],
)
def test_an_error_in_a_text_has_its_line_and_column(body: bytes, line: int, column: int) -> None:
    with pytest.raises(MalformedBody) as refusal:
        json_text.read(body)

    assert refusal.value.place == (line, column)
    assert refusal.value.message.endswith(f" (line {line}, column {column}).")
    assert "tuberculosis" not in refusal.value.message
