"""A per-client limit on concurrent work."""

import asyncio
from weakref import WeakValueDictionary


class Turns:
    """A semaphore of `at_once` slots for each client; further tasks wait in FIFO order.

    A client with a thousand subscriptions therefore uses the CPU share of a few requests at each event.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, client_id: str) -> asyncio.Semaphore:
        """Return the client's semaphore. It is weakly cached: the caller must keep a reference while it has work."""
        if (turns := self._of.get(client_id)) is None:
            turns = self._of[client_id] = asyncio.Semaphore(self._at_once)
        return turns
