"""A limit for each client on what it has worked out at the same time."""

import asyncio
from weakref import WeakValueDictionary


class Turns:
    """At most `at_once` pieces of work for each client; the others wait, the first come first.

    A client with a thousand subscriptions thereby takes the share of the processor of a few requests at every event.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, client_id: str) -> asyncio.Semaphore:
        """Return the client's semaphore, to be held on to for as long as the client may have work."""
        if (turns := self._of.get(client_id)) is None:
            turns = self._of[client_id] = asyncio.Semaphore(self._at_once)
        return turns
