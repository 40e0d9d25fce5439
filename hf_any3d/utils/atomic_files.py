"""Write files atomically, and lock folders that one process at a time writes to.

A program may be killed at any moment, and a disk may be full at any write. Files are therefore written under a
temporary name in the same folder, `.NAME.HOST.PID.tmp`, and renamed when complete; `claim` locks a folder, and
leftovers of killed processes are removed.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows, where files are locked through filelock
    fcntl = None

# A part of file names, so without dots, and short.
_HOST = re.sub(r"[^\w-]", "_", socket.gethostname())[:60]
_TEMPORARY = re.compile(rf"\..+\.{re.escape(_HOST)}\.(\d+)\.tmp", re.DOTALL)
_CLEARED: set[tuple[int, Path]] = set()
_CLAIMS: dict[Path, Claim] = {}


def temporary_path(path: Path) -> Path:
    """Return the path under which this process writes `path` until it is complete."""
    return path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` at the end; after an error it is removed.

    A symbolic link is replaced, not its target.

    Folders above it are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary_path(path)
    remove_abandoned(path.parent)
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            # Flushed before it is renamed: after a loss of power the new name must not stand for an empty file.
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        # Errors about other files, which the caller opens meanwhile, are not about writing this one.
        if error.filename in (None, str(unfinished)):
            reason = os.strerror(error.errno) if error.errno else str(error)
            text = f"{path} could not be written ({reason}); nothing of it was kept"
            raise OSError(error.errno, text) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def is_full(error: BaseException) -> bool:
    """Return whether an error is one of a disk without room, which the next file would meet, too."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write text in UTF-8 atomically and return the path."""
    with atomic_write(path) as unfinished:
        # A file name that is no UTF-8 is shown escaped; in JSON and scripts the escape means the same.
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


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
            if match is None or int(match[1]) == os.getpid() or os.name == "nt":
                continue  # on Windows, signal 0 would end the process
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                _remove(folder / name)
            except OSError:  # not permitted: the process exists, and belongs to another user
                pass


def remove_temporaries(folder: Path, name: str | None = None) -> None:
    """Remove all temporary files in `folder`, or those of `name`; no process may be writing there."""
    # Of other machines too, whose processes cannot be asked for.
    for path in folder.glob(".*.tmp" if name is None else f".{glob.escape(name)}.*.tmp"):
        _remove(path)
    if name is None:
        for path in folder.glob(".tmp??????"):  # as safetensors calls a file until it is whole
            if path.is_file():
                _remove(path)


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
