"""The size of answers: a limit for each answer, and a budget for all answers in flight in the process.

Bytes are counted while the answer is read and built, so that neither the gateway nor PostgreSQL builds more than the
limit. The bytes of an answer stay reserved from the budget until the client has received it or has disconnected.
"""

from typing import Final

from resolvers.errors import AnswerMemoryFull, AnswerTooLarge

SMALL_BYTES: Final = 64 * 1024
"""Bytes of each answer that are not reserved: a connection's buffer may hold as many in any case."""


class AnswerMemory:
    """The memory budget of all answers in flight in this process."""

    __slots__ = ("max_answer_bytes", "max_bytes", "reserved_bytes")

    def __init__(self, max_answer_bytes: int = 16 * 1024**2, max_bytes: int = 256 * 1024**2) -> None:
        """Set the limits.

        Args:
            max_answer_bytes: Maximum bytes of one answer, and of the rows that it is built from.
            max_bytes: Maximum bytes of all answers together, beyond the first `SMALL_BYTES` of each.
        """
        self.max_answer_bytes = max_answer_bytes
        self.max_bytes = max_bytes
        self.reserved_bytes = 0

    def begin(self) -> "AnswerBytes":
        """Return the byte count of a new answer. The caller must release it."""
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
        """Bytes read and written since the last release; each count is capped at the maximum size of an answer."""

    @property
    def maximum(self) -> int:
        """Maximum bytes of this answer."""
        return self._memory.max_answer_bytes

    @property
    def rows_left(self) -> int:
        """Bytes that further rows may have."""
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
        """Count bytes without checking the limits: a recording's outcome is sent even when the budget is exhausted."""
        self.written += count
        self._take(max(self._missing, 0))

    def keep(self, written: int) -> None:
        """Reserve only `written` bytes to be sent, and no rows: the answer is complete, or was refused."""
        self._rows = 0
        self.written = written
        self._take(max(self._missing, -self._reserved))

    def release(self) -> None:
        """Release all bytes: the client has received the answer or has disconnected."""
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
