"""A tile as its model and its ground describe it, and reasons to doubt that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hf_any3d_survey.inventory.terrain import Terrain
from hf_any3d_survey.local_features.ground_surface import GroundSurface
from hf_any3d_survey.local_features.map_index import PlacedPoints


class Doubt(NamedTuple):
    """A reason to doubt the answer about a tile.

    Attributes:
        name: Name of the condition.
        text: What is seen, what may be wrong, and what helps.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Labeled:
    """A tile as its model labels it, before heights are measured.

    Attributes:
        classes: (points,) codes of ASPRS of its own points.
        scores: (points,) their probabilities.
        is_ground: (points,) which of them the terrain goes through.
        bounds: (2, 3) their lowest and highest coordinates, in meters.
        ground: The ground that the model's features are measured from.
        spacing: Usual distance of neighboring points, seen from above.
        factor: (3,) length of a unit of the file in meters.
        origin: (3,) place of the file's zero in meters.
        conditions: As of `DescribedScan.conditions`.
        unlike: Share of points that are unlike all learned ones.
    """

    classes: np.ndarray
    scores: np.ndarray
    is_ground: np.ndarray
    bounds: np.ndarray
    ground: GroundSurface
    spacing: float
    factor: np.ndarray
    origin: np.ndarray
    conditions: Mapping[str, float]
    unlike: float


@dataclass(frozen=True)
class Near:
    """Points near a tile, and what other tiles say of it.

    Attributes:
        classes: (points,) codes of ASPRS of the points near it.
        scores: (points,) their probabilities.
        ground: (others, 3) points of the ground within `MARGIN`, on the map in meters.
    """

    classes: np.ndarray
    scores: np.ndarray
    ground: np.ndarray


@dataclass(frozen=True)
class Seen:
    """A tile with what lies around it, as model and ground describe it, the tile's own points first.

    Attributes:
        points: (points, 3) on the map, in meters, which are computed where they are read.
        classes: (points,) codes of ASPRS.
        scores: (points,) their probabilities.
        heights: (points,) meters above the ground.
        count: Number of the tile's own points.
        bounds: (2, 3) lowest and highest coordinates of these, in meters.
        ground: The ground that the model's features are measured from.
        terrain: The surface through the points of class 2, above which heights are.
        spacing: Usual distance of neighboring points, seen from above.
        factor: (3,) length of a unit of the file in meters.
        returns: (points,) how many returns the pulse of each point had; None where the file does not say it.
        measured: What doubts are judged by, as of `measure_tile`.
        doubts: Why the answer may be wrong.
    """

    points: PlacedPoints
    classes: np.ndarray
    scores: np.ndarray
    heights: np.ndarray
    count: int
    bounds: np.ndarray
    ground: GroundSurface
    terrain: Terrain
    spacing: float
    factor: np.ndarray
    returns: np.ndarray | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    doubts: Sequence[Doubt] = ()
