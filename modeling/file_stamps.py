"""Tell whether a file has changed: by its stamp, without reading it, or by its content."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path


def file_stamp(file: str | os.PathLike) -> tuple[int, int, int]:
    """Return numbers that change when a file does: its size, its time of modification and that of its inode.

    The first two alone can be equal for other content: archives and copying programs set the time of modification.
    The third is set by the system, with every writing, renaming and change of times.
    """
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def file_digest(file: Path) -> str:
    """Compute the SHA-256 of a file; that of an unchanged file is remembered."""
    # The real path: snapshots in the hub's cache are links to blobs that several revisions share.
    real = file.resolve()
    return _digest_of(real, file_stamp(real))


@lru_cache(maxsize=256)
def _digest_of(file: Path, stamp: tuple[int, ...]) -> str:
    return sha256_of(file)
