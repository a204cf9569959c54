"""The size of answers: a limit for each, and a budget for all that are under way in the process.

An answer is counted while it is read and put together, so that neither the gateway nor PostgreSQL builds more than the
limit. What it takes is reserved from the budget until the client has taken it, or has gone.
"""

from typing import Final

from resolvers.errors import AnswerMemoryFull, AnswerTooLarge

SMALL_BYTES: Final = 64 * 1024
"""Bytes of an answer that are not reserved: a connection's buffer may hold as many in any case."""


class AnswerMemory:
    """The memory of all answers that are under way in this process."""

    __slots__ = ("max_answer_bytes", "max_bytes", "reserved_bytes")

    def __init__(self, max_answer_bytes: int = 16 * 1024**2, max_bytes: int = 256 * 1024**2) -> None:
        """Set the limits.

        Args:
            max_answer_bytes: The most bytes of one answer, and of the rows that it is made of.
            max_bytes: The most bytes of all answers together, beyond the first `SMALL_BYTES` of each.
        """
        self.max_answer_bytes = max_answer_bytes
        self.max_bytes = max_bytes
        self.reserved_bytes = 0

    def begin(self) -> "AnswerBytes":
        """Return the count of a new answer. It must be released."""
        return AnswerBytes(self)


class AnswerBytes:
    """The bytes of one answer and of its rows, reserved until `release`."""

    __slots__ = ("_memory", "_reserved", "_rows", "total", "written")

    def __init__(self, memory: AnswerMemory) -> None:
        self._memory = memory
        self._rows = 0
        self._reserved = 0
        self.written = 0
        self.total = 0
        """Bytes read and written since the last release, each count at most the size of an answer."""

    @property
    def maximum(self) -> int:
        """The most bytes of this answer."""
        return self._memory.max_answer_bytes

    @property
    def rows_left(self) -> int:
        """How many bytes further rows may have."""
        return self._memory.max_answer_bytes - self._rows

    def add_rows(self, count: int) -> None:
        """Count bytes of rows that were read. Raises `AnswerTooLarge` or `AnswerMemoryFull`."""
        self._rows += count
        self.total += min(count, self._memory.max_answer_bytes)
        if self._rows > self._memory.max_answer_bytes:
            raise AnswerTooLarge(self._memory.max_answer_bytes)
        self._reserve()

    def add(self, count: int) -> None:
        """Count bytes that will be sent. Raises `AnswerTooLarge` or `AnswerMemoryFull`."""
        self.written += count
        self.total += min(count, self._memory.max_answer_bytes)
        if self.written > self._memory.max_answer_bytes:
            raise AnswerTooLarge(self._memory.max_answer_bytes)
        self._reserve()

    def add_regardless(self, count: int) -> None:
        """Count bytes that are sent in any case: what was recorded is told, whatever else is under way."""
        self.written += count
        self._take(max(self._missing, 0))

    def keep(self, written: int) -> None:
        """Keep so many of the bytes that will be sent, and no rows: the answer is put together, or is refused."""
        self._rows = 0
        self.written = written
        self._take(max(self._missing, -self._reserved))

    def release(self) -> None:
        """Give everything back: the client has taken the answer, or has gone."""
        self.keep(0)
        self.total = 0

    @property
    def _missing(self) -> int:
        return self._rows + self.written - SMALL_BYTES - self._reserved

    def _reserve(self) -> None:
        missing = self._missing
        if missing > 0:
            if self._memory.reserved_bytes + missing > self._memory.max_bytes:
                raise AnswerMemoryFull
            self._take(missing)

    def _take(self, count: int) -> None:
        self._reserved += count
        self._memory.reserved_bytes += count
