"""Write files atomically, check outputs before the work, and lock folders that one process at a time writes to.

A program may be killed at any moment, and a disk may be full at any write. Files are therefore written under a
temporary name in the same folder, `.DIGEST.HOST.PID.tmp`, and renamed when complete; `claim` locks a folder, and
leftovers of killed processes are removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows, where files are locked through filelock
    fcntl = None

# A part of file names, so without dots, and short.
_HOST = re.sub(r"[^\w-]", "_", socket.gethostname(), flags=re.ASCII)[:60]
_TEMPORARY = re.compile(rf"\..+\.{re.escape(_HOST)}\.(\d+)\.tmp(?:-\w+)?", re.DOTALL)  # with those of databases
_CLEARED: set[tuple[int, Path]] = set()
_CLAIMS: dict[Path, Claim] = {}
# What this process writes at the moment; names of other processes differ.
_UNFINISHED: set[Path] = set()
# More than what a file system may still have room for in the last block of a file.
_PROBE = 1 << 17
_MOST_BYTES = 255
"""Length of a file name that all usual file systems take."""


def temporary_path(path: Path) -> Path:
    """Return the path under which this process writes `path` until it is complete; short, however long its name is."""
    return path.with_name(f".{_digest(path.name)}.{_HOST}.{os.getpid()}.tmp")


def hidden_path(path: Path, ending: str) -> Path:
    """Return a hidden path beside a file, `.NAME` and an ending; a name that would be too long is shortened."""
    name = f".{path.name}{ending}"
    if len(os.fsencode(name)) > _MOST_BYTES:
        name = f".{_digest(path.name)}{ending}"
    return path.with_name(name)


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` at the end; after an error it is removed.

    A symbolic link is replaced, not its target. Folders above it are created. The temporary file exists, and is empty.

    Raises:
        OSError: The file cannot be written, as in a folder that is read-only or on a disk that is full. The error
            names `path`, and the file that was there is kept.
    """
    path = Path(path)
    _refuse_other_kinds(path)
    with _unfinished(path) as unfinished:
        # Created here, so that a read-only folder is an error in the words below, whatever library writes.
        unfinished.open("xb").close()
        mode = _mode_of(unfinished)
        yield unfinished
        # Libraries that replace the file make some that only their owner can read.
        if _mode_of(unfinished) != mode:
            unfinished.chmod(mode)
        with open(unfinished, "rb") as file:
            # Flushed before it is renamed: after a loss of power the new name must not stand for an empty file.
            os.fsync(file.fileno())
        os.replace(unfinished, path)


@contextmanager
def usual_mode(folder: str | os.PathLike) -> Iterator[None]:
    """Give files of weights that are meanwhile written to a folder the mode of other new files, as the umask has it.

    safetensors makes them readable by their owner alone from 0.8 on. The folder and those directly in it are looked
    at; other files keep their mode.
    """
    folder = Path(folder)
    before = {path: path.stat().st_ino for path in _weights_in(folder)}
    yield
    written = [path for path in _weights_in(folder) if path.stat().st_ino != before.get(path)]
    if written:
        mode = _mode_of_new_files(folder)
        for path in written:
            if _mode_of(path) != mode:
                path.chmod(mode)


def _weights_in(folder: Path) -> list[Path]:
    found = [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _mode_of_new_files(folder: Path) -> int:
    try:
        # A file without a name: to read the umask, one has to change it, in all threads.
        probe = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, OSError):  # other systems, and some file systems
        mask = os.umask(0o077)
        os.umask(mask)
        return 0o666 & ~mask
    try:
        return stat.S_IMODE(os.fstat(probe).st_mode)
    finally:
        os.close(probe)


