"""Numbers that describe the surroundings of each point of a scan, at several sizes.

points ─► means of fine voxels ─► for each size: boxes of 3 × 3 × 3 voxels around the voxel of a point
                                    ├─► shape: eigenvalues of the covariance, directions of the axes
                                    ├─► heights above the ground, shares of returns, intensity, color: means
                                    ├─► shapes of the size below: means over the box
                                    └─► the columns through the box: what is above and below it
       ─► of the point itself: height above the ground, return, place in each box

A mean of a fine voxel counts once, however many points it has, so that scans of different densities look alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_any3d.modeling.local_features.covariances import eigenvalues, eigenvectors
from hf_any3d.modeling.local_features.sparse_boxes import SparseVoxels

EDGES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Edges of the voxels, in meters; boxes are three times as wide."""
SURFACES = (
    "height above ground",
    "height above smooth ground",
    "height above wide ground",
    "height above steep ground",
)
_SHAPE = (
    "linearity",
    "planarity",
    "sphericity",
    "change of curvature",
    "horizontality",
    "verticality of the axis",
    "length",
    "thickness",
)
# Shapes whose means over the boxes of the next size are numbers of that size, too.
_PASSED_ON = ("planarity", "change of curvature", "horizontality")
_RETURNS = ("several returns", "early return")
# A centimeter squared, below the noise of scanners: of two points on a line, the rest would be rounding.
_LEAST_VARIANCE = 1e-4
# Heights are cut here, those above the ground and those within a box: what is far above the ground is a tree or a
# roof, and which of them is higher differs from place to place. With few places, a network learns it by heart.
HIGHEST = 3.0
# Fine voxels are half as wide as those of the smallest size.
_FINE = 0.5


@dataclass(frozen=True)
class Measured:
    """Knowledge of each point of a scan besides its place.

    Attributes:
        heights: (points, surfaces) above the ground, or above the lowest point alone.
        point: Numbers (points,) of the point alone, by name.
        around: Numbers (points,) whose means over boxes are features too, by name.
        cut: Height at which heights are cut.
    """

    heights: np.ndarray
    point: Mapping[str, np.ndarray] = field(default_factory=dict)
    around: Mapping[str, np.ndarray] = field(default_factory=dict)
    cut: float = HIGHEST

    @property
    def height(self) -> np.ndarray:
        """Heights (points,); their means over boxes are features."""
        return self.heights[:, min(1, self.heights.shape[1] - 1)]

    def part(self, index: np.ndarray | slice) -> Measured:
        """Return the measurements of some points."""
        point = {name: values[index] for name, values in self.point.items()}
        around = {name: values[index] for name, values in self.around.items()}
        return Measured(self.heights[index], point, around, self.cut)


def feature_names(
    edges: Sequence[float], surfaces: Sequence[str], point: Sequence[str], around: Sequence[str]
) -> list[str]:
    """Return the names of the features of `Neighborhoods`, in order."""
    names = [*surfaces, *point]
    for number, edge in enumerate(edges):
        of_size = [*_SHAPE, "voxels", "mean height", "deviation of heights", "above", "below", *around]
        if number:
            of_size += [f"{name} of parts" for name in _PASSED_ON]
        of_size += ["height in box", "distance from plane", "from lowest", "to highest"]
        names += [f"{name}, {3 * edge:g}" for name in of_size]
    return names


