"""Things of a scan by their numbers, such as trees and blocks of buildings: place and height."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, pi, sqrt

import numpy as np

TREE, ROOF = "tree", "building"
"""Names of things."""
HIGH = 5
"""Code of ASPRS for high vegetation."""


@dataclass(frozen=True)
class Thing:
    """A thing of a scan; all lengths are in meters, but for what is on the map.

    Attributes:
        number: Its number among the points, from 1 on.
        label: Name of its class, `TREE` or `ROOF`.
        code: Code of its class in the file.
        x: Map coordinate of its top, in the unit of the file; of its centroid for a block of buildings.
        y: The same to the north.
        ground: Elevation of the ground below: below the top of a tree, and on average below the points of a block.
        height: Height of its highest point above the ground.
        area: Square meters of its crown or roof from above, without courtyards.
        points: How many points it has.
        score: Mean of its points' scores, 0 to 1; NaN where they have none.
        outline: Rings of its largest piece on the map, the outer one first; see `hf_any3d_survey.inventory.outlines`.
            Empty where other things cover it.
        ground_guessed: Whether no point of ground is near, so that `ground` and `height` are guessed.
    """

    number: int
    label: str
    code: int
    x: float
    y: float
    ground: float
    height: float
    area: float
    points: int
    score: float
    outline: tuple[np.ndarray, ...] = ()
    ground_guessed: bool = False

    @property
    def crown_diameter(self) -> float:
        """Diameter in meters of the disk that is as large as the crown, as of ForestTools; NaN for buildings."""
        return 2 * sqrt(self.area / pi) if self.label == TREE else nan


def trees_of(points: np.ndarray, heights: np.ndarray, numbers: np.ndarray, scores: np.ndarray) -> list[Thing]:
    """Collect trees in the order of their numbers, without areas and outlines.

    Args:
        points: (points, 3) on the map in meters, z up.
        heights: (points,) meters above the ground.
        numbers: (points,) number of each point's tree, 0 for none.
        scores: (points,) scores of the points.
    """
    # One tree after the other, and the first point of the highest of each first
    order = np.lexsort((-heights, numbers))
    order = order[np.searchsorted(numbers[order], 1) :]
    of_point = numbers[order]
    starts = np.flatnonzero(np.append(True, of_point[1:] != of_point[:-1])[: len(order)])
    counts = np.diff(np.append(starts, len(order)))
    sums = np.add.reduceat(scores[order].astype(np.float64), starts) if len(order) else np.zeros(0)
    found = []
    for at, top in enumerate(order[starts].tolist()):
        x, y, z = points[top].tolist()
        height = float(heights[top])
        found.append(
            Thing(
                number=int(numbers[top]),
                label=TREE,
                code=HIGH,
                x=x,
                y=y,
                ground=z - height,
                height=height,
                area=nan,
                points=int(counts[at]),
                score=float(sums[at] / counts[at]),
            )
        )
    return found
