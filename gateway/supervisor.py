"""Supervisor of the worker processes that share one port."""

import os
import signal
from dataclasses import dataclass

from prometheus_client.multiprocess import mark_process_dead
from starlette.applications import Starlette
from uvicorn.importer import import_from_string
from uvicorn.supervisors import Multiprocess

from gateway.settings import Settings


@dataclass(frozen=True)
class WorkerApp:
    """Application factory that is pickled and sent to a worker through a pipe.

    Its module imports little: uvicorn treats a worker that is still importing as hung, and kills it after 5 s.
    """

    factory: str
    """Import string (`module:function`) of the function that builds the application from the settings."""
    settings: Settings

    def __call__(self) -> Starlette:
        """Return the application."""
        app: Starlette = import_from_string(self.factory)(self.settings)
        return app


class Supervisor(Multiprocess):
    """uvicorn's supervisor with three additions.

    It closes the listening socket on shutdown, forwards a second SIGINT, and drops the live metrics of dead workers.
    """

    def keep_subprocess_alive(self) -> None:
        """Replace dead workers, and drop their live metrics, such as open sockets."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]

    def terminate_all(self) -> None:
        """Close the listening sockets and send every worker the signal to stop."""
        # If they stayed open here, the kernel would accept connections that no worker answers.
        for port in self.sockets:
            port.close()
        super().terminate_all()

    def join_all(self) -> None:
        """Wait until every worker has stopped. Forward a further SIGINT, which ends them without finishing requests."""
        while any(process.exitcode is None for process in self.processes):
            for process in self.processes:
                process.process.join(0.05)
            while self.signal_queue:
                if self.signal_queue.pop() == signal.SIGINT:
                    for process in self.processes:
                        if process.exitcode is None and process.pid is not None:
                            os.kill(process.pid, signal.SIGINT)
