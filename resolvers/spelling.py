"""Spelling of names: a misspelling is reported with the right name, and no other unknown name is repeated.

Imports, bodies, queries and settings use this module. A name sent by a caller may contain a person's words about a
patient. A name within two letters of a known one may be repeated.
"""

import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

MAX_NAMES = 20
"""Maximum number of ignored names that are repeated."""

MAX_COMPARED = 100
"""Maximum number of ignored names that are compared with the known ones: a body of 256 KiB may contain 30,000 of them.
"""

MAX_NAME_CHARACTERS = 64
"""A longer name is not a misspelling: the longest known name has about 20 letters."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name with the least edit distance."""
    return min(known, key=lambda each: edit_distance(name, each))


def near_miss(name: str, known: Collection[str]) -> str | None:
    """Return the known name of which `name` is a spelling or a misspelling, or None.

    Case, white space, `_` and `-` are ignored, so `scheduledAt` is `scheduled_at`. In a name of five letters or more,
    two may be wrong, missing or extra. In one of three or four letters, one may be; in a shorter one, none.
    """
    return _near_miss(name, frozenset(known)) if len(name) <= MAX_NAME_CHARACTERS else None


def near_misses(sent: Iterable[str], known: Collection[str]) -> list[str]:
    """Return the known names that are misspelled among those sent, each once."""
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
    """Return the number of letters to insert, delete or replace. Source: Wagner and Fischer, 1974."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        above, row[0] = row[0], number
        for place, each in enumerate(other, 1):
            above, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, above + (letter != each))
    return row[-1]


class Ignored(NamedTuple):
    """Unknown names in a request, which are ignored."""

    names: tuple[str, ...] = ()
    """The names that may be repeated, in the order in which they were sent."""
    others: int = 0
    """The number of other names."""

    @classmethod
    def of(cls, sent: Collection[str], known: Collection[str]) -> "Ignored":
        """Return the unknown names that are near a known one, and the number of the others."""
        near = (name for name in islice(sent, MAX_COMPARED) if is_plain(name) and near_miss(name, known))
        names = tuple(islice(near, MAX_NAMES))
        return cls(names, len(sent) - len(names))


def is_plain(name: str) -> bool:
    """Whether a header can contain the name as a string of RFC 9651."""
    return name.isascii() and name.isprintable()
