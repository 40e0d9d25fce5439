"""Work on several items at once, in the threads that torch may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Yield the results of a function for each item, in order, which several threads compute.

    NumPy and torch release the interpreter while they compute. Each thread computes alone: what torch would split
    among threads is small, and sums in parts would depend on their number. No more items than threads are waiting.
    """
    if threads == 1:
        yield from map(function, items)
        return
    items = iter(items)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting = [pool.submit(function, item) for item in islice(items, 2 * threads)]
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(function, item) for item in islice(items, 1)]
    finally:
        # A thread sets the number for threads that begin later, too.
        torch.set_num_threads(threads)
