"""Files that are there whole or not at all, and folders that one process at a time writes to.

A program may be killed at any moment, and a disk may be full at any write. Files are therefore written under a name of
their own beside the one they are to have, `.NAME.HOST.PID.tmp`, and renamed when they are complete; `claim` keeps a
second program out of a folder, and what a killed one left there is removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has other locks; there, nobody is kept out.
    fcntl = None

_HOST = re.sub(r"[^\w-]", "_", socket.gethostname())[:60]
_CLAIMS: dict[Path, Claim] = {}


def temporary_path(path: Path) -> Path:
    """Where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.tmp")


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` at the end; after an error nothing of it stays.

    A symbolic link is replaced by the file: what it leads to stays as it is.

    Args:
        path: The file to be; folders above it are made. What was there before stays until the new file is complete.

    Raises:
        OSError: The disk is full or cannot be written; names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary_path(path)
    remove_abandoned(path)
    try:
        yield unfinished
        publish(unfinished, path)
    except OSError as error:
        if error.filename in (None, str(unfinished)):
            raise not_written(path, error) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, after what it holds has reached the disk."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def not_written(path: Path, error: OSError) -> OSError:
    """The same error with the name of the file that could not be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OSError(error.errno, f"{path} could not be written ({reason}); nothing of it was kept")


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write text in UTF-8, whole or not at all; gives the path."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike, value: Any, indent: int = 2) -> Path:
    """Write JSON for people to read too, whole or not at all; gives the path."""
    return write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any | None:
    """Read JSON; None when there is no file, or one that an interruption left unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes of this machine left unfinished of `path`, a file or a folder."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(_HOST)}\.(\d+)\.tmp")
    for other in path.parent.glob(f".{_escaped(path.name)}.*.tmp"):
        found = name.fullmatch(other.name)
        if found and not _is_running(int(found[1])):
            _remove(other)


def remove_temporaries(folder: Path, name: str | None = None) -> None:
    """Remove all that was being written in `folder`, or only what was to be `name`; nobody may be writing there."""
    for path in folder.glob(".*.tmp" if name is None else f".{_escaped(name)}.*.tmp"):
        _remove(path)


class Claim:
    """A file that this process holds as long as it writes somewhere; see `claim`."""

    def __init__(self, path: Path, file: Any):
        self.path, self.file, self.process = path, file, os.getpid()

    def release(self) -> None:
        """Let others write."""
        if _CLAIMS.get(self.path) is self:
            del _CLAIMS[self.path]
        if self.process == os.getpid():
            self.path.unlink(missing_ok=True)
        self.file.close()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def claim(lock: str | os.PathLike, output: str | os.PathLike) -> Claim:
    """Make sure that no other process writes to the same place.

    The system lets go of the claim when the process ends, however it ends, so a killed one keeps nobody out. A
    process that claims a place twice gets the same claim.

    Args:
        lock: The file that stands for the place; it is made, and removed on release.
        output: The place, for the error.

    Returns:
        What is to be released at the end; also a context.

    Raises:
        BlockingIOError: Another process has it; says which.
    """
    lock = Path(lock).resolve()
    held = _CLAIMS.get(lock)
    if held is not None and held.process == os.getpid():
        return held
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(lock, "a+", encoding="utf-8")
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            if not isinstance(error, (BlockingIOError, PermissionError)):
                raise OSError(error.errno, f"{lock}: cannot be locked ({os.strerror(error.errno)})") from error
            raise BlockingIOError(
                error.errno, f"{output}: {holder} is writing there; wait until it ends, or give another place"
            ) from None
        if _is_at(lock, file):
            break
        file.close()  # its holder has just removed it
    try:
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {_HOST}\n".encode())
    except OSError:
        pass  # a full disk: the claim holds, and does not say whose it is
    _CLAIMS[lock] = made = Claim(lock, file)
    return made


def release_claims() -> None:
    """Let go of everything that this process has claimed."""
    for held in list(_CLAIMS.values()):
        held.release()


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if process == os.getpid() or os.name == "nt":  # where a signal of 0 ends a process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_at(path: Path, file: Any) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
