"""Waiting for a condition, with a deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

DEADLINE_SECONDS = 30.0
"""Deadline of a condition that holds soon on an idle machine."""


async def wait_until(condition: Callable[[], Awaitable[Any] | Any], seconds: float = DEADLINE_SECONDS) -> None:
    """Return when `condition()`, awaited if it is awaitable, is true.

    Raises:
        TimeoutError: The condition does not hold within `seconds`.
    """
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if await holds if isinstance(holds, Awaitable) else holds:
                return
            await asyncio.sleep(0.01)
