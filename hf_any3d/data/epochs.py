"""The epoch of training rows: shared with worker processes, and seeds of what is drawn for a row."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

_WHEN_MADE: list[Callable[[], None]] = []


def when_made(call: Callable[[], None]) -> None:
    """Call a function before the next rows with an epoch are made, which may never happen."""
    _WHEN_MADE.append(call)


class SharedEpoch:
    """Epoch number in shared memory, so that running worker processes of a DataLoader see changes.

    Workers get a plain attribute only when they start: with `persistent_workers` they would repeat the augmentation of
    the first epoch.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_shared_{name}"

    def __get__(self, rows: Any, owner: type | None = None) -> int:
        return int(getattr(rows, self.name))

    def __set__(self, rows: Any, epoch: int) -> None:
        if not hasattr(rows, self.name):
            for call in _WHEN_MADE:
                call()
            setattr(rows, self.name, torch.zeros((), dtype=torch.int64).share_memory_())
        getattr(rows, self.name).fill_(epoch)


def rows_with_epoch(dataset: Any) -> list[Any]:
    """Return the rows of this package with an epoch that a dataset is, or has in it, such as a `ConcatDataset`."""
    found, seen, left = [], set(), [dataset]
    while left:
        part = left.pop()
        if id(part) in seen or not isinstance(part, (Dataset, list, tuple, dict)):
            continue
        seen.add(id(part))
        if isinstance(part, Dataset):
            epochs = [vars(kind).get("epoch") for kind in type(part).__mro__]
            # Some rows have none: they are the same in all epochs.
            if any(isinstance(epoch, SharedEpoch) and epoch.name in vars(part) for epoch in epochs):
                found.append(part)
            held = vars(part).values()
        else:
            held = part.values() if isinstance(part, dict) else part
        # Rows in a list are no datasets, and may be many.
        left += [value for value in held if isinstance(value, Dataset)] if isinstance(part, (list, tuple)) else held
    return found


@contextmanager
def states_kept() -> Iterator[None]:
    """Let torch, numpy and `random` go on afterwards as if nothing had been drawn or seeded inside."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def seed_all(*key: int) -> None:
    """Seed torch, numpy and `random` by non-negative integers; for use within `states_kept`."""
    numbers = np.random.SeedSequence(key).generate_state(3)
    # Not `torch.manual_seed`, which seeds accelerators too.
    torch.default_generator.manual_seed(int(numbers[0]))
    np.random.seed(numbers[1])
    random.seed(int(numbers[2]))
