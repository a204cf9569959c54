"""The output of an export: standard output, or a file that has its name only once it is whole.

The rows of FILE are written to `FILE.part`. `FILE.part.state` has the checkpoints of an export that can be resumed: up
to which byte the rows are on disk, and which row is the last of them. It contains nothing clinical.
"""

import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson

STANDARD_OUTPUT = Path("-")

CHECKPOINT_ROWS = 10_000
"""Rows between two checkpoints; as many as an interruption may cost, and enough that flushing costs little."""

MODE = 0o600


class ExportStopped(Exception):
    """The export cannot begin or continue; the message says why."""


class Place(NamedTuple):
    """The place of a row in the order of an export: its creation as text, and its id."""

    created_at: str
    id: str


class Checkpoint(NamedTuple):
    """The rows that are on disk: their number, the size of the file in bytes, and the place of the last row."""

    rows: int
    size: int
    last: Place


class Output(Protocol):
    """Where the rows of an export are written."""

    def write(self, data: bytes, rows: int = 0, last: Place | None = None) -> None:
        """Write whole rows, of which `last` is the place of the last. Raises `ExportStopped` or `BrokenPipeError`."""

    def sync(self) -> None:
        """Return once all rows are on disk. Raises `ExportStopped`."""

    def finish(self) -> None:
        """Rename the complete file. Raises `ExportStopped`."""


