"""Which inputs of a point cloud pipeline are one cloud, and which are many."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class Clouds(Dataset):
    """Many clouds, read one at a time: a list, or a column of a dataset that need not fit in memory."""

    def __init__(self, rows: Sequence[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return self.rows[number]


def as_clouds(inputs: Any) -> Any:
    """Sort a pipeline's input into one cloud, `Clouds`, or an iterator that is passed on as it is.

    An array or tensor `(clouds, points, channels)` and a list are many clouds; a list of rows of numbers is one; so is
    a path, a dict (a dataset row), and any object that is not a sequence, such as a mesh.
    """
    if isinstance(inputs, (np.ndarray, torch.Tensor)):
        return Clouds(inputs) if inputs.ndim == 3 else inputs
    if isinstance(inputs, (str, bytes, dict)) or hasattr(inputs, "__fspath__") or isinstance(inputs, Dataset):
        return inputs
    if isinstance(inputs, (list, tuple)):
        return np.asarray(inputs, dtype=np.float32) if _holds_numbers(inputs) else Clouds(inputs)
    is_sequence = hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")
    return Clouds(inputs) if is_sequence else inputs


def stem_of(cloud: Any) -> str | None:
    """The name of a cloud's file without its ending; None for clouds that came from no file."""
    path = cloud.get("path") if isinstance(cloud, Mapping) else cloud
    return Path(path).stem if isinstance(path, (str, os.PathLike)) else None


def _holds_numbers(rows: Sequence[Any]) -> bool:
    first = rows[0] if len(rows) else None
    return isinstance(first, (list, tuple)) and len(first) > 0 and isinstance(first[0], (int, float))
