"""Pages of a list of encounters in one of its orders: limits, windows, cursors and pages."""

import hashlib
import io
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple
from uuid import UUID

from models import Encounter, EncounterOrder
from models.encounter import FIRST_INSTANT
from resolvers.commands import EVERYTHING, ListFilter
from resolvers.errors import InvalidInput, Shape, Violation
from resolvers.list_sql import ORDERS, Key, Order


class PageLimits(NamedTuple):
    """The default and the maximum number of items of a page."""

    default: int = 20
    maximum: int = 100
    shards: int = 0
    """What a list of a brand costs more, because it asks every shard of a cluster."""


class Position(NamedTuple):
    """A position in a list: that of the item with these values of the order's keys, and this id."""

    keys: tuple[datetime | UUID | None, ...]
    id: UUID

    def arguments(self, order: Order) -> dict[str, object]:
        """Return the arguments of a statement for the position: the name of each is that of the column."""
        places = zip(order.keys, self.keys, strict=True)
        return {key.column: key.null_value if value is None else _text(value) for key, value in places} | {
            "id": self.id
        }


def _text(value: datetime | UUID) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def position_of(encounter: Encounter, order: Order) -> Position:
    """Return the position of an encounter in an order."""
    return Position(tuple(getattr(encounter, key.column) for key in order.keys), encounter.id)


class ListOf(NamedTuple):
    """A list of encounters: its brand, its patient, its filter and its order. A cursor is valid for one list only."""

    brand_id: str
    patient_id: str | None
    """None for all patients of the brand."""
    filters: ListFilter = EVERYTHING
    order: EncounterOrder = EncounterOrder.CREATED_AT_DESC

    @property
    def scope(self) -> str:
        """The text that identifies the list."""
        # No patient has an empty id.
        return f"{self.brand_id}\n{self.patient_id or ''}\n{self.narrowed}"

    @property
    def narrowed(self) -> str:
        """The text that identifies the filter and the order."""
        order = "" if self.order is EncounterOrder.CREATED_AT_DESC else f"\n{self.order}"
        return f"{self.filters.model_dump_json()}{order}"


@dataclass(frozen=True, slots=True)
class Window:
    """The requested items of a list.

    `size` items, counted from the first (`forward`) or from the last, strictly after `after` and strictly before
    `before` in the list's order.
    """

    size: int
    forward: bool = True
    after: Position | None = None
    before: Position | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Adjacent items in the list's order, and whether the list continues at either end."""

    items: Sequence[Encounter]
    has_next: bool
    has_previous: bool
    position: int | None = None
    """Position in the feed: every event up to it had been committed when the page was read. None if not requested."""


def window_of(
    limits: PageLimits,
    of: ListOf,
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
        after=None if after is None else read_cursor(after, of, "after"),
        before=None if before is None else read_cursor(before, of, "before"),
    )


_CURSOR_VERSION = 1
_DIGEST_BYTES = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MICROS, _FIRST_MICROS, _LAST_UUID = 2**63 - 1, -(2**63), UUID(int=2**128 - 1)


def write_cursor(position: Position, of: ListOf) -> str:
    """Return the opaque cursor of a position in a list.

    Its bytes: the version, each key (microseconds since the epoch, or a UUID), the id, and the digest of the list.
    """
    keys = zip(ORDERS[of.order].keys, position.keys, strict=True)
    packed = [bytes([_CURSOR_VERSION]), *(_packed(key, value) for key, value in keys), position.id.bytes]
    return encode_cursor(b"".join([*packed, digest_of(of.scope)]))


def _packed(key: Key, value: datetime | UUID | None) -> bytes:
    if key.kind == "uuid":
        return (value or _LAST_UUID).bytes  # type: ignore[union-attr]
    if value is None:
        return _MICROS.pack(_FIRST_MICROS if key.null == FIRST_INSTANT else _LAST_MICROS)
    return _MICROS.pack(micros_of(value))  # type: ignore[arg-type]


