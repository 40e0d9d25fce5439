"""`PointCloudData`, the clouds and meshes that all readers return, and operations on their faces."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from hf_any3d.data.files.source import PointCloudError

# float32 has 24 bits. If coordinates are this many times larger than the extent of the cloud (map projections, in
# meters from the equator), too few bits are left for the shape, so a float64 offset is split off.
_OFFSET_RATIO = 1000.0
# What has a shape; the processor takes no fewer points.
LEAST_POINTS = 3
# Numbers of points with invalid coordinates that were left out; None while such points are errors.
_LEFT_OUT: ContextVar[list[tuple[int, int]] | None] = ContextVar("left_out", default=None)


@contextmanager
def leave_out_invalid_points() -> Iterator[list[tuple[int, int]]]:
    """Leave points with NaN or infinite coordinates out of clouds that are built inside, with the faces on them.

    Yields:
        A list that receives, for each such cloud, the number of points left out and of all points.
    """
    left_out: list[tuple[int, int]] = []
    token = _LEFT_OUT.set(left_out)
    try:
        yield left_out
    finally:
        _LEFT_OUT.reset(token)


@dataclass
class PointCloudData:
    """A point cloud, or a mesh when `faces` is given.

    Attributes:
        points: (points, 3) float32, in the units of the file; the vertices of a mesh.
        colors: (points, 3) float32 in [0, 1], or None.
        normals: (points, 3) float32, or None.
        labels: (points,) int64, one class per point, or None.
        faces: (faces, 3) int64 indices into `points`, or None.
        face_colors: (faces, 3) float32 in [0, 1], or None.
        offset: (3,) float64 to be added to `points` to get the coordinates of the file, or None. Readers set it only
            for clouds so far from the origin that float32 would distort their shape.
        up_axis: "x", "y" or "z" where the format of the file says which axis points up, else None.
        intensity: (points,) float32, how strongly each point reflects a laser, in the units of the sensor, or None.
        ring: (points,) float32, the number of the laser that measured each point, counted by the sensor, or None.
        meters_per_unit: Length of a unit of the coordinates in meters where the format of the file says it, else None.

    Raises:
        PointCloudError: a wrong shape, no points, a NaN or infinite coordinate, a color outside [0, 1] or a face that
            refers to a point that does not exist.
    """

    points: np.ndarray
    colors: np.ndarray | None = None
    normals: np.ndarray | None = None
    labels: np.ndarray | None = None
    faces: np.ndarray | None = None
    face_colors: np.ndarray | None = None
    offset: np.ndarray | None = None
    up_axis: str | None = None
    intensity: np.ndarray | None = None
    ring: np.ndarray | None = None
    meters_per_unit: float | None = None

    def __post_init__(self):
        if (left_out := _LEFT_OUT.get()) is not None:
            self._leave_out_invalid(left_out)
        self.points, shift = _coordinates(self.points)
        if shift is not None:
            self.offset = shift if self.offset is None else np.asarray(self.offset, np.float64) + shift
        if self.offset is not None:
            self.offset = _rows("offset", np.reshape(self.offset, (1, -1)), 1, np.float64)[0]
        count = len(self.points)
        if self.colors is not None:
            self.colors = _unit_range("colors", _rows("colors", self.colors, count))
        if self.normals is not None:
            self.normals = _rows("normals", self.normals, count)
        if self.labels is not None:
            self.labels = _labels(self.labels, count)
        if self.intensity is not None:
            self.intensity = _numbers("intensity", self.intensity, count)
        if self.ring is not None:
            self.ring = _numbers("ring", self.ring, count)
        if self.faces is not None:
            self.faces = _faces(self.faces, count)
        if self.face_colors is not None:
            faces = 0 if self.faces is None else len(self.faces)
            self.face_colors = _unit_range("face_colors", _rows("face_colors", self.face_colors, faces))

    def __len__(self) -> int:
        return len(self.points)

    @property
    def is_mesh(self) -> bool:
        """True if the points are the vertices of at least one triangle."""
        return self.faces is not None and len(self.faces) > 0

    def check_usable(self) -> None:
        """Check that there are enough points for a model.

        Raises:
            PointCloudError: Fewer than 3, and no faces to draw others on.
        """
        if len(self) < LEAST_POINTS and not self.is_mesh:
            raise PointCloudError(f"{len(self)} point{'s' * (len(self) != 1)}; expected at least {LEAST_POINTS}")

    def _leave_out_invalid(self, left_out: list[tuple[int, int]]) -> None:
        points = np.asarray(self.points)
        if points.ndim != 2 or not len(points) or points.dtype.kind != "f":
            return
        with np.errstate(over="ignore", invalid="ignore"):
            # What is too large for float32 becomes infinite, and is left out too.
            valid = np.asarray(np.isfinite(points.astype(np.float32, copy=False)).all(axis=1))  # (points,)
        if valid.all():
            return
        if not valid.any():
            raise PointCloudError(f"all {len(points)} points have NaN or infinite coordinates; expected finite ones")
        for name in ("points", "colors", "normals", "labels", "intensity", "ring"):
            values = getattr(self, name)
            # A field of another length stays, and is reported as an error afterwards.
            if values is not None and len(values) == len(points):
                setattr(self, name, np.asarray(values)[valid])
        if self.faces is not None and len(self.faces):
            # Checked here, as their numbers index `valid`.
            faces = _faces(self.faces, len(points))
            kept = np.asarray(valid[faces].all(axis=1))
            if self.face_colors is not None and len(self.face_colors) == len(faces):
                self.face_colors = np.asarray(self.face_colors)[kept]
            # A kept point's new number is how many kept ones come before it.
            self.faces = (valid.cumsum() - 1)[faces[kept]]
        left_out.append((int((~valid).sum()), len(points)))

    def arrays(self) -> dict[str, np.ndarray | None]:
        """Return its arrays by name, None for missing ones; `up_axis` and `meters_per_unit` are left out."""
        return {name: value for name, value in vars(self).items() if name not in ("up_axis", "meters_per_unit")}

    def sample_surface(self, n: int, generator: np.random.Generator | int = 0) -> "PointCloudData":
        """Draw points evenly from the surface of a mesh.

        Triangles are drawn by area. A sample has the normal of its face, the color of the face if there are face
        colors, else one interpolated between the corners, as intensities are; label and ring are those of the nearest
        corner.

        Args:
            n: number of points to draw, at least 1.
            generator: numpy's random generator, or a seed for one.

        Returns:
            A cloud of `n` points (n, 3) with normals, and with colors and labels where the mesh has them.

        Raises:
            PointCloudError: not a mesh, or a mesh without area.
        """
        if self.faces is None or not len(self.faces):
            raise PointCloudError(f"{len(self)} points without faces; only a mesh has a surface to sample")
        if n < 1:
            raise ValueError(f"n: {n}; expected at least 1 point")
        face, weights, points, normals = draw_on_surface(self.points, self.faces, n, np.random.default_rng(generator))
        corners = self.faces[face]  # (n, 3)
        colors, labels, intensity, ring = None, None, None, None
        if self.face_colors is not None:
            colors = self.face_colors[face]
        elif self.colors is not None:
            colors = np.einsum("nk,nkc->nc", weights, self.colors[corners]).clip(0, 1)
        nearest = corners[np.arange(n), weights.argmax(1)]
        if self.labels is not None:
            labels = self.labels[nearest]
        if self.ring is not None:
            ring = self.ring[nearest]
        if self.intensity is not None:
            intensity = np.einsum("nk,nk->n", weights, self.intensity[corners])
        whole = {"offset": self.offset, "up_axis": self.up_axis, "meters_per_unit": self.meters_per_unit}
        return PointCloudData(points, colors, normals, labels, intensity=intensity, ring=ring, **whole)


def _numbers(name: str, values: ArrayLike, count: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape not in ((count,), (count, 1)) or values.dtype.kind not in "fiub":
        raise PointCloudError(f"{name} has shape {values.shape} and type {values.dtype}; expected ({count},) numbers")
    values = np.ascontiguousarray(values, np.float32).reshape(count)
    if not np.isfinite(values).all():
        raise PointCloudError(f"{name} has NaN or infinite values; expected finite ones")
    return values


def _rows(name: str, values: ArrayLike, count: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (count, 3):
        raise PointCloudError(f"{name} have shape {values.shape}; expected ({count}, 3)")
    if values.dtype.kind not in "fiub":
        raise PointCloudError(f"{name} have type {values.dtype}; expected numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ascontiguousarray(values, dtype)
    if not np.isfinite(values).all():  # many times faster than row by row
        bad = ~np.isfinite(values).all(1)
        raise PointCloudError(
            f"{name} hold NaN, infinite or too large values in {bad.sum()} of {count} rows, first in row "
            f"{bad.argmax()}; expected finite float32 numbers"
        )
    return values


def _coordinates(points: ArrayLike) -> tuple[np.ndarray, np.ndarray | None]:
    points = np.asarray(points)
    if points.ndim == 2 and not len(points):
        raise PointCloudError("there are no points; expected at least 1")
    if points.ndim != 2 or points.shape[1] != 3:
        raise PointCloudError(f"points have shape {points.shape}; expected (points, 3)")
    # float32 and small integers have no digits to lose.
    if points.dtype == np.float64 or points.dtype.kind in "iu" and points.dtype.itemsize > 2:
        low, high = points.min(0).astype(np.float64), points.max(0).astype(np.float64)
        if np.isfinite(low).all() and np.isfinite(high).all():
            extent, largest = (high - low).max(), max(np.abs(low).max(), np.abs(high).max())
            if 0 < extent * _OFFSET_RATIO < largest:
                # A whole number is easy to pass on in other programs, and leaves all coordinates at least 0.
                shift = np.floor(low)
                return _rows("points", points - shift, len(points)), shift
    return _rows("points", points, len(points)), None


def _unit_range(name: str, colors: np.ndarray) -> np.ndarray:
    if colors.size and (colors.min() < 0 or colors.max() > 1):
        raise PointCloudError(f"{name} range from {colors.min():g} to {colors.max():g}; expected 0 to 1")
    return colors


def _labels(labels: ArrayLike, count: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise PointCloudError(f"labels have shape {labels.shape}; expected ({count},)")
    if labels.dtype.kind == "f":
        # Above 2**53, float64 cannot represent all whole numbers.
        if not (np.isfinite(labels).all() and (np.abs(labels) < 2**53).all() and (labels == np.floor(labels)).all()):
            raise PointCloudError("labels have values that are not whole numbers; expected class numbers")
    elif labels.dtype.kind not in "iub":
        raise PointCloudError(f"labels have type {labels.dtype}; expected whole numbers")
    return np.ascontiguousarray(labels, np.int64)


def _faces(faces: ArrayLike, count: int) -> np.ndarray:
    faces = np.asarray(faces)
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise PointCloudError(f"faces have shape {faces.shape}; expected (faces, 3)")
    if faces.dtype.kind not in "iu" and faces.size:
        raise PointCloudError(f"faces have type {faces.dtype}; expected whole numbers")
    if faces.size and (faces.min() < 0 or faces.max() >= count):
        wrong = faces.min() if faces.min() < 0 else faces.max()
        raise PointCloudError(f"a face refers to point {wrong}; allowed are 0 to {count - 1}")
    return np.ascontiguousarray(faces, np.int64)


def draw_on_surface(
    vertices: np.ndarray, faces: np.ndarray, n: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw `n` points on triangles `faces` (faces, 3) of `vertices` (vertices, 3), with probability by area.

    Returns:
        The face of each sample (n,) int64, the weights of its three corners (n, 3), the points (n, 3) and the unit
        normals of their faces (n, 3).

    Raises:
        PointCloudError: no triangle has an area.

    Source: Osada et al., "Shape distributions", Sec. 3.1.
    """
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))  # (faces, 3) each
    # As long as twice the area of the triangle, and perpendicular to it.
    doubled = np.cross(b - a, c - a)
    until = np.linalg.norm(doubled, axis=1).cumsum()
    if not until[-1] > 0:
        raise PointCloudError(f"none of the {len(faces)} triangles has an area; there is no surface to sample")
    # A draw of exactly the total would be after the last triangle; side="right" skips those without area.
    draws = np.minimum(generator.random(n) * until[-1], np.nextafter(until[-1], 0))
    face = until.searchsorted(draws, side="right")
    # The square root makes points even over a triangle; without it they would crowd at the first corner.
    root, share = np.sqrt(generator.random(n)), generator.random(n)
    weights = np.stack([1 - root, root * (1 - share), root * share], axis=1)  # (n, 3)
    points = weights[:, :1] * a[face] + weights[:, 1:2] * b[face] + weights[:, 2:] * c[face]
    normals = doubled[face]
    return face, weights, points, normals / np.linalg.norm(normals, axis=1, keepdims=True)


