"""`PointCloudData`, the clouds and meshes that all readers return, and operations on their faces."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import InitVar, dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from hf_any3d.data.files.no_data import without_height
from hf_any3d.data.files.source import NoPointsError, PointCloudError
from hf_any3d.data.files.text_numbers import integers

# An offset is split off coordinates that are this many times larger than the extent of the cloud, even if float32
# holds all of them: what is computed of them has too few bits left for the shape.
_OFFSET_RATIO = 1000.0
# Steps of coordinates are looked for in this many points, up to nine decimals.
_STEP_POINTS, _MOST_DECIMALS = 4096, 9
# LAS has 32 bits for a coordinate. Digits beyond are of a computation, not of a measurement.
_FINEST_STEP = 2.0**-32
# Of coordinates without a step: share of the extent, and distance, that a point may be moved by.
MOST_MOVED, _FARTHEST_MOVED = 5e-7, 5e-4
# Rows that are worked on at once, so that what is computed of them stays in the cache of the processor and takes no
# memory of the size of the cloud.
_BLOCK_ROWS = 1 << 14
# Points whose coordinates are compared side by side, since numpy reduces rows of three numbers many times slower.
_SIDE_BY_SIDE = 256
# What has a shape; the processor takes no fewer points.
LEAST_POINTS = 3
# Fields with one number of each point, as the sensor measured it.
MEASURED = ("intensity", "ring", "return_number", "number_of_returns")
FIELDS = ("colors", "normals", "labels", "faces", "face_colors", "face_labels", *MEASURED)
"""Fields of a cloud that readers may be asked for, beside its points."""
OF_FILE = (
    "up_axis",
    "meters_per_unit",
    "meters_per_height",
    "in_degrees",
    "ground_scale",
    "no_map",
    "label_codes",
    "label_names",
)
"""Fields that are one for a file, and not for each point."""
# Fields that are no arrays.
_OF_FILES = (*OF_FILE, "further", "scanner")
# Which points were kept, where some were left out for their coordinates; None while such points are errors.
_LEFT_OUT: ContextVar[list[np.ndarray] | None] = ContextVar("left_out", default=None)
# A height that stands for none, and which points were kept, where such points are left out.
_NO_HEIGHT: ContextVar[tuple[float, list[np.ndarray]] | None] = ContextVar("no_height", default=None)
_WHEN_BUILT: list[Callable[[], None]] = []


def when_built(call: Callable[[], None]) -> None:
    """Call a function before the next cloud is built, which may never happen."""
    _WHEN_BUILT.append(call)


@contextmanager
def leave_out_invalid_points() -> Iterator[list[np.ndarray]]:
    """Leave points with NaN or infinite coordinates out of clouds that are built inside, with the faces on them.

    Yields:
        A list that receives, for each such cloud, which of its points were kept, (points,) bool.
    """
    left_out: list[np.ndarray] = []
    token = _LEFT_OUT.set(left_out)
    try:
        yield left_out
    finally:
        _LEFT_OUT.reset(token)


@contextmanager
def leave_out_height(value: float) -> Iterator[list[np.ndarray]]:
    """Leave points of a height that stands for none out of clouds that are built inside; see `no_data`.

    Yields:
        A list that receives, for each such cloud, which of its points were kept, (points,) bool.
    """
    kept: list[np.ndarray] = []
    token = _NO_HEIGHT.set((value, kept))
    try:
        yield kept
    finally:
        _NO_HEIGHT.reset(token)


def leaves_out_invalid_points() -> bool:
    """Return whether points with invalid coordinates are left out, and are no errors."""
    return _LEFT_OUT.get() is not None


@dataclass
class PointCloudData:
    """A point cloud, or a mesh when `faces` is given; all but `points` may be None.

    Attributes:
        points: (points, 3) float32, in the units of the file; the vertices of a mesh. They are float64 if the extent
            is so large that float32 would move points by more than half a step of the file, such as a millimeter in
            100 kilometers.
        colors: (points, 3) float32 in [0, 1], red, green and blue in sRGB.
        normals: (points, 3) float32.
        labels: (points,) int64, one class per point.
        faces: (faces, 3) int64 indices into `points`.
        face_colors: (faces, 3) float32 in [0, 1].
        offset: (3,) float64 to be added to `points` to get the coordinates of the file. It is split off where float32
            would move a point by more than half a step of the coordinates: the `step`, or the last of their decimals;
            without these, by more than half a millionth of the extent or half a thousandth.
        up_axis: "x", "y" or "z" where the format of the file says which axis points up.
        intensity: (points,) float32, how strongly each point reflects a laser, in the units of the sensor.
        ring: (points,) float32, the number of the laser that measured each point, counted by the sensor.
        return_number: (points,) float32, which of the returns of its pulse each point is, counted from 1.
        number_of_returns: (points,) float32, how many returns that pulse had.
        face_labels: (faces,) int64, one class per face.
        meters_per_unit: length of a unit of the coordinates in meters where the format of the file says it.
        meters_per_height: the same of heights, where the file says another one for them, such as feet above meters;
            below 0 where they are depths, which grow downward.
        label_codes: what labels are where the format says it: "asprs" for the codes of LAS in point formats 6 to 10,
            "asprs_legacy" for those in formats 0 to 5, of which some mean something else.
        further: (points,) columns by their names, such as the flags "withheld" and "synthetic" of LAS.
        in_degrees: True where the file says that x and y are longitude and latitude.
        label_names: names of the classes 0, 1, … of `labels` in alphabetical order, where the file has words for them.
        scanner: (3,) float64, where all points were measured from, in the coordinates of `points`, or (points, 3)
            float32 if scans from several places are joined; where the format of the file says it.
        ground_scale: length on the ground of what is a meter long on the map of the file at this place, where that is
            another length by more than a percent: 0.62 at 52 degrees north in EPSG:3857.
        no_map: why x and y are no lengths on the ground, where the file says so, such as of geocentric coordinates.

    Args:
        step: distance between neighboring numbers of the file's coordinates, such as the scale of LAS; one number or
            one for each axis. By default it follows from the decimals of coordinates in float64.

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
    meters_per_height: float | None = None
    return_number: np.ndarray | None = None
    number_of_returns: np.ndarray | None = None
    face_labels: np.ndarray | None = None
    label_codes: str | None = None
    further: Mapping[str, np.ndarray] | None = None
    in_degrees: bool | None = None
    label_names: tuple[str, ...] | None = None
    scanner: np.ndarray | None = None
    ground_scale: float | None = None
    no_map: str | None = None
    step: InitVar[ArrayLike | None] = None

    def __post_init__(self, step: ArrayLike | None):
        while _WHEN_BUILT:
            _WHEN_BUILT.pop()()
        self._leave_out_points()
        if self.offset is not None:
            self.offset = _finite("offset", self.offset, (3,), np.float64)
        self.points, shift = _coordinates(self.points, step, self.offset)
        if shift is not None:
            self.offset = shift if self.offset is None else self.offset + shift
            if self.scanner is not None:
                self.scanner = np.asarray(self.scanner) - shift.astype(self.scanner.dtype)
        count = len(self.points)
        if self.colors is not None:
            self.colors = _colors("colors", self.colors, count)
        if self.normals is not None:
            self.normals = _finite("normals", self.normals, (count, 3))
        if self.labels is not None:
            self.labels = _labels("labels", self.labels, count)
        for name in MEASURED:
            values = getattr(self, name)
            if values is not None:
                setattr(self, name, _finite(name, np.reshape(values, -1), (count,)))
        if self.further is not None:
            self.further = {name: _numbers(name, values, (count,)) for name, values in self.further.items()}
        if self.faces is not None:
            self.faces = _faces(self.faces, len(self.points))
        for name, checked in (("face_colors", _colors), ("face_labels", _labels)):
            values = getattr(self, name)
            if values is not None:
                values = checked(name, values, self._face_count)
            # A file may hold a table of no faces, and none of the faces themselves.
            setattr(self, name, values if self.faces is not None else None)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def _face_count(self) -> int:
        return 0 if self.faces is None else len(self.faces)

    @property
    def meters_per_axis(self) -> np.ndarray | None:
        """Lengths of a unit along x, y and z on the ground in meters, (3,); None if the file does not state them."""
        if self.meters_per_unit is None:
            return None
        flat = self.meters_per_unit * (self.ground_scale or 1.0)
        return np.array([flat, flat, abs(self.meters_per_height or self.meters_per_unit)])

    @property
    def is_mesh(self) -> bool:
        """True if the points are the vertices of at least one triangle."""
        return self.faces is not None and len(self.faces) > 0

    def check_usable(self, least: int = LEAST_POINTS) -> None:
        """Check that there are enough points for a model, or faces to draw them on.

        Raises:
            PointCloudError: There are fewer points than `least`; names their number.
        """
        if len(self) < least and not self.is_mesh:
            raise PointCloudError(f"{len(self)} point{'s' * (len(self) != 1)}; expected at least {least}")

    def _leave_out_points(self) -> None:
        """Leave out the points that a reader is asked to leave out, before any array is checked."""
        no_height = _NO_HEIGHT.get()
        if no_height is not None:
            value, kept = no_height
            heights = np.asarray(self.points)[:, 2] + (0 if self.offset is None else self.offset[2])
            kept.append(~without_height(heights, value))
            self._keep(kept[-1])
        left_out = _LEFT_OUT.get()
        if left_out is not None:
            self._leave_out_invalid(left_out)

    def _leave_out_invalid(self, left_out: list[np.ndarray]) -> None:
        points = np.asarray(self.points)
        if points.ndim != 2 or not len(points) or points.dtype.kind != "f":
            return
        with np.errstate(over="ignore", invalid="ignore"):
            # What is too large for float32 becomes infinite, and is left out too.
            if is_finite(points):
                return
            valid = np.asarray(np.isfinite(points.astype(np.float32, copy=False)).all(axis=1))  # (points,)
        if not valid.any():
            raise PointCloudError(f"none of {len(points):,} points has finite coordinates")
        self._keep(valid)
        left_out.append(valid)

    def _keep(self, valid: np.ndarray) -> None:
        """Keep the points (points,) that are valid, with the faces between them."""
        points = np.asarray(self.points)
        for name in ("points", "colors", "normals", "labels", *MEASURED):
            values = getattr(self, name)
            # A field of another length stays, and is reported as an error afterwards.
            if values is not None and len(values) == len(points):
                setattr(self, name, np.asarray(values)[valid])
        if self.further is not None:
            self.further = {name: values[valid] for name, values in self.further.items()}
        if self.scanner is not None and self.scanner.ndim == 2:
            self.scanner = self.scanner[valid]
        if self.faces is not None and len(self.faces):
            # Checked here, as their numbers index `valid`.
            faces = _faces(self.faces, len(points))
            kept = np.asarray(valid[faces].all(axis=1))
            for name in ("face_colors", "face_labels"):
                values = getattr(self, name)
                if values is not None and len(values) == len(faces):
                    setattr(self, name, np.asarray(values)[kept])
            # A kept point's new number is how many kept ones come before it.
            self.faces = (valid.cumsum() - 1)[faces[kept]]

    def arrays(self) -> dict[str, np.ndarray | None]:
        """Return its arrays by name, None for missing ones; `further` columns and what is no array are left out."""
        return {name: value for name, value in vars(self).items() if name not in _OF_FILES}

    def sample_surface(self, n: int, generator: np.random.Generator | int = 0) -> "PointCloudData":
        """Draw points evenly from the surface of a mesh.

        Triangles are drawn by area. A sample has the normal of its face, and the color and the label of the face if
        faces have them; else its color is interpolated between the corners, as intensities are, and its label that of
        the nearest corner, as ring and returns are.

        Args:
            n: number of points to draw, at least 1.
            generator: numpy's random generator, or a seed for one.

        Raises:
            PointCloudError: No triangle has an area.

        Source: Osada et al., "Shape distributions", Sec. 3.1.
        """
        generator = np.random.default_rng(generator)
        faces = np.zeros((0, 3), np.int64) if self.faces is None else self.faces
        a, b, c = (self.points[faces[:, i]].astype(np.float64) for i in range(3))  # (faces, 3) each
        # As long as twice the area of the triangle, and perpendicular to it.
        doubled = np.cross(b - a, c - a)
        until = np.linalg.norm(doubled, axis=1).cumsum()
        if not until[-1:].any():
            raise PointCloudError(f"all {len(faces)} triangles have zero area, so there is no surface to sample")
        # A draw of exactly the total would be after the last triangle; side="right" skips those without area.
        draws = np.minimum(generator.random(n) * until[-1], np.nextafter(until[-1], 0))
        face = until.searchsorted(draws, side="right")  # (n,)
        # The square root makes points even over a triangle; without it they would crowd at the first corner.
        root = np.sqrt(generator.random(n))
        share = generator.random(n)
        weights = np.stack([1 - root, root * (1 - share), root * share], axis=1)  # (n, 3)
        points = weights[:, :1] * a[face] + weights[:, 1:2] * b[face] + weights[:, 2:] * c[face]
        normals = doubled[face] / np.linalg.norm(doubled[face], axis=1, keepdims=True)
        corners = faces[face]  # (n, 3)
        nearest = corners[np.arange(n), weights.argmax(1)]
        colors = None if self.face_colors is None else self.face_colors[face]
        if colors is None and self.colors is not None:
            colors = np.einsum("nk,nkc->nc", weights, self.colors[corners]).clip(0, 1)
        labels = None if self.face_labels is None else self.face_labels[face]
        if labels is None and self.labels is not None:
            labels = self.labels[nearest]
        return PointCloudData(
            points.astype(self.points.dtype),  # as precise as the vertices, from which an offset was split off
            colors,
            normals,
            labels,
            offset=self.offset,
            up_axis=self.up_axis,
            intensity=None if self.intensity is None else np.einsum("nk,nk->n", weights, self.intensity[corners]),
            ring=None if self.ring is None else self.ring[nearest],
            meters_per_unit=self.meters_per_unit,
            meters_per_height=self.meters_per_height,
            in_degrees=self.in_degrees,
            ground_scale=self.ground_scale,
            no_map=self.no_map,
            return_number=None if self.return_number is None else self.return_number[nearest],
            number_of_returns=None if self.number_of_returns is None else self.number_of_returns[nearest],
            label_codes=self.label_codes,
            further=None if self.further is None else {name: own[nearest] for name, own in self.further.items()},
            label_names=self.label_names,
        )


