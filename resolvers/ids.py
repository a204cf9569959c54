"""Identifiers that the gateway makes itself, so that an answer never depends on the order of returned rows."""

import os
import re
import time
from uuid import UUID

# RFC 9562 section 4, the only form that the published page's `format: uuid` names.
HYPHENATED = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def new_id() -> UUID:
    """Return a UUIDv7: 48 bits of Unix time in ms, 12 bits of the fraction of the ms, 62 random bits.

    Source: RFC 9562 sections 5.7 and 6.2 (method 3). Ids of one process sort by creation time, as far as the clock
    distinguishes the times.
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = (rest_ns << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8)) & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 0b10 << 62 | random)


def id_or_none(text: str) -> UUID | None:
    """Parse an id in its hyphenated form; return None for any other text, which cannot identify a row."""
    return UUID(text) if HYPHENATED.fullmatch(text) else None


def id_text(text: str) -> str | None:
    """Return an id in the form in which PostgreSQL writes it, or None if the text is not an id."""
    return text.lower() if HYPHENATED.fullmatch(text) else None
