"""Read arrays in HDF5 files in bounded slices; needs the package h5py.

A damaged file can crash the HDF5 library and its process, so files are opened in a child process: one per reading
process, started with the first file and kept for later ones. It returns only numbers, and its answers are checked like
the content of a file.
"""

import io
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from hf_any3d.data.files.source import FREE_BYTES, PointCloudError, PointCloudFileError, ReadLimits, file_errors
from hf_any3d.data.files.text_numbers import listed, shorten

# Deflate compresses by at most 1032 to 1.
_MAX_RATIO = 1040
_SECONDS = 300.0  # wall time for one answer; the child allows itself less CPU time
_MOST_AT_ONCE = 1 << 29  # bytes
_LONGEST_ANSWER = 1 << 24


@dataclass(frozen=True)
class StoredArray:
    """An array in an HDF5 file; `read_slice` reads rows of it.

    Attributes:
        path: the file.
        name: in the file.
        shape: its size along each dimension.
        dtype: a numpy type of numbers.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of all its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def open_hdf5(
    path: str | os.PathLike, required: Sequence[str] = (), limits: ReadLimits | None = None
) -> Iterator[dict[str, StoredArray]]:
    """Open the arrays at the top of an HDF5 file.

    Args:
        path: the file.
        required: arrays that must exist.
        limits: limits of the file and each of its arrays; by default `ReadLimits.current()`.

    Yields:
        Name -> array on disk, for `read_slice`.

    Raises:
        ImportError: h5py is not installed.
        PointCloudFileError: no such file, a damaged one, a missing array, or an array that claims more numbers than
            the file can hold or refers to other files.
    """
    if find_spec("h5py") is None:
        raise ImportError(f"{path}: HDF5 files need the package h5py; pip install hf-any3d[files]")
    path, limits = Path(path), ReadLimits.current() if limits is None else limits
    if not path.is_file():
        raise PointCloudFileError(f"{path}: no such file")
    try:
        with file_errors(path):
            arrays = _arrays(path, limits)
        missing = [name for name in required if name not in arrays]
        if missing:
            raise PointCloudFileError(f"{path}: no array {missing[0]!r}; found {listed(sorted(arrays))}")
        yield arrays
    finally:
        _CHILD.forget(path)


def _arrays(path: Path, limits: ReadLimits) -> dict[str, StoredArray]:
    stored = path.stat().st_size
    arrays = {}
    try:
        limits.check(decoded=stored)
        answer, _ = _CHILD.ask(path, do="list")
        for found in answer["arrays"]:
            name = found["name"]
            if found["kind"] == "external":
                raise PointCloudError(f"array {shorten(name)} is stored in other files; expected it in this one")
            if found["kind"] != "array":
                continue
            array = StoredArray(path, name, tuple(found["shape"]), np.dtype(found["dtype"]))
            # Such an array is either filled by default or a lie; both could claim any memory.
            if array.nbytes > stored * _MAX_RATIO:
                raise PointCloudError(f"array {shorten(name)} claims {array.nbytes} bytes in a file of {stored}")
            # A chunk is always decompressed completely.
            limits.check(decoded=array.nbytes)
            if (chunk := found["chunk"]) > max(FREE_BYTES, limits.expansion * stored):
                raise PointCloudError(f"array {shorten(name)} has chunks of {chunk} bytes in a file of {stored}")
            arrays[name] = array
    except _Failed as error:
        raise PointCloudError(f"not a valid HDF5 file ({error})") from None
    return arrays


def read_slice(array: StoredArray, rows: range, path: str | os.PathLike) -> np.ndarray:
    """Read rows `rows` of an array.

    Raises:
        PointCloudFileError: damaged rows, or rows too large to be read at once.
    """
    start, stop = max(rows.start, 0), min(rows.stop, array.shape[0])
    shape = (max(stop - start, 0), *array.shape[1:])
    expected = {"shape": list(shape), "dtype": array.dtype.str}
    size = math.prod(shape) * array.dtype.itemsize
    try:
        # One answer is held twice, in the child and here.
        if size > _MOST_AT_ONCE:
            raise _Failed(f"{size} bytes at once; at most {_MOST_AT_ONCE} are read")
        answer, data = _CHILD.ask(
            array.path, expected=expected, size=size, do="read", name=array.name, start=start, stop=stop
        )
    except _Failed as error:
        raise PointCloudFileError(
            f"{path}: rows {rows.start} to {rows.stop - 1} of {array.name!r} are damaged ({error})"
        ) from None
    return np.frombuffer(data, array.dtype).reshape(shape)


class _Failed(Exception):
    """The child does not answer, or answers with an error."""


class _Child:
    """A process that opens HDF5 files, started with the first request."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()
        self._read = bytearray()  # bytes read from it and not yet used

    def ask(
        self, path: Path, *, expected: dict[str, Any] | None = None, size: int = 0, **request: Any
    ) -> tuple[dict[str, Any], bytearray]:
        """Send a request and wait for its answer.

        Args:
            path: the file.
            expected: the only accepted answer.
            size: bytes of the array that follows the answer.
            request: what to do.

        Raises:
            _Failed: the child cannot, or has ended.
        """
        # Requests and answers alternate on one pair of pipes, so threads take turns.
        with self._lock:
            try:
                process = self._started()
                _pipes(process)[0].write(json.dumps({"path": os.path.abspath(path), **request}).encode() + b"\n")
                deadline = time.monotonic() + _SECONDS
                piece = bytearray(1 << 16)
                while (end := self._read.find(b"\n")) < 0:
                    if len(self._read) > _LONGEST_ANSWER:
                        raise ValueError("an answer without an end")
                    self._read += piece[: self._fill(process, memoryview(piece), deadline)]
                answer = json.loads(self._take(end + 1))
                if not isinstance(answer, dict):
                    raise ValueError("a malformed answer")
                if "error" in answer:
                    raise _Failed(str(answer["error"]))
                # What follows is read by size alone: rows of another shape would shift all later answers.
                if expected is not None and answer != expected:
                    raise ValueError("rows of another shape than the array has")
                return answer, self._array(process, size, deadline)
            # After any of these the pipes may hold rest of an answer, so the child is ended, too.
            except (OSError, ValueError, RecursionError) as error:
                raise _Failed(self._end() or str(error)) from None

    def forget(self, path: Path) -> None:
        """Close a file if the child is still running."""
        if self._process is not None:
            try:
                self.ask(path, do="close")
            except _Failed:
                pass

    def abandon(self) -> None:
        """Detach from the child of the parent process, after a fork."""
        process, self._process, self._lock, self._read = self._process, None, threading.Lock(), bytearray()
        if process is not None:
            for pipe in _pipes(process):
                pipe.close()
            process.returncode = 0  # the parent of this process waits for it

    def _started(self) -> subprocess.Popen:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            program = str(Path(__file__).with_name("hdf5_child.py"))
            self._process = subprocess.Popen(
                # It finds packages where this process does, but nothing in the program's own folder.
                [sys.executable, "-I", "-c", _START, program, *map(os.path.abspath, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                # A file may name any filter; only built-in ones are used.
                env={**os.environ, "HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._process

    def _array(self, process: subprocess.Popen, size: int, deadline: float) -> bytearray:
        data = bytearray(size)
        start = min(size, len(self._read))
        data[:start] = self._take(start)
        with memoryview(data) as view:
            while start < size:
                start += self._fill(process, view[start:], deadline)
        return data

    @staticmethod
    def _fill(process: subprocess.Popen, view: memoryview, deadline: float) -> int:
        answers = _pipes(process)[1]
        # On Windows, select takes sockets only, so there reading waits without a limit.
        if os.name == "posix" and not select.select([answers], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise ValueError(f"no answer in {_SECONDS} s")
        count = answers.readinto(view)
        if not count:
            raise ValueError("the HDF5 library ended its process")
        return count

    def _take(self, size: int) -> bytes:
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken

    def _end(self) -> str:
        """End the child, so that the next request starts a new one; describe the signal that killed it, if any."""
        process, self._process, self._read = self._process, None, bytearray()
        if process is None:
            return ""
        for pipe in _pipes(process):
            pipe.close()
        try:
            status = process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return ""
        return f"the HDF5 library crashed, {signal.Signals(-status).name}" if status < 0 else ""


def _pipes(process: subprocess.Popen) -> tuple[io.FileIO, io.FileIO]:
    """Return the unbuffered pipes to the child and from it."""
    return cast("tuple[io.FileIO, io.FileIO]", (process.stdin, process.stdout))


_START = "import runpy, sys; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"
_CHILD = _Child()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_CHILD.abandon)
