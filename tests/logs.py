"""The log of this process, as a test reads it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest

from gateway.observability.logs import JsonFormatter


class _Lines(logging.Handler):
    """Format each record as the log does, and collect it instead of writing it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = orjson.loads(self.format(record))
        del line["timestamp"]
        self.lines.append(line)


@contextmanager
def captured_logs() -> Iterator[list[dict[str, Any]]]:
    """Yield the list of lines that are logged for as long as the block lasts, without their time."""
    handler = _Lines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [handler])
        yield handler.lines
