"""How much a part of the canopy is like the crown of one tree: a few hundred small decision trees, stored as arrays.

They are learned from generated stands and numbered pines (`python -m studies.inventory.trees --fit`), and run on NumPy.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

DEPTH = 3
_FILE = Path(__file__).with_name("likeness.npz")


class Likeness(NamedTuple):
    """A sum of decision trees of depth three; the node after `i` is `2 * i + 1`, or `2 * i + 2` above the threshold.

    Attributes:
        names: What the columns of the numbers are.
        base: What the trees add to.
        columns: (trees, 7) the column that a node looks at.
        thresholds: (trees, 7) float32.
        values: (trees, 8) float32.
    """

    names: tuple[str, ...]
    base: float
    columns: np.ndarray
    thresholds: np.ndarray
    values: np.ndarray

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Return the likeness (parts,), float32 in 0 … 1, of parts with these numbers (parts, columns)."""
        total = np.full(len(numbers), self.base, dtype=np.float32)
        by_column = np.ascontiguousarray(numbers.T)
        for columns, thresholds, values in zip(self.columns, self.thresholds, self.values, strict=True):
            above = [by_column[column] > threshold for column, threshold in zip(columns, thresholds, strict=True)]
            second = np.where(above[0], above[2], above[1])
            third = np.where(above[0], np.where(above[2], above[6], above[5]), np.where(above[1], above[4], above[3]))
            total += values[above[0] * 4 + second * 2 + third]
        return np.clip(total, 0, 1)

    def save(self, path: Path) -> None:
        """Write the arrays to an `.npz` file."""
        np.savez_compressed(
            path,
            names=np.array(self.names),
            base=np.float32(self.base),
            columns=self.columns.astype(np.uint8),
            thresholds=self.thresholds.astype(np.float32),
            values=self.values.astype(np.float32),
        )


def load_likeness(path: Path = _FILE) -> Likeness:
    """Read what `Likeness.save` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return Likeness(
            tuple(str(name) for name in stored["names"]),
            float(stored["base"]),
            stored["columns"].astype(np.int64),
            stored["thresholds"],
            stored["values"],
        )


@lru_cache(maxsize=1)
def packaged_likeness() -> Likeness:
    """Read the likeness that comes with the package."""
    return load_likeness()
