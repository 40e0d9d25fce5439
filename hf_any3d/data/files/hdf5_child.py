"""The child process that opens HDF5 files for `hdf5`. It is run as a program and imports only numpy and h5py.

Each line of standard input is a request in JSON; each answer is a line of JSON, which the bytes of an array may
follow. It ends with its input.
"""

import json
import math
import os
import signal
import sys
from typing import cast

import h5py
import numpy as np

try:
    import fcntl
    import resource
except ImportError:  # not on all systems
    fcntl = resource = None

_MEMORY = 1 << 30  # bytes in addition to those at the start
_SECONDS = 30.0  # CPU time of one request
_LONGEST_NAME = 10_000
_LONGEST_ERROR = 120


def main() -> None:
    """Answer requests until the input ends."""
    _limit_memory()
    answers = os.fdopen(os.dup(1), "wb")
    if fcntl is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        # A larger pipe takes fewer switches between the two processes for the same array.
        fcntl.fcntl(answers, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.dup2(2, 1)  # keeps output of the library out of the answers
    opened: dict[str, h5py.File] = {}
    for line in sys.stdin.buffer:
        request, data = json.loads(line), None
        # A damaged file can put the library in an endless loop; the signal then ends the process.
        _allow(_SECONDS)
        try:
            # Reopen before listing; the file may have changed.
            if request["do"] != "read" or request["path"] not in opened:
                for file in opened.values():
                    file.close()
                opened = {}
            if request["do"] == "close":
                answer = {}
            else:
                file = opened.get(request["path"]) or h5py.File(request["path"], "r")
                opened[request["path"]] = file
                if request["do"] == "list":
                    answer = {"arrays": [_described(file, name) for name in file.keys()]}
                else:
                    array = cast(h5py.Dataset, file[request["name"]])
                    data = array[request["start"] : request["stop"]]
                    answer = {"shape": data.shape, "dtype": data.dtype.str}
        except Exception as error:
            answer, data = {"error": str(error)[:_LONGEST_ERROR]}, None
        _allow(0)
        answers.write(json.dumps(answer).encode() + b"\n")
        if data is not None:
            answers.write(np.ascontiguousarray(data).data)
        answers.flush()


def _allow(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    if resource is None:
        return
    # A crash of the library is expected on damaged files, and no core is wanted of it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            # The limit counts address space, of which libraries have reserved much already.
            taken = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = taken + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _described(file: h5py.File, name: str) -> dict:
    # Soft and external links may lead to other files.
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return {"name": name, "kind": "link"}
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.shape is None:
        return {"name": name, "kind": "other"}
    if array.is_virtual or array.external:
        return {"name": name, "kind": "external"}
    if array.dtype.kind not in "fiub" or array.dtype.str[1:] not in _TYPES or len(name) > _LONGEST_NAME:
        return {"name": name[:_LONGEST_NAME], "kind": "other"}
    chunk = 0 if array.chunks is None else array.dtype.itemsize * math.prod(array.chunks)
    return {"name": name, "kind": "array", "shape": array.shape, "dtype": array.dtype.str, "chunk": chunk}


_TYPES = {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}

if __name__ == "__main__":
    main()
