"""What is worth counting of what happens here: the seam to whatever counts it."""

from typing import Protocol


class Tally(Protocol):
    """Counts; never waits and never raises."""

    def refused(self, code: str) -> None:
        """Count that a caller was refused."""

    def recorded(self, *, replayed: bool) -> None:
        """Count that an encounter was recorded, or found to be recorded already."""


class Uncounted:
    """Counts nothing."""

    def refused(self, code: str) -> None:
        """Let it pass."""

    def recorded(self, *, replayed: bool) -> None:
        """Let it pass."""
