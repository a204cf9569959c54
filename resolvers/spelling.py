"""Names that nearly are a known one: a misspelling is told with the right name, and no other name is repeated.

Files, bodies, queries and settings ask here. What a caller sends as a name may be a person's words about a patient; a
name within two letters of one of ours is ours to repeat.
"""

import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

MAX_NAMES = 20
"""Ignored names that are repeated, at most."""

MAX_COMPARED = 100
"""Ignored names that are compared with the known ones, at most: a body of 256 KiB may hold 30,000 of them."""

NO_LETTER = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})
"""White space, controls and characters without width, as categories of Unicode."""

MAX_NAME_CHARACTERS = 64
"""A longer name is no misspelling of ours, the longest of which has 20 letters or so."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name with the least edit distance."""
    return min(known, key=lambda each: edit_distance(name, each))


def near_miss(name: str, known: Collection[str]) -> str | None:
    """Return the known name of which `name` is a spelling or a misspelling, or None.

    Case, white space, `_` and `-` make no difference, so `scheduledAt` is `scheduled_at`. Of a name of five letters or
    more, two may be wrong, missing or too many; of three or four, one; of fewer, none.
    """
    return _near_miss(name, frozenset(known)) if len(name) <= MAX_NAME_CHARACTERS else None


def near_misses(sent: Iterable[str], known: Collection[str]) -> list[str]:
    """Return the known names of which those sent hold misspellings, each once."""
    unknown = islice((name for name in sent if name not in known), MAX_COMPARED)
    return list(dict.fromkeys(right for name in unknown if (right := near_miss(name, known))))


@lru_cache(4096)
def _near_miss(name: str, known: frozenset[str]) -> str | None:
    letters = _letters(name)
    for each in sorted(known):
        target = _letters(each)
        most = min(2, (len(target) - 1) // 2)
        if abs(len(letters) - len(target)) <= most and edit_distance(letters, target) <= most:
            return each
    return None


def _letters(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(
        each for each in folded if not (each.isspace() or each in "_-" or unicodedata.category(each) == "Cf")
    )


def edit_distance(one: str, other: str) -> int:
    """Count the letters to insert, delete or replace. Source: Wagner and Fischer, 1974."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        above, row[0] = row[0], number
        for place, each in enumerate(other, 1):
            above, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, above + (letter != each))
    return row[-1]


class Ignored(NamedTuple):
    """Names that were sent and mean nothing here."""

    names: tuple[str, ...] = ()
    """Those that are ours to repeat, in the order in which they came."""
    others: int = 0
    """How many more there are."""

    @classmethod
    def of(cls, sent: Collection[str], ours: Collection[str]) -> "Ignored":
        """Return which of the names sent, all of them unknown, are near one of ours, and how many are not."""
        near = (name for name in islice(sent, MAX_COMPARED) if is_plain(name) and near_miss(name, ours))
        names = tuple(islice(near, MAX_NAMES))
        return cls(names, len(sent) - len(names))


def is_plain(name: str) -> bool:
    """Whether a header can hold the name as a string of RFC 9651."""
    return name.isascii() and name.isprintable()