def fan_triangles(counts: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut polygons into triangles that all start at the polygon's first corner.

    Args:
        counts: (polygons,) number of corners of each polygon; fewer than three give no triangle.
        corners: (sum of counts,) the concatenated corners of all polygons.

    Returns:
        Triangles (triangles, 3) int64 and the polygon each was cut from (triangles,) int64.
    """
    counts = np.asarray(counts)
    corners = np.asarray(corners, np.int64)
    kept = np.flatnonzero(counts > 2)  # millions may have no triangle
    start = counts.cumsum(dtype=np.int64)[kept]
    counts = counts[kept].astype(np.int64)
    start -= counts
    triangles = counts - 2
    of_kept = np.repeat(np.arange(len(kept)), triangles)
    # Column by column to save memory, since one huge polygon gives as many triangles as it has corners.
    faces = np.empty((len(of_kept), 3), np.int64)
    place = start[of_kept]
    faces[:, 0] = corners[place]
    # The n-th triangle of a polygon has its corners 0, n and n + 1; n is the triangle's number minus that of the
    # polygon's first.
    place += np.arange(1, len(of_kept) + 1)
    place -= (triangles.cumsum() - triangles)[of_kept]
    faces[:, 1] = corners[place]
    place += 1
    faces[:, 2] = corners[place]
    return faces, kept[of_kept]


def count_triangles(counts: np.ndarray) -> int:
    """Return the number of triangles of `fan_triangles` for polygons of these numbers of corners."""
    counts = np.asarray(counts)
    counts = counts[counts > 2]
    return int(counts.sum(dtype=np.int64)) - 2 * len(counts)
