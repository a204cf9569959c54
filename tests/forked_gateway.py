"""Gateway commands as forks of one process that has imported the gateway: a start takes 0.1 s of CPU instead of 1 s.

Such a command has its own process, arguments, environment, working folder and output, but it was not executed: its
`/proc/<pid>/cmdline` and `environ` are those of the fork server. `tests/process/test_serve.py`, `test_secrets.py`,
`test_dist.py` and `make crash` execute the interpreter, as a user does.
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

ROOT = Path(__file__).parent.parent

# What the commands import when they run.
PRELOADED = (
    "alembic.command",
    "gateway.app",
    "gateway.check",
    "gateway.cli",
    "gateway.database.migrate",
    "gateway.embedded_postgres.cluster",
    "gateway.events.pipeline",
    "gateway.exporters.encounters",
    "gateway.exporters.patients",
    "gateway.importers.encounters",
    "gateway.importers.patients",
    "gateway.protocols.websocket",
    "gateway.server",
    "sqlalchemy.ext.asyncio",
)


class ForkedGateway:
    """A running gateway command, with the members of `subprocess.Popen` that the tests use.

    Args:
        arguments: Of the command, such as `["serve"]`.
        env: The whole environment of the command.
        stdin: A file descriptor. None: no input.
        stderr: A file descriptor or a file. None: standard output.
        cwd: The working folder.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int | None = None,
        stderr: int | IO[Any] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self.returncode: int | None = None
        self._ended, alive = os.pipe()
        read, write = os.pipe()
        self.stdout: IO[str] = os.fdopen(read)
        nothing = os.open(os.devnull, os.O_RDONLY)
        files = [nothing if stdin is None else stdin, write, write if stderr is None else stderr, alive]
        request = {"arguments": list(arguments), "env": dict(env), "cwd": str(cwd)}
        self.pid = _server().ask(request, [each if isinstance(each, int) else each.fileno() for each in files])
        for each in (nothing, write, alive):
            os.close(each)

    def poll(self) -> int | None:
        """Return None while the command runs, else its exit code, negative for a signal."""
        if self.returncode is None and self._has_ended(0):
            self.returncode = os.waitstatus_to_exitcode(_server().ask({"wait": self.pid}))
            os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None and not self._has_ended(timeout):
            raise subprocess.TimeoutExpired("gateway", timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def output(self, timeout: float = 60) -> str:
        """Wait for the end of the command, and return what it printed, at most a few kilobytes."""
        self.wait(timeout)
        with self.stdout as stream:
            return stream.read()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the command has ended."""
        self.send_signal(signal.SIGKILL)

    def _has_ended(self, timeout: float | None) -> bool:
        # Only the command holds the other end of the pipe, so it can be read once the command has ended.
        # `poll` instead of `select`, which accepts no descriptor above 1023.
        ended = select.poll()
        ended.register(self._ended, select.POLLIN)
        return bool(ended.poll(None if timeout is None else timeout * 1000))


def run_gateway(arguments: Sequence[str], *, env: Mapping[str, str], text: str = "") -> tuple[int, str, str]:
    """Run a command to its end, with `text` as its input; return the exit code, standard output and standard error."""
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as errors:
        given.write(text)
        given.seek(0)
        process = ForkedGateway(arguments, env=env, stdin=given.fileno(), stderr=errors)
        output = process.output()
        errors.seek(0)
        return process.wait(), output, errors.read()


class _Server(NamedTuple):
    """The fork server of this process, and the connection to it."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    lock: threading.Lock

    def ask(self, request: dict[str, Any], files: Sequence[int] = ()) -> int:
        """Send a request, and return the number that answers it."""
        with self.lock:
            socket.send_fds(self.connection, [b"?"], files)
            self.connection.sendall(json.dumps(request).encode() + b"\n")
            return int(self.connection.recv(20))

    def stop(self) -> None:
        """Let the server end, and with it the commands that still run."""
        self.connection.close()
        self.process.wait()


@cache
def _server() -> _Server:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "tests.forked_gateway", str(theirs.fileno())]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    server = _Server(process, ours, threading.Lock())
    atexit.register(server.stop)
    return server


def _serve_forks(connection: socket.socket) -> list[str]:
    """Fork for each request. Return the arguments of the command, in the forked process."""
    running: set[int] = set()
    lines = connection.makefile("rb")
    while True:
        _, files, _, _ = socket.recv_fds(connection, 1, 4)
        if not (line := lines.readline()):
            # The tests have ended: stop what a failed test left behind.
            for pid in running:
                os.kill(pid, signal.SIGTERM)
            sys.exit()
        request = json.loads(line)
        if "wait" in request:
            connection.sendall(b"%d" % os.waitpid(request["wait"], 0)[1])
            running.discard(request["wait"])
        elif pid := os.fork():
            connection.sendall(b"%d" % pid)
            running.add(pid)
            for each in files:
                os.close(each)
        else:
            lines.close()
            connection.close()
            for number, each in enumerate(files[:3]):
                os.dup2(each, number)
                os.close(each)
            os.chdir(request["cwd"])
            os.environ.clear()
            os.environ.update(request["env"])
            return list(request["arguments"])


def _main() -> NoReturn:
    # Ctrl-C ends the tests, and with them the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    for each in PRELOADED:
        importlib.import_module(each)
    # Frozen objects are neither collected nor copied in the forked processes.
    gc.freeze()
    sys.argv[:] = ["gateway", *_serve_forks(socket.socket(fileno=int(sys.argv[1])))]
    from gateway.cli import main

    main()
    sys.exit()


if __name__ == "__main__":
    _main()
