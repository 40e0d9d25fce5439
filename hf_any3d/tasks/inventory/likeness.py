"""Likeness of a part of the canopy to the crown of one tree: a polynomial without mixed terms, stored as text.

Its coefficients are learned from generated stands (`python -m studies.inventory.trees --fit`).
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

_FILE = Path(__file__).with_name("likeness.json")


class Likeness(NamedTuple):
    """Coefficients for each column of `crowns.NAMES`; arrays (columns,).

    Attributes:
        base: What the terms add to.
        low: Values are cut to low … high, and go to -1 … 1.
        high: See low.
        linear: Of these.
        square: Of their squares.
    """

    base: float
    low: np.ndarray
    high: np.ndarray
    linear: np.ndarray
    square: np.ndarray

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Return the likeness (parts,) in 0 … 1 of parts with these numbers (parts, columns)."""
        scaled = (np.clip(numbers, self.low, self.high) - self.low) / (self.high - self.low) * 2 - 1
        return np.clip(self.base + scaled @ self.linear + scaled**2 @ self.square, 0, 1)


def save_likeness(likeness: Likeness, names: tuple[str, ...], path: Path) -> None:
    """Write coefficients as JSON, a row for each column."""
    columns = zip(names, likeness.low, likeness.high, likeness.linear, likeness.square, strict=True)
    rows = {name: [round(float(value), 5) for value in values] for name, *values in columns}
    lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in rows.items()]
    lines.insert(0, f'  "base": {round(likeness.base, 5)}')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@lru_cache(maxsize=1)
def packaged_likeness() -> Likeness:
    """Read the likeness that comes with the package."""
    rows = json.loads(_FILE.read_text(encoding="utf-8"))
    base = rows.pop("base")
    low, high, linear, square = np.array(list(rows.values())).T
    return Likeness(base, low, high, linear, square)
