"""How a process stops: it says that it is not ready, serves on for a while, and then lets nobody in any more.

What is under way then is finished: that is the server's business, within `GATEWAY_DRAIN_SECONDS`.
"""

import asyncio
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from gateway.observability.metrics import DRAINING
from resolvers.access import Caller, Verify
from resolvers.errors import TemporarilyUnavailable

Handler = Callable[[int, Any], Any]


class GracefulShutdown:
    """The end of one process, and how far it has come.

    `pause_seconds` pass between being told to stop and closing: so long whoever balances load may take to notice.
    """

    def __init__(self, pause_seconds: float = 0) -> None:
        self.draining = asyncio.Event()
        """Set when the process is told to stop."""
        self.closed = asyncio.Event()
        """Set when nobody is let in any more."""
        self._pause_seconds = pause_seconds
        self._hand_on: Callable[[], None] | None = None

    def catch_signals(self) -> None:
        """Hear SIGTERM and SIGINT before the server does; it hears them after the pause.

        Called in the server's loop, once the server has set handlers of its own.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, partial(self._on_signal, loop, signal.getsignal(number)))

    def _on_signal(self, loop: asyncio.AbstractEventLoop, server: Any, number: int, _frame: object) -> None:
        # Anything may be half done just now: the loop has its turn first.
        loop.call_soon_threadsafe(self._begin, server, number)

    def _begin(self, server: Handler, number: int) -> None:
        if not self.draining.is_set():
            self.draining.set()
            DRAINING.set(1)
            self._hand_on = partial(server, number, None)
            asyncio.get_running_loop().call_later(self._pause_seconds, self._close)
        elif self.closed.is_set():
            server(number, None)
        elif number == signal.SIGINT:
            # Ctrl-C again: no pause any more, and the server hears of both. SIGTERM again comes from our own parent,
            # when Ctrl-C reached us all.
            self._close()
            server(number, None)

    def _close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            assert self._hand_on is not None
            self._hand_on()

    def refuse_when_closed(self, verify: Verify) -> Verify:
        """Give the way of verifying tokens that lets in nobody after the close: every door asks it first."""

        async def verify_while_open(token: str) -> Caller:
            if self.closed.is_set():
                raise TemporarilyUnavailable("The gateway stops; try again, and another one will answer.")
            return await verify(token)

        return verify_while_open
