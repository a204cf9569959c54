"""Pages of a list, newest first by `(created_at, id)`: limits, windows, cursors and pages."""

import hashlib
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple
from uuid import UUID

from models import Encounter
from resolvers.commands import EncounterFilter
from resolvers.errors import InvalidInput, Shape, Violation


class PageLimits(NamedTuple):
    """The default and the maximum number of items of a page."""

    default: int = 20
    maximum: int = 100


class Position(NamedTuple):
    """A position in a list: that of the item with this creation time and id."""

    created_at: datetime
    id: UUID


@dataclass(frozen=True, slots=True)
class Window:
    """The requested items of a list.

    `size` items, counted from the newest (`forward`) or from the oldest, strictly after `after` and strictly before
    `before` in the list's own order, newest first.
    """

    size: int
    forward: bool = True
    after: Position | None = None
    before: Position | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Adjacent items, newest first, and whether the list continues at either end."""

    items: Sequence[Encounter]
    has_next: bool
    has_previous: bool
    position: int | None = None
    """Position in the feed: every event up to it had been committed when the page was read. None if not requested."""


def window_of(
    limits: PageLimits,
    cursor_scope: str,
    *,
    first: int | None = None,
    after: str | None = None,
    last: int | None = None,
    before: str | None = None,
) -> Window:
    """Return the window that Relay's four arguments describe. Raises `InvalidInput`.

    Source: Relay's "GraphQL Cursor Connections Specification", section 4. `first` together with `last`, which it
    discourages, is refused.
    """
    if first is not None and last is not None:
        raise InvalidInput([Violation("/last", "first_and_last", "must not be combined with first")])
    for argument, size in (("first", first), ("last", last)):
        if size is not None and not 0 <= size <= limits.maximum:
            message, received = f"must be from 0 to {limits.maximum}", Shape("number")
            violation = Violation(
                f"/{argument}", "page_size", message, minimum=0, maximum=limits.maximum, received=received
            )
            raise InvalidInput([violation])
    return Window(
        size=next((size for size in (first, last) if size is not None), limits.default),
        forward=last is None,
        after=None if after is None else read_cursor(after, cursor_scope, "after"),
        before=None if before is None else read_cursor(before, cursor_scope, "before"),
    )


def cursor_scope(brand_id: str, patient_id: str, narrow: EncounterFilter) -> str:
    """Return a text that identifies a list, so that a cursor is valid for one list only."""
    return f"{brand_id}\n{patient_id}\n{narrow.model_dump_json()}"


# Version, microseconds since the epoch, id, and the first 8 bytes of the digest of the list.
_CURSOR = struct.Struct(">Bq16s8s")
_CURSOR_VERSION = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def write_cursor(position: Position, cursor_scope: str) -> str:
    """Return the opaque cursor of a position in the list that `cursor_scope` describes (brand, patient, filter)."""
    micros = (position.created_at - _EPOCH) // timedelta(microseconds=1)
    return encode_cursor(_CURSOR.pack(_CURSOR_VERSION, micros, position.id.bytes, digest_of(cursor_scope)))


def sql_cursor(row: str, narrow: str) -> str:
    """Return SQL for the cursor of a row. `narrow` is SQL for the filter, in the form of `cursor_scope`."""
    micros = f"(extract(epoch FROM {row}.created_at) * 1000000)::bigint"
    cursor_scope = f"{row}.brand_id || E'\\n' || {row}.patient_id || E'\\n' || {narrow}"
    digest = f"substr(sha256(convert_to({cursor_scope}, 'UTF8')), 1, 8)"
    packed = f"'\\x{_CURSOR_VERSION:02x}'::bytea || int8send({micros}) || uuid_send({row}.id) || {digest}"
    # 33 bytes are 44 letters: no padding and no line breaks.
    return f"translate(encode({packed}, 'base64'), '+/', '-_')"


def read_cursor(cursor: str, cursor_scope: str, argument: Literal["after", "before"]) -> Position:
    """Return the position of a cursor.

    Raises `InvalidInput`, with the same message, for a text that is not a cursor and for a cursor of another list. The
    position of another brand, patient or filter is meaningless in this list.
    """
    try:
        version, micros, id_bytes, digest = _CURSOR.unpack(decode_cursor(cursor))
        if (version, digest) == (_CURSOR_VERSION, digest_of(cursor_scope)):
            return Position(_EPOCH + timedelta(microseconds=micros), UUID(bytes=id_bytes))
    except (ValueError, struct.error, OverflowError):
        pass
    raise InvalidInput([Violation(f"/{argument}", "cursor", "must be a cursor of this list")])


def encode_cursor(packed: bytes) -> str:
    """Return bytes as URL-safe Base64 without padding."""
    return urlsafe_b64encode(packed).decode().rstrip("=")


def decode_cursor(cursor: str) -> bytes:
    """Return the bytes of `encode_cursor`. Raises `ValueError` for text that cannot be decoded."""
    return urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))


def digest_of(cursor_scope: str) -> bytes:
    """Return the 8 bytes that bind a cursor to its list."""
    return hashlib.sha256(cursor_scope.encode()).digest()[:8]


def page_of(rows: Sequence[Encounter], window: Window, position: int | None = None) -> Page:
    """Return the page of rows read in the window's direction, one more than requested if the list continues."""
    more = len(rows) > window.size
    items = rows[: window.size]
    if window.forward:
        return Page(items, has_next=more, has_previous=window.after is not None, position=position)
    return Page(items[::-1], has_next=window.before is not None, has_previous=more, position=position)