def _numbers(name: str, values: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != shape or values.dtype.kind not in "fiub":
        raise PointCloudError(f"{name} has shape {values.shape} and type {values.dtype}; expected {shape} numbers")
    return values


def row_blocks(count: int) -> Iterator[slice]:
    """Yield slices of some ten thousand rows that together are so many."""
    for first in range(0, count, _BLOCK_ROWS):
        yield slice(first, first + _BLOCK_ROWS)


def is_finite(values: np.ndarray, dtype: DTypeLike = np.float32) -> bool:
    """Return whether all numbers are finite in a type of floats, block by block."""
    if values.dtype.kind != "f":
        return True  # no whole number is as large
    return all(bool(np.isfinite(values[rows].astype(dtype, copy=False)).all()) for rows in row_blocks(len(values)))


def _finite(name: str, values: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    given = _numbers(name, values, shape)
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ascontiguousarray(given, dtype)
    # Whole numbers are finite; the rest is looked at in blocks, many times faster than row by row.
    if given.dtype.kind == "f" and not is_finite(values, dtype):
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        rows = f"{bad.sum()} of {len(values)} rows, first in row {bad.argmax()}"
        raise PointCloudError(f"{name} has NaN, infinite or too large values in {rows}")
    return values


def _coordinates(
    points: ArrayLike, step: ArrayLike | None, offset: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return coordinates as float32, and the offset that was split off so that no point moves too far, or None."""
    points = np.asarray(points)
    if points.ndim == 2 and not len(points):
        raise NoPointsError()
    if points.ndim != 2 or points.shape[1] != 3:
        raise PointCloudError(f"points has shape {points.shape}; expected (points, 3), at least 1 point")
    # Small integers lose no digits in float32. By size, as float64 of another byte order is not `np.float64`.
    most_bytes = {"f": 4, "i": 2, "u": 2}
    if points.dtype.itemsize <= most_bytes.get(points.dtype.kind, points.dtype.itemsize):
        return _finite("points", points, points.shape), None
    low, high = (ends.astype(np.float64) for ends in _bounds(points))  # (3,) each
    if not _may_lose_digits(low, high):
        return _finite("points", points, points.shape), None
    if step is None:
        sample = points[:: max(1, len(points) // _STEP_POINTS)]
        # Decimals are those of the file's coordinates, of which an offset may have been split off before.
        steps = _decimal_steps(sample if offset is None else sample + offset)  # (sample, 3)
        if not _is_far(low, high):
            # Numbers of seven significant digits have the more decimals the smaller they are, and float32 holds them
            # all: it moves none by more than half of its own decimal step.
            without_step = _allowed_moves(low, high, np.full(3, np.nan))
            allowed = np.where(np.isnan(steps), without_step, steps / 2)  # (sample, 3)
            if (np.abs(sample - sample.astype(np.float32)) <= allowed).all():
                return _finite("points", points, points.shape), None
        step = steps.min(0)  # NaN if a number has no decimals

    def block_of(rows: slice, shift: np.ndarray | None) -> np.ndarray:
        return points[rows] if shift is None else points[rows] - shift[: len(points[rows])]

    dtype, shift = _precision(block_of, len(points), low, high, np.asarray(step))
    if shift is None:
        return _finite("points", points, points.shape, dtype), None
    moved = np.empty(points.shape, dtype)
    shifts = _side_by_side(shift, len(points))
    for rows in row_blocks(len(points)):
        moved[rows] = block_of(rows, shifts)
    return _finite("points", moved, points.shape, dtype), shift


def points_of_integers(
    integers: np.ndarray, scale: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn stored integers into coordinates, times scale plus offset, where they are: no second array is made.

    Args:
        integers: (points, 3) int32, at least one point. Afterwards it holds the bits of the result.
        scale: (3,) float64.
        offset: (3,) float64.

    Returns:
        `points` and `offset` of the `PointCloudData` that these coordinates make with `step` |scale|. Points that
        float32 does not hold are float64, without an offset, and in an array of their own.
    """
    scales = _side_by_side(scale, len(integers))
    offsets = _side_by_side(offset, len(integers))

    def block_of(rows: slice, shift: np.ndarray | None) -> np.ndarray:
        block = integers[rows].astype(np.float64)
        block *= scales[: len(block)]
        block += offsets[: len(block)]
        if shift is not None:
            block -= shift[: len(block)]
        return block

    with np.errstate(over="ignore", invalid="ignore"):
        # Scaling and rounding keep the order of numbers, or reverse it where a scale is negative.
        ends = np.stack(_bounds(integers)) * scale + offset  # (2, 3)
        low = ends.min(axis=0)
        high = ends.max(axis=0)
        dtype: DTypeLike = np.float64
        shift = None
        if _may_lose_digits(low, high):
            dtype, shift = _precision(block_of, len(integers), low, high, np.abs(scale))
        # What is invalid, as well as what stays float64, is left to `PointCloudData`.
        in_place = dtype == np.float32
        if not in_place:
            shift = None
        points = integers.view(np.float32) if in_place else np.empty(integers.shape)
        shifts = None if shift is None else _side_by_side(shift, len(integers))
        for rows in row_blocks(len(integers)):
            points[rows] = block_of(rows, shifts)
    return points, shift


def _side_by_side(axes: np.ndarray, count: int) -> np.ndarray:
    """Repeat numbers (3,) for each row of the largest block, since numpy computes with rows of three slowly."""
    return np.tile(axes, min(count, _BLOCK_ROWS)).reshape(-1, 3)


def _bounds(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest coordinates (3,), NaN along axes that have it."""
    lows = []
    highs = []
    for rows in row_blocks(len(points)):
        block = points[rows]
        whole = len(block) // _SIDE_BY_SIDE * _SIDE_BY_SIDE
        parts = [block[whole:]]
        if whole:
            table = block[:whole].reshape(-1, 3 * _SIDE_BY_SIDE)
            parts = [table.min(axis=0).reshape(-1, 3), table.max(axis=0).reshape(-1, 3), block[whole:]]
        ends = np.concatenate(parts)
        lows.append(ends.min(axis=0))
        highs.append(ends.max(axis=0))
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _may_lose_digits(low: np.ndarray, high: np.ndarray) -> bool:
    """Return False for invalid coordinates and those beyond float32, which are errors."""
    return bool(np.isfinite(high - low).all() and _farthest(low, high) < np.finfo(np.float32).max)


def _farthest(low: np.ndarray, high: np.ndarray) -> float:
    return max(np.abs(low).max(), np.abs(high).max())


def _is_far(low: np.ndarray, high: np.ndarray) -> bool:
    """Return whether coordinates are so much larger than their extent that an offset is split off anyway.

    Points in one place have no shape whose digits an offset would keep.
    """
    extent = (high - low).max()
    return bool(0 < extent * _OFFSET_RATIO < _farthest(low, high))


def _precision(
    block_of: Callable[[slice, np.ndarray | None], np.ndarray],
    count: int,
    low: np.ndarray,
    high: np.ndarray,
    step: np.ndarray,
) -> tuple[DTypeLike, np.ndarray | None]:
    """Return the type that holds coordinates to half a step, and the offset to be split off first, or None.

    Args:
        block_of: Rows, offset (rows of a block, 3) or None -> their coordinates less the offset, (rows, 3).
        count: Number of points.
        low: Lowest coordinates (3,).
        high: Highest ones (3,).
        step: Distance between neighboring numbers along each axis; see `PointCloudData`.
    """
    allowed = _allowed_moves(low, high, np.broadcast_to(step, 3))
    is_far = _is_far(low, high)
    if not is_far and _is_held(block_of, count, low, high, None, allowed):
        return np.float32, None
    # An axis through the origin gains nothing by an offset.
    is_shifted = (low > 0) | (high < 0) | is_far
    # An offset near the lowest corner is split off along these axes. Coordinates stay float64 where even then float32
    # would move points by more than is allowed.
    shift = np.zeros(3)
    # Whole numbers are easy to pass on in other programs; degrees may need finer ones.
    for corner in (np.floor(low), low):
        # Exact in float32, as rows of datasets have offsets, and not above the corner, so that coordinates are at
        # least 0.
        below = corner.astype(np.float32)
        below = np.where(below > corner, np.nextafter(below, np.float32(-np.inf)), below).astype(np.float64)
        shift = np.where(is_shifted, below, 0)
        if _is_held(block_of, count, low, high, shift, allowed):
            return np.float32, shift
    return np.float64, shift if shift.any() else None


def _allowed_moves(low: np.ndarray, high: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return how far a point may be moved along each axis (3,): half a step where there is one."""
    extents = high - low
    # x and y of maps may be degrees, and z meters.
    spans = np.array([extents[:2].max(), extents[:2].max(), extents.max()])
    without_step = np.minimum(MOST_MOVED * spans, _FARTHEST_MOVED)
    # Where all points are at one place of an axis, nothing but its size tells what is much.
    sizes = np.maximum(np.abs(low), np.abs(high))
    without_step = np.where(spans > 0, without_step, np.minimum(_FINEST_STEP * sizes, _FARTHEST_MOVED))
    has_step = (steps > 0) & (steps >= _FINEST_STEP * spans)
    return np.where(has_step, steps / 2, without_step)


def _decimal_steps(values: np.ndarray) -> np.ndarray:
    """Return the largest power of ten that each value is a multiple of, up to rounding of float64; NaN without one."""
    if values.dtype.kind in "iu":
        return np.ones(values.shape)
    steps = np.full(values.shape, np.nan)
    for decimals in range(_MOST_DECIMALS + 1):
        scaled = values * 10.0**decimals
        rounding = 4 * np.spacing(np.abs(scaled))
        # Any number is close to one with so many decimals.
        is_multiple = (np.abs(scaled - np.rint(scaled)) <= rounding) & (rounding <= 0.05)
        steps[np.isnan(steps) & is_multiple] = 10.0**-decimals
    return steps


def _is_held(
    block_of: Callable[[slice, np.ndarray | None], np.ndarray],
    count: int,
    low: np.ndarray,
    high: np.ndarray,
    shift: np.ndarray | None,
    allowed: np.ndarray,
) -> bool:
    """Return whether float32 moves no point, less a shift, along any axis by more than is allowed."""
    moved = np.zeros(3) if shift is None else shift
    largest = np.maximum(np.abs(low - moved), np.abs(high - moved))
    # Rounding moves no number by more than half the distance of neighbors there, which is widest at the largest.
    if (np.spacing(largest.astype(np.float32)).astype(np.float64) / 2 <= allowed).all():
        return True
    shifts = None if shift is None else _side_by_side(shift, count)
    for rows in row_blocks(count):
        block = block_of(rows, shifts)
        if (np.abs(block - block.astype(np.float32)).max(axis=0) > allowed).any():
            return False
    return True


def _colors(name: str, values: ArrayLike, count: int) -> np.ndarray:
    given = _numbers(name, values, (count, 3))
    with np.errstate(over="ignore", invalid="ignore"):
        colors = np.ascontiguousarray(given, np.float32)
    # NaN is in no range.
    if all(colors[rows].min() >= 0 and colors[rows].max() <= 1 for rows in row_blocks(count)):
        return colors
    colors = _finite(name, colors, (count, 3))
    raise PointCloudError(f"{name} range from {colors.min():g} to {colors.max():g}; expected 0 to 1")


def _labels(name: str, labels: ArrayLike, count: int) -> np.ndarray:
    return np.ascontiguousarray(integers(_numbers(name, labels, (count,)), "a label is"))


def _faces(faces: ArrayLike, count: int) -> np.ndarray:
    faces = np.asarray(faces)
    faces = integers(_numbers("faces", faces, (faces.size // 3, 3)), "a face refers to point")
    check_corners(faces, count)
    return np.ascontiguousarray(faces)


def check_corners(corners: np.ndarray, count: int) -> None:
    """Check that corners of faces are among so many points.

    Raises:
        PointCloudError: One is not.
    """
    if corners.size and (corners.min() < 0 or corners.max() >= count):
        wrong = corners.min() if corners.min() < 0 else corners.max()
        raise PointCloudError(f"a face refers to point {wrong}; allowed are 0 to {count - 1}")
