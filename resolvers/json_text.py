"""Strict JSON: what a body may contain, and how a value is written down so that equal values are equal text.

The standard library's scanner reads; the hooks below refuse what PostgreSQL's `jsonb` cannot hold or what two
readers could understand differently (RFC 7493, I-JSON). Numbers keep every digit: whole numbers become `int`, the
others `Decimal`, and nothing passes through a binary float.
"""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal, InvalidOperation
from json.encoder import encode_basestring
from typing import Any, Never

import orjson

from resolvers.errors import MalformedBody, Shape
from resolvers.rules import RuleId

# What `numeric`, and so `jsonb`, can hold: digits before and after the point.
# Source: PostgreSQL documentation, 8.1.2 "Arbitrary Precision Numbers".
MAX_WHOLE_DIGITS = 131_072
MAX_FRACTION_DIGITS = 16_383

# In full, and without the sign of a negative zero: `numeric` has none, and would keep `-0.0` as `0.0`.
NUMBER = "zf"

# A number that is no longer than this in full is written without looking how much there is already.
SHORT_DIGITS = 40

# A whole number longer than this is kept as a Decimal: Python's own int() is slow, and limited, far beyond it.
INT_DIGITS = 18


def read(body: bytes | str, what: str = "The body") -> Any:
    """Read a JSON text; `what` is its name in messages.

    Raises `MalformedBody` for anything that is not one JSON value in UTF-8 without duplicate members, NaN or numbers
    beyond `jsonb`. Its message says at which line and column, and never quotes the text. A string may hold NUL or an
    unpaired surrogate, by an escape: the caller who takes it asks `problem_with`, and says where it stands.
    """
    try:
        text = body if isinstance(body, str) else body.decode("utf-8")
    except UnicodeDecodeError as error:
        # As many characters as are UTF-8 before the byte that is not.
        before = error.object[: error.start].decode("utf-8")
        raise MalformedBody("utf8", f"{what} must be UTF-8.", place=_place(before, len(before))) from None
    try:
        return _decoder.decode(text)
    except RecursionError:
        raise MalformedBody("too_deep", f"{what} is nested too deeply.") from None
    except MalformedBody as error:
        raise _placed(error, text) from None
    except json.JSONDecodeError as error:
        place = _place(text, error.pos)
        raise MalformedBody("json", f"{what} must be one JSON value.", place=place) from None


def _place(text: str, position: int) -> tuple[int, int]:
    """Return the line and the column of a position, both from 1; columns count characters."""
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}:]|-?[0-9][0-9.eE+-]*|-?Infinity|NaN', re.DOTALL)


def _placed(error: MalformedBody, text: str) -> MalformedBody:
    """Return the error with the place of the first name or number that the decoder's hooks refuse.

    The decoder tells its hooks no positions. It has found no fault in the grammar up to there.
    """
    names: list[set[str]] = []
    string = None
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "{":
                names.append(set())
            case "}":
                names.pop()
            case ":":
                assert string is not None
                name = json.loads(string[0])
                if name in names[-1]:
                    return _at(string.start(), text, _named_twice())
                names[-1].add(name)
            case each if each[0] == '"':
                string = token
            case each:
                try:
                    (number if each[-1].isdigit() else _refuse_number)(each)
                except MalformedBody as refused:
                    return _at(token.start(), text, refused)
    return error


def _at(position: int, text: str, error: MalformedBody) -> MalformedBody:
    (violation,) = error.violations
    return MalformedBody(violation.rule, violation.message, place=_place(text, position))


class TooLarge(ValueError):
    """The text would be longer than allowed."""


def write(value: Any, max_bytes: int | None = None) -> str:
    """Write a value that `read` gave, members sorted, numbers in full: equal values give equal text.

    Raises `TooLarge` as soon as the text passes `max_bytes`: nine characters such as `1e131071` are 128 KiB in full,
    so the size is checked while writing, not after.
    """
    try:
        text = orjson.dumps(value, default=_short_number, option=AS_WRITTEN)
    except TypeError:
        return _written(value, max_bytes)
    if max_bytes is not None and len(text) > max_bytes:
        raise TooLarge
    return text.decode()


# What is no JSON value is not written by chance: only floats and tuples, which `read` never gives, would be.
AS_WRITTEN = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


def _short_number(value: object) -> orjson.Fragment:
    if isinstance(value, Decimal) and len(text := format(value, NUMBER)) <= SHORT_DIGITS:
        return orjson.Fragment(text)
    raise TypeError  # a long one, of which a few may be too many: piece by piece


def _written(value: Any, max_bytes: int | None) -> str:
    pieces, size = [], 0
    for piece in _pieces(value):
        size += len(piece) if piece.isascii() else len(piece.encode())
        if max_bytes is not None and size > max_bytes:
            raise TooLarge
        pieces.append(piece)
    return "".join(pieces)


def _pieces(value: Any) -> Iterator[str]:
    match value:
        case None:
            yield "null"
        case True:
            yield "true"
        case False:
            yield "false"
        case str():
            yield encode_basestring(value)
        case int():
            yield str(value)
        case Decimal():
            yield format(value, NUMBER)
        case dict():
            separator = "{"
            for name in sorted(value):
                yield separator + encode_basestring(name) + ":"
                yield from _pieces(value[name])
                separator = ","
            yield "}" if value else "{}"
        case list():
            separator = "["
            for item in value:
                yield separator
                yield from _pieces(item)
                separator = ","
            yield "]" if value else "[]"
        case _:
            raise TypeError(f"not a JSON value: {type(value).__name__}")


def instant(value: datetime) -> str:
    """Write an instant as both doors show it: RFC 3339 in UTC with `Z`, to the microsecond where it has any."""
    return value.isoformat().replace("+00:00", "Z")


def shape_of(value: object) -> Shape:
    """Say what kind of JSON value it is, and how long, and nothing of what it holds."""
    match value:
        case None:
            return Shape("null")
        case bool():
            return Shape("boolean")
        case str():
            return Shape("string", len(value))
        case dict():
            return Shape("object", len(value))
        case list() | tuple():
            return Shape("array", len(value))
        case _:
            return Shape("number")


def problem_with(text: str) -> tuple[RuleId, str] | None:
    """Say which rule a string breaks, as (rule, message), or None."""
    if "\x00" in text:
        return "nul", "must not contain the NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "surrogate", "must not contain an unpaired surrogate"
    return None


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    members_by_name = dict(members)
    if len(members_by_name) != len(members):
        raise _named_twice()
    return members_by_name


def _named_twice() -> MalformedBody:
    return MalformedBody("duplicate_member", "An object must not name a member twice.")


def number(literal: str) -> int | Decimal:
    """Read a number's literal exactly. Raises `MalformedBody` beyond what `jsonb` holds."""
    if len(literal) <= INT_DIGITS and literal.lstrip("-").isdigit():
        return int(literal)
    try:
        value = Decimal(literal)
    except InvalidOperation:
        _refuse_number(literal)
    _, digits, exponent = value.as_tuple()
    # A literal gives no infinity and no NaN, whose exponents are letters.
    assert isinstance(exponent, int)
    if exponent < -MAX_FRACTION_DIGITS or len(digits) + exponent > MAX_WHOLE_DIGITS:
        _refuse_number(literal)
    return value


def _refuse_number(_literal: str) -> Never:
    raise MalformedBody("number_range", "A number is beyond what can be stored exactly.")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=number, parse_float=number, parse_constant=_refuse_number
)
