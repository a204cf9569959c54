"""The log of this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest

from gateway.observability.logs import log


@contextmanager
def captured_logs() -> Iterator[list[dict[str, Any]]]:
    """Collect the log lines of the block instead of writing them."""
    lines: list[dict[str, Any]] = []

    def write(event: str, level: str, fields: dict[str, object]) -> None:
        # A line that cannot be serialized fails the test.
        orjson.dumps(fields)
        lines.append(fields | {"event": event, "level": level})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "write", write)
        yield lines