def _mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def folder_beside(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new temporary folder in that of `path`, for files that are renamed when all are complete.

    It is removed at the end; errors are those of `atomic_write`.
    """
    with _unfinished(Path(path)) as unfinished:
        unfinished.mkdir()
        yield unfinished


@contextmanager
def folder_inside(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a new temporary folder in `folder`, which is created; as `folder_beside` otherwise."""
    folder = Path(folder)
    with _unfinished(folder, temporary_path(folder / folder.name)) as unfinished:
        unfinished.mkdir()
        yield unfinished


@contextmanager
def new_directory(output: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to `output`, a `new_path`, at the end, or removed after an error."""
    output = new_path(output)
    with folder_beside(output) as unfinished:
        with usual_mode(unfinished):
            yield unfinished
        # An empty directory that is there already is replaced.
        os.replace(unfinished, output)


def new_path(output: str | os.PathLike) -> Path:
    """Return the absolute path of a file or directory to create; an empty directory counts as new."""
    output = Path(output).absolute()
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise FileExistsError(f"{output}: exists already; give a new one")
    return output


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder among the temporary files of the system, removed at the end.

    So it is when SIGTERM ends the process. That of a killed process is removed by the next one that makes such a
    folder.
    """
    remove_abandoned(Path(tempfile.gettempdir()))
    folder = tempfile.mkdtemp(f".{_HOST}.{os.getpid()}.tmp", ".hf_any3d-")
    try:
        with _terminated_by_exit():
            yield Path(folder)
    except OSError as error:
        if not str(error.filename).startswith(folder):
            raise
        place = tempfile.gettempdir()
        text = f"{place}: {_reason(error)}; set TMPDIR to another folder for temporary files"
        raise OSError(error.errno, text) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _terminated_by_exit() -> Iterator[None]:
    """Let SIGTERM end the process as `sys.exit` does, which cleans up, unless the program handles it by itself."""
    # The main thread alone may say what signals mean.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def reserve_room(file: str | os.PathLike) -> None:
    """Take the room of a file that has its size already, before it is mapped into memory.

    To write to a mapped page that has no room would end the process.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with open(file, "r+b") as opened:
            try:
                os.posix_fallocate(opened.fileno(), 0, os.path.getsize(file))
            except OSError as error:
                raise OSError(error.errno, os.strerror(error.errno or errno.EIO), os.fspath(file)) from error


def check_outputs(
    outputs: Mapping[str, str | os.PathLike], inputs: Iterable[str | os.PathLike] = (), *, are_files: bool = True
) -> None:
    """Check, before any work is done, that files or folders can be written.

    Args:
        outputs: Their paths, by the names that errors have for them.
        inputs: Files that are read.
        are_files: Whether a path of a folder is refused.

    Raises:
        OSError: A folder is read-only, a name is too long, or something else than a file has this name.
        ValueError: Two outputs are one file, or an output is an input.
    """
    names: dict[str, str] = {}
    read = [os.stat(path) for path in inputs if os.path.isfile(path)]
    for name, given in outputs.items():
        path = Path(given)
        if are_files or not os.path.isdir(path):
            _refuse_other_kinds(path)
        _check_place(path)
        # The file itself may be a link, which is replaced.
        place = os.path.join(os.path.realpath(path.parent), path.name)
        if place in names:
            text = f"{names[place]} and {name} are both {path}; expected a path for each"
            raise ValueError(text if names[place] != name else f"{path}: two outputs have this path")
        names[place] = name
        if os.path.isfile(path) and any(os.path.samestat(path.stat(), file) for file in read):
            raise ValueError(f"{name}: {path} is an input file, which is never overwritten; give another path")


def _check_place(path: Path) -> None:
    """Raise an error that names a path if no file or folder can be written there."""
    # The nearest folder that exists; those below it will be created.
    folder = path
    missing: list[str] = []
    if not os.path.isdir(path):
        missing.append(path.name)
        folder = path.parent
    while not os.path.lexists(folder):
        missing.append(folder.name)
        folder = folder.parent
    probe = temporary_path(folder / "probe")
    try:
        for name in missing:
            # For a name that is too long, this is another error.
            with suppress(FileNotFoundError):
                os.lstat(folder / name)
        # Tried, since rights, quotas and mounts decide together.
        probe.open("wb").close()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written ({_reason(error)})") from error


def _refuse_other_kinds(path: Path) -> None:
    """Raise an error for a path of a folder, or of a device, which a file must not replace."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, f"{path} is a folder; expected the name of a file")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"{path} is no regular file, but a device or pipe; expected the name of a file")


@contextmanager
def _unfinished(path: Path, unfinished: Path | None = None) -> Iterator[Path]:
    """Yield the temporary path of a file or folder, which is removed at the end; errors of writing name `path`."""
    if unfinished is None:
        unfinished = temporary_path(path)
    if unfinished in _UNFINISHED:
        raise FileExistsError(errno.EEXIST, f"{path} is being written already; expected a path for each output")
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(unfinished.parent)
        # Of a process that was killed and had the same number
        _remove(unfinished)
    except OSError as error:
        raise _about(path, error) from error
    _UNFINISHED.add(unfinished)
    try:
        yield unfinished
    except Exception as error:
        # Errors about other files, which the caller opens meanwhile, are not about writing this one.
        number = getattr(error, "errno", None)
        names = (None, str(unfinished), os.fsencode(unfinished))
        is_of_disk = isinstance(error, OSError) and number is not None and error.filename in names
        if is_of_disk or unfinished.name in str(error):
            raise _about(path, error, unfinished) from error
        # Libraries have many types of errors for a full disk, few of which name the file.
        if number is None and (found := _why_full(unfinished)) is not None:
            raise _about(path, found) from error
        raise
    finally:
        _UNFINISHED.discard(unfinished)
        _remove(unfinished)


def _about(path: Path, error: Exception, unfinished: Path | None = None) -> OSError:
    """Return the error of writing a file, which names it and not its temporary path."""
    number = getattr(error, "errno", None) or errno.EIO
    reason = _reason(error)
    if unfinished is not None:
        found = None if getattr(error, "errno", None) else _why_full(unfinished)
        if found is not None:
            number = found.errno
            reason = _reason(found)
        reason = reason.replace(str(unfinished), str(path)).replace(unfinished.name, path.name)
    return OSError(number, f"{path} could not be written ({reason}); nothing of it was kept")


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)


def _why_full(unfinished: Path) -> OSError | None:
    """Return the error of adding some bytes to a file, or to a folder; None if there is room."""
    file = unfinished / "probe" if unfinished.is_dir() else unfinished
    try:
        with open(file, "ab") as opened:
            opened.write(bytes(_PROBE))
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        return error
    return None


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def is_full(error: BaseException) -> bool:
    """Return whether an error is one of a disk without room, which the next file would meet, too."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Write bytes atomically and return the path."""
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content)
    return Path(path)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write text in UTF-8 atomically and return the path."""
    # A file name that is no UTF-8 is shown escaped; in JSON and scripts the escape means the same.
    return write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike, value: Any) -> Path:
    """Write indented JSON atomically and return the path."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any | None:
    """Read JSON; None if the file does not exist or is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist, is damaged or holds something else."""
    read = read_json(path)
    return read if isinstance(read, dict) else {}


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files and folders left by killed processes of this machine, once for each folder."""
    if (os.getpid(), folder) in _CLEARED:  # listing a folder for each file that is written there would be quadratic
        return
    _CLEARED.add((os.getpid(), folder))
    with suppress(FileNotFoundError):
        for name in os.listdir(folder):
            match = _TEMPORARY.fullmatch(name)
            if match is None or os.name == "nt":
                continue  # on Windows, signal 0 would end the process
            # In containers, the next process often has the number of the one before.
            if int(match[1]) == os.getpid():
                if folder / name not in _UNFINISHED:
                    _remove(folder / name)
                continue
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                _remove(folder / name)
            except OSError:  # not permitted: the process exists, and belongs to another user
                pass


def remove_temporaries(folder: Path) -> None:
    """Remove all temporary files in `folder`; no process may be writing there."""
    # Of other machines too, whose processes cannot be asked for.
    for path in folder.glob(".*.tmp"):
        _remove(path)
    for path in folder.glob(".tmp??????"):  # as safetensors calls a file until it is whole
        if path.is_file():
            _remove(path)


LOCK = "_lock"
"""Lock file in the output folder of a training; that of a killed one stays."""


class Claim:
    """A lock file held while this process writes somewhere; see `claim`."""

    def __init__(self, path: Path, close: Callable[[], None]):
        self.path = path
        self.close = close
        self.process = os.getpid()

    def release(self) -> None:
        """Release the lock."""
        # The same file may have been claimed anew since.
        if _CLAIMS.get(self.path) is self:
            del _CLAIMS[self.path]
        # A forked child has this object, but not the lock. Removed before it is closed, while nobody else can have it;
        # Windows removes no open file.
        if self.process == os.getpid():
            with suppress(PermissionError):
                self.path.unlink(missing_ok=True)
        self.close()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def claim(lock: str | os.PathLike, output: str | os.PathLike) -> Claim:
    """Lock an output folder against other processes.

    The system releases the lock when the process ends, even if killed. A process that claims a folder twice gets the
    same claim, which is also a context manager.

    Args:
        lock: The lock file; it is created, and removed on release.
        output: The folder, for the error.
    """
    lock = Path(lock).resolve()
    # POSIX locks belong to a process: opening and closing the file once more would release what is held.
    held = _CLAIMS.get(lock)
    # A forked child has this table, but not the locks.
    if held is not None and held.process == os.getpid():
        return held
    lock.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        # Every installation has it through huggingface_hub; to import it takes a tenth of a second.
        from filelock import FileLock, Timeout

        own = FileLock(lock, timeout=0, thread_local=False)
        try:
            own.acquire()
        except Timeout:
            text = f"{output}: another process is writing there; wait until it ends, or pass another folder"
            raise BlockingIOError(errno.EWOULDBLOCK, text) from None
        _CLAIMS[lock] = made = Claim(lock, own.release)
        return made
    # Not through filelock, which leaves its files in place: it does not notice if the holder has removed the file.
    while True:
        file = open(lock, "a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            # Systems report a lock that another process holds by one of these two errors.
            if not isinstance(error, (BlockingIOError, PermissionError)):
                raise OSError(error.errno, f"{lock}: cannot be locked ({error.strerror})") from error
            raise BlockingIOError(
                error.errno, f"{output}: {holder} is writing there; wait until it ends, or pass another folder"
            ) from None
        # Between opening and locking, its holder may have removed the file, and a lock on that keeps nobody out.
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()
    try:
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {_HOST}\n".encode())
    except OSError:
        pass  # a full disk: the lock holds, without the name of its holder
    _CLAIMS[lock] = made = Claim(lock, file.close)
    return made


def release_claims() -> None:
    """Release all claims of this process."""
    for held in list(_CLAIMS.values()):
        held.release()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
