"""Graceful shutdown of a process: it reports that it is not ready, serves for a pause, then refuses new requests.

uvicorn then finishes in-flight requests, within `GATEWAY_DRAIN_SECONDS`.
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
    """State of the shutdown of one process.

    `pause_seconds` pass between the signal and the close, so that a load balancer can notice that the process is not
    ready.
    """

    def __init__(self, pause_seconds: float = 0) -> None:
        self.draining = asyncio.Event()
        """Set when the process gets the first signal."""
        self.closed = asyncio.Event()
        """Set when new requests are refused."""
        self._pause_seconds = pause_seconds
        self._stop_server: Callable[[], None] | None = None

    def catch_signals(self) -> None:
        """Install handlers for SIGTERM and SIGINT that call the server's own handlers after the pause.

        Call this in the server's event loop, after the server has installed its handlers.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, partial(self._on_signal, loop, signal.getsignal(number)))

    def _on_signal(self, loop: asyncio.AbstractEventLoop, server: Any, number: int, _frame: object) -> None:
        # A signal handler may interrupt any code, so the work is scheduled on the event loop.
        loop.call_soon_threadsafe(self._begin, server, number)

    def _begin(self, server: Handler, number: int) -> None:
        if not self.draining.is_set():
            self.draining.set()
            DRAINING.set(1)
            self._stop_server = partial(server, number, None)
            asyncio.get_running_loop().call_later(self._pause_seconds, self._close)
        elif self.closed.is_set():
            server(number, None)
        elif number == signal.SIGINT:
            # Second Ctrl-C: end the pause and pass both signals to the server. A SIGTERM after a SIGINT is ignored: it
            # comes from the supervisor, when Ctrl-C reached the whole process group.
            self._close()
            server(number, None)

    def _close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            assert self._stop_server is not None
            self._stop_server()

    def refuse_when_closed(self, verify: Verify) -> Verify:
        """Return a verifier that raises `TemporarilyUnavailable` after the close. Every door verifies tokens first."""

        async def verify_while_open(token: str) -> Caller:
            if self.closed.is_set():
                raise TemporarilyUnavailable("The gateway is shutting down; try again, and another one will answer.")
            return await verify(token)

        return verify_while_open
