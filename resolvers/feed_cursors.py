"""Cursors of the feed: a position and its brand, encrypted in one AES block, so that a client can read neither.

A position counts the events of all brands. A client that could read it would learn the activity of the others.
"""

import secrets
import struct
from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from sqlalchemy import select

from models import FeedKey, table_of
from resolvers.errors import InvalidInput, Violation
from resolvers.paging import decode_cursor, digest_of, encode_cursor
from resolvers.sql import Connection, Statement

TABLE = table_of(FeedKey)

FIND_KEY = Statement(select(TABLE.c.key, TABLE.c.retired))

# One version byte, then one block: the position, the first bytes of the digest of the feed's brand, and the salt.
POSITION_BYTES, DIGEST_BYTES, SALT_BYTES = 6, 5, 5
BLOCK_BYTES = 16
_VERSION = 2

# A sealed block of another use begins with this byte.
_SEALED = 3

# Version 1 had the position in plain text. It is read for one release after it was last written.
_PLAIN_VERSION = 1
_PLAIN = struct.Struct(">q8s")


class FeedCursors:
    """Writes and reads cursors under one key, which all gateways of a database share.

    A restore of the database retires the key: positions after the restored point are given again, to other events.
    """

    def __init__(self, key: bytes, retired: Sequence[bytes] = ()) -> None:
        # Each block is distinct for each meaning, so ECB, which has no initialization vector, leaks nothing.
        self._cipher = Cipher(AES(key), ECB())  # noqa: S305
        self._retired = [Cipher(AES(each), ECB()) for each in retired]  # noqa: S305

    @classmethod
    async def find(cls, connection: Connection) -> "FeedCursors":
        """Return the cursors under the key of this database."""
        row = await connection.fetch_one(FIND_KEY)
        assert row is not None, "the migration inserted it"
        return cls(row["key"], row["retired"])

    def write(self, position: int, brand_id: str, *, salted: bool = False) -> str:
        """Return the opaque cursor of a position in the feed of a brand.

        The same position always has the same text, unless it is `salted`. A position without an event of the brand must
        be salted: otherwise two different texts would reveal events of other brands between them.
        """
        salt = secrets.token_bytes(SALT_BYTES) if salted else bytes(SALT_BYTES)
        place = position.to_bytes(POSITION_BYTES) + _digest(brand_id)[:DIGEST_BYTES] + salt
        return encode_cursor(bytes([_VERSION]) + self._cipher.encryptor().update(place))

    def read(self, cursor: str, brand_id: str) -> int:
        """Return the position of a cursor.

        Raises `InvalidInput` for a text that is not a cursor of this feed, or a cursor from before a restore.
        """
        expected = _digest(brand_id)
        try:
            packed = decode_cursor(cursor)
            position, digest = _place(packed, self._cipher)
            is_plain = packed[0] == _PLAIN_VERSION
            if expected.startswith(digest) and not (is_plain and self._retired):
                return position
            if expected.startswith(digest) or any(
                expected.startswith(_place(packed, each)[1]) for each in self._retired
            ):
                raise expired()
        except (ValueError, struct.error):
            pass
        raise InvalidInput([Violation("/after", "cursor", "must be a cursor of this feed")])

    def seal(self, block: bytes) -> str:
        """Return the opaque text of a block of `BLOCK_BYTES`, whose meaning is up to the caller."""
        return encode_cursor(bytes([_SEALED]) + self._cipher.encryptor().update(block))

    def unseal(self, text: str) -> list[bytes]:
        """Return the block of a text of `seal` under each key, the current one first; empty for other texts."""
        try:
            packed = decode_cursor(text)
        except ValueError:
            return []
        if packed[:1] != bytes([_SEALED]) or len(packed) != 1 + BLOCK_BYTES:
            return []
        return [each.decryptor().update(packed[1:]) for each in (self._cipher, *self._retired)]


def expired() -> InvalidInput:
    """Return the error for a cursor after which the stored events have a gap."""
    return InvalidInput([Violation("/after", "cursor_expired", "must not be older than the oldest stored event")])


def _place(packed: bytes, cipher: Cipher[ECB]) -> tuple[int, bytes]:
    """Return the position and the digest. Raises `ValueError` or `struct.error`."""
    version, block = packed[:1], packed[1:]
    if version == bytes([_PLAIN_VERSION]):
        return _PLAIN.unpack(block)
    if version != bytes([_VERSION]) or len(block) != BLOCK_BYTES:
        raise ValueError(version)
    place = cipher.decryptor().update(block)
    return int.from_bytes(place[:POSITION_BYTES]), place[POSITION_BYTES:-SALT_BYTES]


def _digest(brand_id: str) -> bytes:
    return digest_of(f"feed {brand_id}")
