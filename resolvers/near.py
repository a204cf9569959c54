"""Misspelt names: which of ours a sender may have meant. A name that is near none of ours is not repeated to anyone."""

import re
from collections.abc import Iterable

MOST_LETTERS = 2
"""How many letters a misspelt name may differ in."""
MOST_CHARACTERS = 64
"""No name of ours is as long."""

_SEPARATORS = re.compile(r"[_\-\s]+")


def nearest(name: str, ours: Iterable[str]) -> str | None:
    """Find the name of ours that differs in case, separators or at most two letters; None where all are further away.

    Names of fewer than four letters must be equal but for case and separators.
    """
    if len(name) > MOST_CHARACTERS or not (name.isascii() and name.isprintable()):
        return None
    said, best = _folded(name), (MOST_LETTERS + 1, "")
    for each in ours:
        known = _folded(each)
        most = MOST_LETTERS if min(len(known), len(said)) > MOST_LETTERS + 1 else 0
        if abs(len(known) - len(said)) <= most and (letters := _distance(said, known)) <= most:
            best = min(best, (letters, each))
    return best[1] or None


def _folded(name: str) -> str:
    return _SEPARATORS.sub("", name).casefold()


def _distance(one: str, other: str) -> int:
    """Count the letters to put in, take out or exchange (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], number
        for place, theirs in enumerate(other, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (letter != theirs))
    return row[-1]
