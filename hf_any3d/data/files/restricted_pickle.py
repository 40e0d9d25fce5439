"""Pickles of numpy arrays, read without Python's unpickler: nothing in the file can name code to run."""

import mmap
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from hf_any3d.data.files.errors import PointCloudError, PointCloudFileError
from hf_any3d.data.files.limits import ReadLimits
from hf_any3d.data.files.pickle_machine import PickleMachine

MAX_OPCODES = 3_000_000
MAX_CONTAINERS = 200_000
MAX_DEPTH = 50
# A pickle may refer to one object many times; unfolded, it must not be much larger than the file.
MAX_UNFOLDING = 64


def read_pickle(
    path: str | os.PathLike, *, max_opcodes: int = MAX_OPCODES, limits: ReadLimits | None = None
) -> object:
    """Read a pickle of protocol 1 to 5 that holds numpy arrays, numbers, text and plain containers.

    Python's own unpickler calls whatever a file names. This one knows no names but those by which numpy 1 and 2 write
    arrays, their types and scalars, and it builds these itself. It allocates no more than the file holds: arrays are
    views of the mapped file, read-only, and take memory only while they are looked at.

    Args:
        path: the file.
        max_opcodes: steps to take before giving up; an array needs about 40.
        limits: how many bytes the file and its arrays may have, each counted as often as it is referred to; by
            default `ReadLimits.current()`.

    Returns:
        Lists, tuples, dicts, numbers, text, bytes (as memoryview where they are long), None and arrays of numbers or
        fixed text.

    Raises:
        PointCloudFileError: no such file, a damaged one, one that asks for anything else, nests too deep or refers to
            itself, or goes beyond the limits. The text names the file and what was asked for.
    """
    path, limits = Path(path), ReadLimits.current() if limits is None else limits
    if not path.is_file():
        raise PointCloudFileError(f"{path}: no such file")
    if not path.stat().st_size:
        raise PointCloudFileError(f"{path}: the file is empty; expected a pickle")
    with open(path, "rb") as file:
        # Arrays keep the mapping alive; it ends with the last of them.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        limits.check(decoded=len(mapped))
        value = PickleMachine(memoryview(mapped), max_opcodes).run()
        _check_tree(value, max(1000, MAX_UNFOLDING * len(mapped)), len(mapped), limits)
    except PointCloudError as error:
        raise PointCloudFileError(f"{path}: {error}") from None
    except (MemoryError, RecursionError) as error:
        raise PointCloudFileError(f"{path}: no pickle that can be read ({type(error).__name__})") from None
    return value


def _check_tree(value: object, allowed: int, stored: int, limits: ReadLimits) -> None:
    """Refuse what refers to itself, nests too deep, or would be huge if it were walked through."""
    sizes: dict[int, tuple[int, int]] = {}  # id of a container -> values and bytes of arrays in it, unfolded
    open_ones: set[int] = set()
    todo: list[tuple[object, bool]] = [(value, False)]
    while todo:
        item, done = todo.pop()
        if id(item) in sizes:
            continue
        children = _children(item)
        if children is None:
            if isinstance(item, np.ndarray):
                sizes[id(item)] = (1, item.nbytes)
            continue
        if done:
            open_ones.discard(id(item))
            if len(sizes) > MAX_CONTAINERS:
                raise PointCloudError(f"more than {MAX_CONTAINERS} containers and arrays; expected at most that many")
            found = [sizes.get(id(child), (1, 0)) for child in children]
            sizes[id(item)] = (1 + sum(count for count, _ in found), sum(size for _, size in found))
            if sizes[id(item)][0] > allowed:
                raise PointCloudError(f"its values, unfolded, are more than {allowed}; expected no such repetition")
            limits.check(decoded=sizes[id(item)][1], stored=stored)
            continue
        if id(item) in open_ones:
            raise PointCloudError("a container holds itself; expected a tree")
        open_ones.add(id(item))
        if len(open_ones) > MAX_DEPTH:
            raise PointCloudError(f"containers are nested more than {MAX_DEPTH} deep")
        todo.append((item, True))
        todo.extend((child, False) for child in children)


def _children(item: object) -> Collection | None:
    if isinstance(item, (list, tuple)):
        return item
    if isinstance(item, dict):
        return item.values()  # keys are text and numbers
    return None
