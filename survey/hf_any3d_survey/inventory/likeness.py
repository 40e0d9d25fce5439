"""Likeness of parts of the canopy to crowns of trees: polynomials without mixed terms, stored as text.

One says how much a part is like the crown of one tree; the other, averaged over the parts of one smoothing, how well
that smoothing finds the trees of a place. Richer functions learn the stands that they have seen. The coefficients are
learned from generated stands (`python -m survey.studies.trees --fit`).
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
        base: What the terms of the likeness add to.
        low: Values are cut to low … high, and go to -1 … 1.
        high: See low.
        linear: Of these, for the likeness.
        square: Of their squares.
        suits_linear: As `linear`, for how well a smoothing suits.
        suits_square: As `square`.
        sureness: (6,) coefficients of `JudgedParts.evidence` and a constant, whose sum a logistic function turns into
            the score of a tree.
    """

    base: float
    low: np.ndarray
    high: np.ndarray
    linear: np.ndarray
    square: np.ndarray
    suits_linear: np.ndarray
    suits_square: np.ndarray
    sureness: np.ndarray

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Return the likeness (parts,) in 0 … 1 of parts with these numbers (parts, columns)."""
        scaled = self.scaled(numbers)
        return np.clip(self.base + scaled @ self.linear + scaled**2 @ self.square, 0, 1)

    def suits(self, numbers: np.ndarray) -> np.ndarray:
        """Score the smoothing that each part is from, (parts,), higher where it finds trees well.

        The score of a smoothing is the mean over its parts; only scores of the same place can be compared.
        """
        scaled = self.scaled(numbers)
        return scaled @ self.suits_linear + scaled**2 @ self.suits_square

    def scaled(self, numbers: np.ndarray) -> np.ndarray:
        """Return numbers (parts, columns), cut to the bounds, in -1 … 1."""
        return (np.clip(numbers, self.low, self.high) - self.low) / (self.high - self.low) * 2 - 1


def save_likeness(likeness: Likeness, names: tuple[str, ...], path: Path) -> None:
    """Write coefficients as JSON, a row for each column."""
    columns = zip(names, *likeness[1:-1], strict=True)
    rows = {name: [round(float(value), 5) for value in values] for name, *values in columns}
    lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in rows.items()]
    lines.insert(0, f'  "sureness": {[round(float(value), 5) for value in likeness.sureness]}')
    lines.insert(0, f'  "base": {round(likeness.base, 5)}')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@lru_cache(maxsize=1)
def packaged_likeness() -> Likeness:
    """Read the likeness that comes with the package."""
    rows = json.loads(_FILE.read_text(encoding="utf-8"))
    base = rows.pop("base")
    sureness = np.array(rows.pop("sureness"))
    return Likeness(base, *np.array(list(rows.values())).T, sureness)