_MICROS = struct.Struct(">q")


def sql_cursor(row: str, order: Order, digest: str) -> str:
    """Return SQL for the cursor of a row. `digest` is SQL for the digest of the list."""
    keys = [_sql_packed(row, key) for key in order.keys]
    packed = " || ".join([f"'\\x{_CURSOR_VERSION:02x}'::bytea", *keys, f"uuid_send({row}.id)", digest])
    # At most 49 bytes, which are 68 letters: no line breaks. The padding is removed.
    return f"translate(encode({packed}, 'base64'), '+/=', '-_')"


def _sql_packed(row: str, key: Key) -> str:
    if key.kind == "uuid":
        return f"uuid_send({key.sql(row)})"
    micros = f"(extract(epoch FROM {row}.{key.column}) * 1000000)::bigint"
    if key.null:
        micros = f"coalesce({micros}, {_FIRST_MICROS if key.null == FIRST_INSTANT else _LAST_MICROS})"
    return f"int8send({micros})"


def sql_digest(row: str, narrowed: str) -> str:
    """Return SQL for the digest of the list of the row's patient. `narrowed` is SQL for `ListOf.narrowed`."""
    scope = f"{row}.brand_id || E'\\n' || {row}.patient_id || E'\\n' || {narrowed}"
    return f"substr(sha256(convert_to({scope}, 'UTF8')), 1, {_DIGEST_BYTES})"


def read_cursor(cursor: str, of: ListOf, argument: Literal["after", "before"]) -> Position:
    """Return the position of a cursor.

    Raises `InvalidInput`, with the same message, for a text that is not a cursor and for a cursor of another list. The
    position of another brand, patient, filter or order is meaningless in this list.
    """
    try:
        packed = io.BytesIO(decode_cursor(cursor))
        version = packed.read(1)
        keys = tuple(_unpacked(key, packed) for key in ORDERS[of.order].keys)
        position = Position(keys, UUID(bytes=packed.read(16)))
        if (version, packed.read()) == (bytes([_CURSOR_VERSION]), digest_of(of.scope)):
            return position
    except (ValueError, struct.error, OverflowError):
        pass
    raise InvalidInput([Violation(f"/{argument}", "cursor", "must be a cursor of this list")])


def _unpacked(key: Key, packed: io.BytesIO) -> datetime | UUID | None:
    if key.kind == "uuid":
        uuid = UUID(bytes=packed.read(16))
        return None if uuid == _LAST_UUID else uuid
    (micros,) = _MICROS.unpack(packed.read(8))
    if key.null and micros in {_FIRST_MICROS, _LAST_MICROS}:
        return None
    return instant_of_micros(micros)


def micros_of(instant: datetime) -> int:
    """Return the microseconds between the epoch and an instant."""
    return (instant - _EPOCH) // timedelta(microseconds=1)


def instant_of_micros(micros: int) -> datetime:
    """Return the instant of `micros_of`. Raises `OverflowError` outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=micros)


def encode_cursor(packed: bytes) -> str:
    """Return bytes as URL-safe Base64 without padding."""
    return urlsafe_b64encode(packed).decode().rstrip("=")


def decode_cursor(cursor: str) -> bytes:
    """Return the bytes of `encode_cursor`. Raises `ValueError` for text that cannot be decoded."""
    return urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))


def digest_of(scope: str) -> bytes:
    """Return the 8 bytes that bind a cursor to its list."""
    return hashlib.sha256(scope.encode()).digest()[:_DIGEST_BYTES]


def page_of(rows: Sequence[Encounter], window: Window, position: int | None = None) -> Page:
    """Return the page of rows read in the window's direction, one more than requested if the list continues."""
    more = len(rows) > window.size
    items = rows[: window.size]
    if window.forward:
        return Page(items, has_next=more, has_previous=window.after is not None, position=position)
    return Page(items[::-1], has_next=window.before is not None, has_previous=more, position=position)
