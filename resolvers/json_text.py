"""Strict JSON: parsing of bodies, and serialization in which equal values have equal text.

The standard library's scanner parses. The hooks below refuse values that PostgreSQL's `jsonb` cannot hold, or that two
parsers could interpret differently (RFC 7493, I-JSON). Numbers keep every digit: integers become `int`, the others
`Decimal`, and no number passes through a binary float.
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

# The range of `numeric`, and so of `jsonb`: digits before and after the point. Source: PostgreSQL documentation, 8.1.2
# "Arbitrary Precision Numbers".
MAX_WHOLE_DIGITS = 131_072
MAX_FRACTION_DIGITS = 16_383

# In full, and without the sign of a negative zero: `numeric` has none, and would store `-0.0` as `0.0`.
NUMBER = "zf"

# Characters; a number of at most this length in full is written without checking the size of the text so far.
SHORT_DIGITS = 40

# Digits; a longer integer becomes a Decimal, because Python's own int() is slow, and limited, far beyond it.
INT_DIGITS = 18


def read(body: bytes | str, what: str = "The body") -> Any:
    """Parse a JSON text; `what` is its name in messages.

    Raises `MalformedBody` for anything but one JSON value in UTF-8 without duplicate members, NaN or numbers beyond
    `jsonb`. Its message gives the line and column, and never quotes the text. A string may contain NUL or an unpaired
    surrogate, by an escape: the caller checks strings with `problem_with`, and names the member.
    """
    try:
        text = body if isinstance(body, str) else body.decode("utf-8")
    except UnicodeDecodeError as error:
        # The characters before the first byte that is not UTF-8.
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

    The decoder passes no positions to its hooks. It has found no syntax error before that place.
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
    """Serialize a value that `read` returned, members sorted, numbers in full: equal values have equal text.

    Raises `TooLarge` as soon as the text exceeds `max_bytes`. The size is checked while writing: nine characters such
    as `1e131071` are 128 KiB in full.
    """
    try:
        text = orjson.dumps(value, default=_short_number, option=AS_WRITTEN)
    except TypeError:
        return _written(value, max_bytes)
    if max_bytes is not None and len(text) > max_bytes:
        raise TooLarge
    return text.decode()


# Other types than JSON's raise an error, except floats and tuples, which `read` never returns.
AS_WRITTEN = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


def _short_number(value: object) -> orjson.Fragment:
    if isinstance(value, Decimal) and len(text := format(value, NUMBER)) <= SHORT_DIGITS:
        return orjson.Fragment(text)
    raise TypeError  # a long number, a few of which may exceed the limit: written in pieces


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
    """Return an instant as REST and GraphQL show it: RFC 3339 in UTC with `Z`, to the microsecond if it has any."""
    return value.isoformat().replace("+00:00", "Z")


def shape_of(value: object) -> Shape:
    """Return the type and length of a JSON value, without its content."""
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
    """Return the rule that a string breaks, as (rule, message), or None."""
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
    return MalformedBody("duplicate_member", "An object must not have two members of the same name.")


def number(literal: str) -> int | Decimal:
    """Parse a number's literal exactly. Raises `MalformedBody` beyond the range of `jsonb`."""
    if len(literal) <= INT_DIGITS and literal.lstrip("-").isdigit():
        return int(literal)
    try:
        value = Decimal(literal)
    except InvalidOperation:
        _refuse_number(literal)
    _, digits, exponent = value.as_tuple()
    # A literal is never infinity or NaN, whose exponents are letters.
    assert isinstance(exponent, int)
    if exponent < -MAX_FRACTION_DIGITS or len(digits) + exponent > MAX_WHOLE_DIGITS:
        _refuse_number(literal)
    return value


def _refuse_number(_literal: str) -> Never:
    raise MalformedBody("number_range", "A number is NaN or infinite, or has too many digits to be stored.")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=number, parse_float=number, parse_constant=_refuse_number
)
