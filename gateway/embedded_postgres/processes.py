"""End PostgreSQL servers: the one that this process started, and those that an earlier gateway left running."""

import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from gateway.embedded_postgres.os_account import PostgresUnavailable

# Seconds to wait after fast shutdown (SIGINT), after immediate shutdown (SIGQUIT; costs a recovery but no row), and
# after SIGKILL.
STOP_SIGNALS = ((signal.SIGINT, 30), (signal.SIGQUIT, 10), (signal.SIGKILL, 10))


def end_server(server: subprocess.Popen[bytes]) -> None:
    """End a server that this process started."""
    for number, seconds in STOP_SIGNALS:
        server.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(seconds)
            return


def end_strays(home: Path, socket_folder: Path) -> None:
    """End every database process that works under `home`: this process holds the lock, so their gateway is gone.

    Raises `PostgresUnavailable` if a process survives.
    """
    for number, seconds in STOP_SIGNALS:
        found = _database_processes(home, socket_folder)
        # SIGINT only cancels the statement of a server's child. Children end with their server or get the next signal.
        targets = [process for process in found if number != signal.SIGINT or not _is_child(process)]
        for target in targets:
            with suppress(psutil.Error):
                target.send_signal(number)
        deadline = time.monotonic() + (seconds if targets else 0)
        while found and time.monotonic() < deadline:
            time.sleep(0.005)
            found = _database_processes(home, socket_folder)
        if not found:
            return
    raise PostgresUnavailable(f"A process that works in {home} cannot be stopped: stop it, then start again.")


def _database_processes(home: Path, socket_folder: Path) -> list[psutil.Process]:
    """Return the live processes that work under `home`.

    A pid file is not used, because its pid may be a zombie's or another program's.
    """
    found = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] in {"postgres", "initdb"}:
            with suppress(psutil.Error):
                if _works_in(process, home, socket_folder):
                    found.append(process)
    return found


def _works_in(process: psutil.Process, home: Path, socket_folder: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(home)
    except psutil.AccessDenied:
        # Root in a container sees the working folder of its own processes only. The socket's path identifies our
        # server.
        return socket_option(socket_folder) in process.cmdline()


def _is_child(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).startswith("postgres: ")
    return True


def socket_option(folder: Path) -> str:
    """Return the argument that names the folder of the server's socket, and so identifies the server."""
    return f"--unix_socket_directories={folder}"
