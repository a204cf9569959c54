"""The log of this process, as a test reads it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest

from gateway.observability.logs import log


@contextmanager
def captured_logs() -> Iterator[list[dict[str, Any]]]:
    """Give the lines that are written for as long as the block lasts, instead of writing them."""
    lines: list[dict[str, Any]] = []

    def write(event: str, level: str, fields: dict[str, object]) -> None:
        # What could not be written would not be told either.
        orjson.dumps(fields)
        lines.append(fields | {"event": event, "level": level})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "write", write)
        yield lines
