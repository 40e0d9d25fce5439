"""Read files of strangers in separate processes with a time limit, so that none blocks or ends the program."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from functools import cache
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from hf_any3d.data.files import PointCloudData, PointCloudFileError, read_point_cloud

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

SECONDS = 20.0
"""Time limit for reading a file."""
_START_SECONDS = 120.0  # for the first process, which imports everything; later ones are forked from it


def read_apart(path: str | os.PathLike, seconds: float = SECONDS, columns: Sequence[str] = ()) -> PointCloudData:
    """Read a stranger's file, with further columns by name, in a process that is killed after so many seconds.

    Raises:
        PointCloudFileError: The file cannot be read, takes longer, or ends the process.
    """
    # A process of its own, as a damaged file may crash or block the library that reads it
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read_into, args=(sender, os.fspath(path), tuple(columns)), daemon=True)
    process.start()
    # This process's copy: only then does a crash of the other one end the connection.
    sender.close()
    try:
        # The time of the file begins with the first message, after all imports.
        is_ready = receiver.poll(_START_SECONDS) and receiver.recv() == "started" and receiver.poll(seconds)
        result = receiver.recv() if is_ready else f"{path}: took more than {seconds:g} seconds to read"
    except EOFError:
        result = f"{path}: cannot be read; the reading process crashed"
    finally:
        # Also after success: what a file has done to the process ends with it.
        process.kill()
        process.join()
        process.close()
        receiver.close()
    if isinstance(result, str):
        raise PointCloudFileError(result)
    return result


def warm_up() -> None:
    """Start the process that readers are forked from, so that the first visitor does not wait for it."""
    process = _context().Process(target=str, daemon=True)
    # Inherited: Ctrl-C would otherwise print a traceback of that process while it still imports.
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    process.start()
    if is_main:
        signal.signal(signal.SIGINT, before)
    process.join()


@cache
def _context() -> SpawnContext | ForkServerContext:
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # The server imports this module once, with all that reads files; readers are forked from it.
    context.set_forkserver_preload([__name__])
    return context


def _read_into(sender: Connection, path: str, columns: tuple[str, ...]) -> None:
    sender.send("started")
    try:
        result: PointCloudData | str = read_point_cloud(path, columns=columns)
    except (ValueError, OSError, ImportError) as error:
        result = str(error)
    except MemoryError:
        result = f"{path}: needs more memory than is available"
    sender.send(result)
