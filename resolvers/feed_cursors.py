"""Cursors of the feed: a position and whose feed it is, in one block of AES, so that a client learns neither.

A position counts the events of all brands. A client that could read it would learn how much the others do.
"""

import hashlib
import secrets
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from sqlalchemy import Table, select

from models import FeedKey
from resolvers.errors import InvalidInput, Violation
from resolvers.sql import Connection, Statement

TABLE: Table = FeedKey.__table__  # type: ignore[attr-defined]

FIND_KEY = Statement(select(TABLE.c.key))

# A byte for the version, and a block: the position, the first bytes of a digest of the brand in whose feed it is a
# place, and the salt.
POSITION_BYTES, DIGEST_BYTES, SALT_BYTES = 6, 5, 5
BLOCK_BYTES = 16
_VERSION = 2

# Version 1 left the place as it is. Read for one release after it was last written, and then no more.
_PLAIN_VERSION = 1
_PLAIN = struct.Struct(">q8s")


class FeedCursors:
    """Writes and reads cursors under one key. Every gateway of a database has the same."""

    def __init__(self, key: bytes) -> None:
        # One block that never occurs twice with another meaning: the mode without an initial value is right for it.
        self._cipher = Cipher(AES(key), ECB())  # noqa: S305

    @classmethod
    async def find(cls, connection: Connection) -> "FeedCursors":
        """Read the key that this database has."""
        row = await connection.fetch_one(FIND_KEY)
        assert row is not None, "the migration put it there"
        return cls(row["key"])

    def write(self, position: int, brand_id: str, *, salted: bool = False) -> str:
        """Return the opaque text of a place in the feed of a brand.

        The same place is always the same text, unless it is `salted`: where a place is not that of an event of the
        brand, two texts that differ would tell that others did something in between.
        """
        salt = secrets.token_bytes(SALT_BYTES) if salted else bytes(SALT_BYTES)
        place = position.to_bytes(POSITION_BYTES) + _digest(brand_id)[:DIGEST_BYTES] + salt
        return urlsafe_b64encode(bytes([_VERSION]) + self._cipher.encryptor().update(place)).decode().rstrip("=")

    def read(self, cursor: str, brand_id: str) -> int:
        """Return the position a cursor stands for. Raises `InvalidInput` for a text that is no cursor of this feed."""
        try:
            packed = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
            position, digest = self._place(packed)
            if _digest(brand_id).startswith(digest):
                return position
        except (UnicodeEncodeError, Base64Error, ValueError, struct.error):
            pass
        raise InvalidInput([Violation("/after", "cursor", "must be a cursor of this very feed")])

    def _place(self, packed: bytes) -> tuple[int, bytes]:
        version, block = packed[:1], packed[1:]
        if version == bytes([_PLAIN_VERSION]):
            return _PLAIN.unpack(block)
        if version != bytes([_VERSION]) or len(block) != BLOCK_BYTES:
            raise ValueError(version)
        place = self._cipher.decryptor().update(block)
        return int.from_bytes(place[:POSITION_BYTES]), place[POSITION_BYTES:-SALT_BYTES]


def _digest(brand_id: str) -> bytes:
    return hashlib.sha256(f"feed {brand_id}".encode()).digest()[:8]