class StandardOutput:
    """Standard output."""

    def __init__(self) -> None:
        # Neither `sys.stdout`, which has a buffer, nor ever closed.
        self._stream = FileIO(1, "wb", closefd=False)

    def write(self, data: bytes, rows: int = 0, last: Place | None = None) -> None:
        """Write whole rows. Raises `ExportStopped`, or `BrokenPipeError` if the reader has closed its end."""
        del rows, last
        try:
            _write_all(self._stream, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ExportStopped(f"standard output cannot be written ({error.strerror})") from error

    def sync(self) -> None:
        """Do nothing: the reader decides what it keeps."""

    def finish(self) -> None:
        """Do nothing."""


class FileOutput:
    """A file. Use `FileOutput.open`."""

    def __init__(self, file: Path, stream: FileIO, about: Mapping[str, str], *, force: bool) -> None:
        self._file = file
        self._part = part_of(file)
        self._stream = stream
        self._about = about
        self._force = force
        self._checkpoints: list[Checkpoint] = []
        self._rows = 0
        self._size = 0
        self._last: Place | None = None

    @classmethod
    @contextmanager
    def open(cls, file: Path, about: Mapping[str, str], *, resume: bool | None, force: bool) -> Iterator["FileOutput"]:
        """Yield the output of a file, whose rows are kept if the block does not end.

        Raises `ExportStopped`: the file exists, another export writes it, or it cannot be written.

        Args:
            file: The file.
            about: What the file contains. An export is only resumed if it is the same.
            resume: Whether to continue an interrupted export of the file; None if such exports cannot be resumed.
            force: Whether to replace an existing file, and an interrupted export.
        """
        _refuse_existing(file, force=force)
        part = part_of(file)
        with _translated(part):
            stream = FileIO(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE), "r+b")
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExportStopped(f"another export is writing {part}") from None
            with _translated(part):
                # Another export may have renamed the file since it was opened.
                if os.fstat(stream.fileno()).st_ino != part.stat().st_ino:
                    raise ExportStopped(f"another export has just written {file}")
                # A file of an earlier run may have other rights.
                os.fchmod(stream.fileno(), MODE)
                size = os.fstat(stream.fileno()).st_size
            output = cls(file, stream, about, force=force)
            if resume:
                output._read_state(size)
            elif size and resume is not None and not force:
                raise ExportStopped(
                    f"{part} is an interrupted export; continue it with --resume, or begin again with --force"
                )
            yield output

    @property
    def snapshot_at(self) -> str | None:
        """The time of the snapshot whose rows the file has, or None if it has no rows."""
        return self._about.get("snapshot_at") if self._checkpoints else None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, or None."""
        return self._checkpoints[-1] if self._checkpoints else None

    def rewind(self, before: Place | None) -> None:
        """Forget the checkpoints from the place `before` on; None: all of them."""
        # The texts sort like the values: times in UTC to the microsecond, and ids in lower case.
        self._checkpoints = [each for each in self._checkpoints if before is not None and each.last < before]

    def begin(self, snapshot_at: str) -> None:
        """Cut the file after the last checkpoint; the rows that follow are of the snapshot of this time.

        Raises `ExportStopped`.
        """
        checkpoint = self.checkpoint
        self._rows, self._size, self._last = checkpoint or (0, 0, None)
        self._about = {**self._about, "snapshot_at": snapshot_at}
        with _translated(self._part):
            # In this order: the older state describes the shorter file too, but not one with later rows.
            self._stream.truncate(self._size)
            self._stream.seek(self._size)
            os.fsync(self._stream.fileno())
            self._write_state()

    def write(self, data: bytes, rows: int = 0, last: Place | None = None) -> None:
        """Write whole rows, of which `last` is the place of the last. Raises `ExportStopped`."""
        with _translated(self._part):
            _write_all(self._stream, data)
        self._size += len(data)
        self._rows += rows
        self._last = last or self._last
        if self._rows - (self.checkpoint.rows if self.checkpoint else 0) >= CHECKPOINT_ROWS:
            self.sync()
            assert self._last is not None, "there are rows"
            self._checkpoints.append(Checkpoint(self._rows, self._size, self._last))
            with _translated(self._part):
                self._write_state()

    def sync(self) -> None:
        """Return once all rows are on disk. Raises `ExportStopped`."""
        with _translated(self._part):
            os.fsync(self._stream.fileno())

    def finish(self) -> None:
        """Rename the complete file, and delete the state. Raises `ExportStopped`."""
        _refuse_existing(self._file, force=self._force)
        with _translated(self._file):
            self._part.rename(self._file)
            state = state_of(self._file)
            for each in (state, _next(state)):
                each.unlink(missing_ok=True)
            _sync_folder(self._file)

    def _read_state(self, size: int) -> None:
        """Read the checkpoints of an interrupted export; those beyond the end of the file are ignored."""
        try:
            state = orjson.loads(state_of(self._file).read_bytes())
            about = dict(state["about"])
            snapshot_at = str(about.pop("snapshot_at"))
            checkpoints = [Checkpoint(rows, end, Place(*last)) for rows, end, last in state["checkpoints"]]
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ExportStopped(f"{state_of(self._file)} cannot be read; begin again with --force") from error
        if about != self._about:
            differing = ", ".join(name for name, value in self._about.items() if about.get(name) != value)
            raise ExportStopped(f"{self._part} was begun with another {differing}; begin again with --force")
        self._about = {**about, "snapshot_at": snapshot_at}
        self._checkpoints = [each for each in checkpoints if each.size <= size]

    def _write_state(self) -> None:
        state = state_of(self._file)
        new = _next(state)
        content = orjson.dumps({"about": self._about, "checkpoints": self._checkpoints}, default=list)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
        with FileIO(descriptor, "wb") as stream:
            _write_all(stream, content)
            os.fsync(descriptor)
        new.rename(state)
        _sync_folder(state)


def output_of(
    file: Path, about: Mapping[str, str], *, resume: bool | None, force: bool
) -> AbstractContextManager[StandardOutput | FileOutput]:
    """Return the output for a file or for standard output (see `FileOutput.open`)."""
    if file == STANDARD_OUTPUT:
        return nullcontext(StandardOutput())
    return FileOutput.open(file, about, resume=resume, force=force)


def part_of(file: Path) -> Path:
    """Return the name of a file until it is whole."""
    return file.with_name(f"{file.name}.part")


def state_of(file: Path) -> Path:
    """Return the name of the file with the checkpoints of an unfinished export."""
    return file.with_name(f"{file.name}.part.state")


def _next(state: Path) -> Path:
    return state.with_name(f"{state.name}.new")


def _refuse_existing(file: Path, *, force: bool) -> None:
    with _translated(file):
        try:
            mode = file.lstat().st_mode
        except FileNotFoundError:
            return
    if not stat.S_ISREG(mode):
        raise ExportStopped(f"{file} exists and is not a regular file; export to - and redirect it")
    if not force:
        raise ExportStopped(f"{file} exists; name another file, or replace it with --force")


def _write_all(stream: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) or 0 :]


def _sync_folder(file: Path) -> None:
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _translated(file: Path) -> Iterator[None]:
    """Translate an `OSError` into `ExportStopped`."""
    try:
        yield
    except OSError as error:
        raise ExportStopped(f"{file} cannot be written ({error.strerror})") from error
