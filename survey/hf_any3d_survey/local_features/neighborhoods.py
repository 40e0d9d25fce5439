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

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_any3d_survey.local_features.covariances import eigenvalues, eigenvectors
from hf_any3d_survey.local_features.map_index import Points, blocks, bounds_of_all
from hf_any3d_survey.local_features.sparse_boxes import SparseVoxels, bounds_of

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
_MOST_CELLS = 1 << 24
# Boxes that are described at a time, few enough that they stay in the cache of a processor.
_AT_ONCE = 1 << 14


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
    what is near it. `kept` are the numbers of the features that are wanted, all without it. `rows` are the numbers of
    the points whose features are wanted, all without it; the others are surroundings alone.

    Voxels lie at multiples of their edges, so that a part of a scan with enough around it has the same features.
    """

    def __init__(
        self,
        points: np.ndarray,
        measured: Measured,
        edges: Sequence[float] = EDGES,
        described_by: np.ndarray | None = None,
        kept: Sequence[int] | None = None,
        rows: np.ndarray | None = None,
    ):
        self.points = points
        self._measured = measured
        every = len(feature_names(edges, [""] * measured.heights.shape[1], [*measured.point], [*measured.around]))
        # A copy of all would take as long as most of the features.
        self._kept = None if kept is None or list(kept) == list(range(every)) else kept
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
        # In double precision, from a point nearby: squares of coordinates of maps would have no digits left.
        self._origin = np.floor(points.mean(axis=0))
        # From here on a fine voxel is a point.
        level = _Level.from_means(fine, self._means(fine, seen), edges[0] * _FINE)
        # Lowest and highest x and y of what is described
        bounds = None
        if rows is not None:
            by = rows if described_by is None else described_by[rows]
            bounds = bounds_of(points[by, :2]) - self._origin[:2]
        self._sizes: list[_Size] = []
        # Where each size is made of the one before, fine voxels are not needed again.
        fits = all((larger / edge).is_integer() for edge, larger in itertools.pairwise(edges))
        for edge, larger in zip(edges, [*edges[1:], edges[-1]], strict=True):
            # From small to large, as each size averages shapes of the one before.
            level = level.coarser(edge, self._origin, keeps_fine=not fits)
            # Boxes of a point, and those whose shapes are averaged in the next size
            size = level.described(measured.cut, bounds, margin=2 * larger + edge)
            self._sizes.append(size)
            level.passed_on = size.passed_on

    def _means(self, fine: SparseVoxels, seen: Any) -> np.ndarray:
        """Return means (voxels, 3 + c) of x, y, z from the origin, height and others of the points that are `seen`."""
        values = [self._measured.height, *self._measured.around.values()]
        columns = np.empty((len(fine.of_point), 3 + len(values)))
        for axis in range(3):
            columns[:, axis] = self.points[seen, axis] - self._origin[axis]
        for number, value in enumerate(values, start=3):
            columns[:, number] = value[seen]
        return fine.means(columns)

    def features(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return the features of some of the points, (rows, features) float32, named by `feature_names`."""
        measured = self._measured
        surfaces = measured.heights.shape[1]
        width = surfaces + len(measured.point) + sum(size.table.shape[1] for size in self._sizes)
        fine = self._fine_of_point[rows]
        # One array of all features, in which each size writes its own.
        features = np.empty((len(fine), width), np.float32)
        np.minimum(measured.heights[rows], measured.cut, out=features[:, :surfaces], casting="same_kind")
        start = surfaces
        for values in measured.point.values():
            features[:, start] = values[rows]
            start += 1
        # Places are in meters from the middle of the part, where single precision has tenths of a millimeter.
        x, y, z = ((self.points[rows, axis] - self._origin[axis]).astype(np.float32) for axis in range(3))
        for size in self._sizes:
            end = start + size.table.shape[1]
            size.write(features[:, start:end], x, y, z, size.of_center[fine])
            start = end
        return features if self._kept is None else features[:, self._kept]

    def pieces(self, rows: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield `count` of the rows at a time with their features, so that those of all never lie in memory."""
        for start in range(0, len(rows), count):
            piece = rows[start : start + count]
            yield piece, self.features(piece)


@dataclass
class _Level:
    """Voxels of one size, and what is added up of the fine voxels in each.

    Attributes:
        voxels: The voxels.
        edge: Their edge.
        of_fine: (fine voxels,) number of the voxel that each fine one is in.
        sums: (voxels, c) sums over the fine voxels in each: their number, x, y, z from the origin, the six products
            of two of these, the square of the height, and the height and the other values.
        fine: The fine voxels themselves.
        shapes: (voxels, 3) sums of the shapes of the size below; None of the smallest size.
        passed_on: (voxels, 3) shapes that the next size averages.
    """

    voxels: SparseVoxels
    edge: float
    of_fine: np.ndarray
    sums: np.ndarray
    fine: _Level | None = None
    shapes: np.ndarray | None = None
    passed_on: np.ndarray | None = None

    @classmethod
    def from_means(cls, voxels: SparseVoxels, means: np.ndarray, edge: float) -> _Level:
        """Start with fine voxels, whose `means` (voxels, 3 + c) are x, y, z from the origin, height and others."""
        sums = np.empty((len(means), 8 + means.shape[1]))
        for start in range(0, len(means), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            x, y, z, height = means[part, :4].T
            sums[part, 0] = 1
            sums[part, 1:4] = means[part, :3]
            products = (x * x, x * y, x * z, y * y, y * z, z * z, height * height)
            for number, product in enumerate(products, start=4):
                sums[part, number] = product
            sums[part, 11:] = means[part, 3:]
        return cls(voxels, edge, np.arange(len(voxels)), sums)

    def coarser(self, edge: float, origin: np.ndarray, *, keeps_fine: bool = True) -> _Level:
        """Return the voxels of a larger edge, made of these if they fit into them, else of the fine ones."""
        fine = self.fine or self
        factor = edge / self.edge
        passed_on = self.passed_on
        if factor.is_integer():
            below = self
            voxels = self.voxels.parents(int(factor))
            of_fine = voxels.of_point[self.of_fine]
        else:
            below = fine
            voxels = SparseVoxels(fine.sums[:, 1:4] + origin, edge)
            of_fine = voxels.of_point
            passed_on = None if passed_on is None else passed_on[self.of_fine]
        shapes = None if passed_on is None else voxels.sums(passed_on * below.sums[:, :1])
        return _Level(voxels, edge, of_fine, voxels.sums(below.sums), fine if keeps_fine else None, shapes)

    def described(self, cut: float, bounds: np.ndarray | None, margin: float) -> _Size:
        """Describe the boxes around the voxels.

        Args:
            cut: Height at which heights are cut.
            bounds: (2, 2) lowest and highest x and y from the origin; None describes all boxes.
            margin: Distance from there up to which boxes are described.
        """
        sums = self.sums if self.shapes is None else np.concatenate([self.sums, self.shapes], axis=1)
        of_center = self.of_fine
        wanted = np.arange(len(sums))
        if bounds is not None:
            x, y = (sums[:, axis] / sums[:, 0] for axis in (1, 2))
            low, high = bounds[0] - margin, bounds[1] + margin
            is_wanted = (x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])
            wanted = np.flatnonzero(is_wanted)
            of_center = (np.cumsum(is_wanted) - 1)[self.of_fine]
        around = self.voxels.columns(self.sums[:, 3] / self.sums[:, 0])
        others = sums.shape[1] - 12
        table = np.empty((len(wanted), len(_SHAPE) + 5 + others + 4), np.float32)
        normals = np.empty((len(wanted), 3), np.float32)
        # Shapes of boxes that are not described are averaged in none that is.
        passed_on = np.zeros((len(sums), len(_PASSED_ON)))
        for start in range(0, len(wanted), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            boxes = wanted[part]
            columns, normals[part] = self._columns(sums, boxes, [values[boxes] for values in around], cut)
            for number, column in enumerate(columns):
                table[part, number] = column
            for number, name in enumerate(_PASSED_ON):
                passed_on[boxes, number] = columns[_SHAPE.index(name)]
        return _Size(of_center, table, passed_on, normals, cut)

    def _columns(
        self, sums: np.ndarray, boxes: np.ndarray, around: Sequence[np.ndarray], cut: float
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the columns (boxes,) of the table of `_Size`, and the normals (boxes, 3), of boxes by their numbers.

        Args:
            sums: (voxels, c) what is added up over boxes.
            boxes: Their numbers.
            around: What `SparseVoxels.columns` returns of them.
            cut: Height at which heights are cut.
        """
        # (c, boxes), so that what is computed of a column finds it whole in memory
        in_box = np.ascontiguousarray(self.voxels.box_sums(sums, boxes).T)
        count = in_box[0]
        means = in_box[1:] / count
        x, y, z, xx, xy, xz, yy, yz, zz, squared, height, *others = means
        # The six different entries of a symmetric matrix
        covariances = np.stack([xx - x * x, xy - x * y, xz - x * z, yy - y * y, yz - y * z, zz - z * z])
        shape, normals = _shape(covariances.T)
        # Rounding may leave a variance a little below 0.
        deviation = np.sqrt((squared - height * height).clip(min=0))
        above, below, lowest, highest = around
        columns = [
            *shape,
            np.log(count),
            height.clip(max=cut),
            deviation.clip(max=cut),
            np.log1p(above),
            np.log1p(below),
            *others,
            # What is needed of the box for the four features of a point's place in it
            z,
            normals[0] * x + normals[1] * y + normals[2] * z,
            lowest,
            highest,
        ]
        return columns, normals.T


@dataclass(frozen=True)
class _Size:
    """Boxes of one size.

    Attributes:
        of_center: (fine voxels,) number of the box around each, among those that are described.
        table: (boxes, c) features of the boxes, and in place of the last four what these are computed of: the height
            of the mean point and how far it is along the normal, from the origin, and the lowest and highest height.
        passed_on: (voxels, 3) shapes that are averaged over the boxes of the next size; 0 where none is described.
        normals: (boxes, 3) direction in which the points of the box vary least.
        cut: Height at which heights are cut.
    """

    of_center: np.ndarray
    table: np.ndarray
    passed_on: np.ndarray
    normals: np.ndarray
    cut: float

    def write(self, out: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, boxes: np.ndarray) -> None:
        """Write the features (points, c) of points at x, y and z, from the origin, in `boxes` (points,) into `out`."""
        found = self.table.take(boxes, axis=0)
        along = self.normals.take(boxes, axis=0)
        found[:, -4] = z - found[:, -4]
        found[:, -3] = x * along[:, 0] + y * along[:, 1] + z * along[:, 2] - found[:, -3]
        found[:, -2] = z - found[:, -2]
        found[:, -1] -= z
        np.clip(found[:, -4:], -self.cut, self.cut, out=found[:, -4:])
        out[:] = found


def _shape(covariances: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return the eight numbers (boxes,) of the shape of covariances (boxes, 6), and normals (3, boxes), upwards."""
    large, middle, small = eigenvalues(covariances).clip(min=_LEAST_VARIANCE).T
    normals = eigenvectors(covariances, small).T
    # An eigenvector has no sign of its own.
    normals = normals * np.where(normals[2] < 0, -1, 1)
    axes = eigenvectors(covariances, large).T
    shape = (
        (large - middle) / large,
        (middle - small) / large,
        small / large,
        small / (large + middle + small),
        normals[2],
        np.abs(axes[2]),
        # Half the logarithm of a variance is that of a length.
        np.log(large) / 2,
        np.log(small) / 2,
    )
    return shape, normals


def describe_returns(number: np.ndarray, count: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return features of points from their return numbers and counts (points,), and those to average over boxes."""
    point = {"return": number, "returns": count, "place among returns": number / np.maximum(count, 1)}
    several = ((count > 1).astype(np.float32), (number < count).astype(np.float32))
    return point, dict(zip(_RETURNS, several, strict=True))


def spacing_of(points: Points, cell: float = 2.0) -> float:
    """Return the usual distance of neighboring points, seen from above, by the area of the cells that have points."""
    low, high = np.floor(bounds_of_all(points)[:, :2] / cell).astype(np.int64)
    width = high[1] - low[1] + 1
    area = int(high[0] - low[0] + 1) * int(width)
    is_filled = np.zeros(area if area <= _MOST_CELLS else 0, bool)
    found = [np.zeros(0, np.int64)]
    for rows in blocks(len(points)):
        cells = np.floor(points[rows][:, :2] / cell).astype(np.int64)
        # Two coordinates as one number: np.unique of rows is slower.
        numbers = (cells[:, 0] - low[0]) * width + (cells[:, 1] - low[1])
        if len(is_filled):
            is_filled[numbers] = True
        else:
            found.append(np.unique(numbers))
    filled = np.count_nonzero(is_filled) or len(np.unique(np.concatenate(found)))
    return float(np.sqrt(filled * cell * cell / len(points)))
