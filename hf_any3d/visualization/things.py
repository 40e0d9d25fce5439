"""Colors of things by their numbers."""

from __future__ import annotations

import numpy as np

from hf_any3d.visualization.viewer import label_colors

_CLEARLY_DISTINCT = 64
_NO_THING = 0.75  # light gray


def number_colors(numbers: np.ndarray) -> np.ndarray:
    """Return colors (points, 3) float32 in [0, 1] by the numbers (points,) of things; points of none, 0, are gray.

    Neighbors mostly have numbers that are near each other, whose colors are clearly distinct.
    """
    colors = label_colors(_CLEARLY_DISTINCT)[numbers % _CLEARLY_DISTINCT]
    colors[numbers <= 0] = _NO_THING
    return colors
