"""Files of visitors, read in processes of their own, so that none keeps the others waiting."""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from hf_any3d.data.files import PointCloudData, PointCloudFileError, read_point_cloud

LARGEST_UPLOAD = 50 * 2**20
"""Bytes of a file that the page takes."""
SECONDS = 20.0
"""How long a file may take to be read."""
AT_ONCE = 2
"""Files that are read at the same time; others wait, but questions do not."""
_START_SECONDS = 120.0  # for the first process, which imports everything; the others are copies of it


def read_upload(path: str | os.PathLike, seconds: float | None = None) -> PointCloudData:
    """Read a visitor's file in a process that is ended when time is up.

    Args:
        path: The file.
        seconds: How long reading may take; `SECONDS` if left out.

    Raises:
        PointCloudFileError: The file is too large, cannot be read, or takes too long; names the file.
    """
    seconds = SECONDS if seconds is None else seconds
    size = os.path.getsize(path)
    if size > LARGEST_UPLOAD:
        raise PointCloudFileError(f"{path}: {size:,} bytes; expected at most {LARGEST_UPLOAD:,}")
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read_into, args=(sender, os.fspath(path)), daemon=True)
    process.start()
    sender.close()
    try:
        is_there = receiver.poll(_START_SECONDS) and receiver.recv() == "started" and receiver.poll(seconds)
        if not is_there:
            raise PointCloudFileError(f"{path}: takes more than {seconds:g} seconds to read")
        told = receiver.recv()
    except EOFError:
        raise PointCloudFileError(f"{path}: cannot be read, its reader broke down") from None
    finally:
        process.kill()
        process.join()
        process.close()
        receiver.close()
    if isinstance(told, str):
        raise PointCloudFileError(told)
    return told


def warm_up() -> None:
    """Start the process that the readers are copies of, so that the first visitor does not wait for it."""
    process = _context().Process(target=str, daemon=True)
    process.start()
    process.join()


@cache
def _context() -> BaseContext:
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _read_into(sender: Connection, path: str) -> None:
    sender.send("started")
    try:
        told: PointCloudData | str = read_point_cloud(path)
    except (ValueError, OSError, ImportError) as error:
        told = str(error)
    except MemoryError:
        told = f"{path}: needs more memory than there is"
    sender.send(told)