class Neighborhoods:
    """The surroundings of the points (points, 3) of a scan, z up, at sizes `edges`, and their features.

    With `described_by` (points,), the numbers of points, each point has the boxes of that one, and only points with
    their own are surroundings: so faces and vertices of a mesh are described by samples of its surface, and noise by
    what is near it. `kept` are the numbers of the features that are wanted, all without it.

    Voxels lie at multiples of their edges, so that a part of a scan with enough around it has the same features.
    """

    def __init__(
        self,
        points: np.ndarray,
        measured: Measured,
        edges: Sequence[float] = EDGES,
        described_by: np.ndarray | None = None,
        kept: Sequence[int] | None = None,
    ):
        # In double precision, from a point nearby: squares of coordinates of maps would have no digits left.
        self.points = points
        self._measured = measured
        self._kept = kept
        around = list(measured.around.values())
        columns = np.stack([measured.height, *around], axis=1)
        # Only what was measured, or sampled, fills voxels; other points are described by it.
        seen: Any = slice(None)
        if described_by is not None:
            seen = np.flatnonzero(described_by == np.arange(len(points)))
        fine = SparseVoxels(points[seen], edges[0] * _FINE)
        self._fine_of_point = fine.of_point
        if described_by is not None:
            of_seen = np.zeros(len(points), np.int64)
            of_seen[seen] = fine.of_point
            self._fine_of_point = of_seen[described_by]
        # From here on a fine voxel is a point.
        centers = fine.means(points[seen])
        means = fine.means(columns[seen])
        self._origin = np.floor(points.mean(axis=0))
        self._sizes: list[_Size] = []
        shapes: np.ndarray | None = None
        for edge in edges:
            size = _Size.around(centers, means, shapes, edge, self._origin, measured.cut)
            # From small to large, as each size averages shapes of the one before.
            shapes = size.passed_on[size.of_center]
            self._sizes.append(size)

    def features(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return the features of some of the points, (rows, features) float32, named by `feature_names`."""
        measured = self._measured.part(rows)
        columns: list[np.ndarray] = [
            measured.heights.clip(max=measured.cut),
            *(values[:, None] for values in measured.point.values()),
        ]
        points = self.points[rows] - self._origin
        fine = self._fine_of_point[rows]
        for size in self._sizes:
            columns += size.features(points, size.of_center[fine])
        features = np.concatenate(columns, axis=1, dtype=np.float32)
        return features if self._kept is None else features[:, self._kept]

    def pieces(self, rows: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield `count` of the rows at a time with their features, so that those of all never lie in memory."""
        for start in range(0, len(rows), count):
            piece = rows[start : start + count]
            yield piece, self.features(piece)


@dataclass(frozen=True)
class _Size:
    """Boxes of one size.

    Attributes:
        of_center: (fine voxels,) number of the box around each.
        table: (boxes, c) features of the boxes.
        passed_on: (boxes, 3) shapes that are averaged over the boxes of the next size.
        means: (boxes, 3) mean point, from the origin.
        normals: (boxes, 3) direction in which the points of the box vary least.
        lowest, highest: (boxes,) heights of the columns through the box, from the origin.
        cut: Height at which heights are cut.
    """

    of_center: np.ndarray
    table: np.ndarray
    passed_on: np.ndarray
    means: np.ndarray
    normals: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    cut: float

    @classmethod
    def around(
        cls,
        centers: np.ndarray,
        values: np.ndarray,
        shapes: np.ndarray | None,
        edge: float,
        origin: np.ndarray,
        cut: float,
    ) -> _Size:
        """Describe boxes by fine voxels with `centers` (voxels, 3), `values` (voxels, c) and shapes (voxels, 3)."""
        voxels = SparseVoxels(centers, edge)
        near = centers - origin
        x, y, z = near.T
        heights = values[:, 0]
        moments = np.stack([x, y, z, x * x, x * y, x * z, y * y, y * z, z * z, heights * heights], axis=1)
        parts = [moments, values] if shapes is None else [moments, values, shapes]
        # Sums are added over the 27 voxels of a box; means would not be.
        sums = np.concatenate([*map(voxels.sums, parts), voxels.counts[:, None]], axis=1)
        in_box = voxels.box_sums(sums)
        count = in_box[:, -1]
        means = in_box[:, :-1] / count[:, None]
        place = means[:, :3]
        squares = means[:, 3:9]
        # The six different entries of a symmetric matrix: xx, xy, xz, yy, yz, zz.
        covariances = squares - place[:, [0, 0, 0, 1, 1, 2]] * place[:, [0, 1, 2, 1, 2, 2]]
        shape, normals = _shape(covariances)
        values = means[:, 10:]  # mean height, what is averaged, shapes of the size below
        # Rounding may leave a variance a little below 0.
        deviation = np.sqrt((means[:, 9] - values[:, 0] ** 2).clip(min=0))
        above, below, lowest, highest = voxels.columns(sums[:, 2] / voxels.counts)
        columns = [
            shape,
            np.log(count),
            values[:, 0].clip(max=cut),
            deviation.clip(max=cut),
            np.log1p(above),
            np.log1p(below),
            values[:, 1:],
        ]
        table = np.concatenate([column.reshape(len(voxels), -1) for column in columns], axis=1, dtype=np.float32)
        passed_on = shape[:, [_SHAPE.index(name) for name in _PASSED_ON]]
        return cls(voxels.of_point, table, passed_on, place, normals, lowest, highest, cut)

    def features(self, points: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
        """Return features (points, c) of points (points, 3), from the origin, in `boxes` (points,)."""
        away = points - self.means[boxes]
        height = points[:, 2]
        of_place = (
            away[:, 2],
            np.einsum("ij,ij->i", away, self.normals[boxes]),
            height - self.lowest[boxes],
            self.highest[boxes] - height,
        )
        return [self.table[boxes], np.stack(of_place, axis=1).clip(-self.cut, self.cut)]


def _shape(covariances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shape (boxes, 8) of each covariance (boxes, 6), and its normal (boxes, 3), which points up."""
    values = eigenvalues(covariances).clip(min=_LEAST_VARIANCE)
    large, middle, small = values.T
    normals = eigenvectors(covariances, small)
    # An eigenvector has no sign of its own.
    normals *= np.where(normals[:, 2:] < 0, -1, 1)
    axes = eigenvectors(covariances, large)
    shape = (
        (large - middle) / large,
        (middle - small) / large,
        small / large,
        small / (large + middle + small),
        normals[:, 2],
        np.abs(axes[:, 2]),
        # Half the logarithm of a variance is that of a length.
        np.log(large) / 2,
        np.log(small) / 2,
    )
    return np.stack(shape, axis=1), normals


def describe_returns(number: np.ndarray, count: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return features of points from their return numbers and counts (points,), and those to average over boxes."""
    point = {"return": number, "returns": count, "place among returns": number / np.maximum(count, 1)}
    several = ((count > 1).astype(np.float32), (number < count).astype(np.float32))
    return point, dict(zip(_RETURNS, several, strict=True))


def spacing_of(points: np.ndarray, cell: float = 2.0) -> float:
    """Return the usual distance of neighboring points, seen from above, by the area of the cells that have points."""
    cells = np.floor(points[:, :2] / cell).astype(np.int64)
    cells -= cells.min(axis=0)
    # Two coordinates as one number: np.unique of rows is slower.
    filled = len(np.unique(cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1]))
    return float(np.sqrt(filled * cell * cell / len(points)))
