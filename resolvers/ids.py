"""Identifiers that the gateway makes itself, so that an answer never depends on the order of returned rows."""

import os
import re
import time
from uuid import UUID

# RFC 9562 section 4, the one form the published page's `format: uuid` names.
HYPHENATED = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def new_id() -> UUID:
    """Make a UUIDv7: 48 bits of Unix time in ms, 12 bits of what is left of the ms, 62 random bits.

    Source: RFC 9562 sections 5.7 and 6.2 (method 3). Ids made within one process sort by the time they were made, as
    far as the clock tells the times apart.
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = (rest_ns << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8)) & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 0b10 << 62 | random)


def id_or_none(text: str) -> UUID | None:
    """Read an id as a client sends it, in its hyphenated form, or give None: any other text belongs to nothing."""
    return UUID(text) if HYPHENATED.fullmatch(text) else None


def id_text(text: str) -> str | None:
    """Read an id as a client sends it, and give it as the database writes it; or None, as `id_or_none` does."""
    return text.lower() if HYPHENATED.fullmatch(text) else None
