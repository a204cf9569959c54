"""The processes that share one port, and who watches over them."""

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
    """Builds the service in a worker, which is sent this through a pipe.

    It imports little: uvicorn takes a worker that is still importing for one that hangs, and kills it after 5 s.
    """

    factory: str
    """Where the function is that builds it from settings, as uvicorn names what it imports."""
    settings: Settings

    def __call__(self) -> Starlette:
        """Return the service."""
        app: Starlette = import_from_string(self.factory)(self.settings)
        return app


class Supervisor(Multiprocess):
    """uvicorn's supervisor, which lets go of the port when it stops, passes on a second Ctrl-C and buries the dead."""

    def keep_subprocess_alive(self) -> None:
        """Replace the workers that died, and count no more what they had in hand."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]

    def terminate_all(self) -> None:
        """Tell every worker to stop."""
        # Held open here, the port would take connections on after the last worker has closed it, and answer none.
        for port in self.sockets:
            port.close()
        super().terminate_all()

    def join_all(self) -> None:
        """Wait until every worker has stopped; after another Ctrl-C they are not to finish."""
        while any(process.exitcode is None for process in self.processes):
            for process in self.processes:
                process.process.join(0.05)
            while self.signal_queue:
                if self.signal_queue.pop() == signal.SIGINT:
                    for process in self.processes:
                        if process.exitcode is None and process.pid is not None:
                            os.kill(process.pid, signal.SIGINT)
