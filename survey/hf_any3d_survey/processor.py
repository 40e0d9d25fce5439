"""LocalFeaturesProcessor: numbers that describe the surroundings of each point of a scan."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.data.files.source import no_column
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.data.frames.far_points import FarPoints, split_far_points
from hf_any3d.data.frames.units import TAKEN_FOR_METERS, check_projected, remark_on_ground
from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.processing.point_clouds import HOW_TO_ESTIMATE, PointCloudProcessor
from hf_any3d.processing.voxels import nearest_rows
from hf_any3d_survey.local_features.ground_surface import GroundSurface
from hf_any3d_survey.local_features.map_index import BLOCK, MapIndex, PlacedPoints, bounds_of_all
from hf_any3d_survey.local_features.neighborhoods import (
    EDGES,
    HIGHEST,
    SURFACES,
    Measured,
    Neighborhoods,
    describe_returns,
    feature_names,
    spacing_of,
)
from hf_any3d_survey.local_features.sparse_boxes import bounds_of

RETURNS = ("return_number", "number_of_returns")
OBJECT_EDGES = (0.25, 0.5, 1.0, 2.0)
"""Edges of the voxels of objects, whose diagonals are `DIAGONAL` long."""
DIAGONAL = 16.0
OBJECT_SURFACES = ("height above the lowest point",)
# Features that change when an object is turned.
_OF_A_DIRECTION = {
    *OBJECT_SURFACES,
    "place in x",
    "place in y",
    "place in z",
    "distance from the middle",
    "normal in x",
    "normal in y",
    "normal in z",
    "horizontality",
    "verticality of the axis",
    "mean height",
    "deviation of heights",
    "above",
    "below",
    "horizontality of parts",
    "height in box",
    "distance from plane",
    "from lowest",
    "to highest",
}
# Points whose normalization is found by.
_LOOKED_AT = 200_000
_SURFACE_POINTS = 50_000
_NEAR_ZERO = 0.25  # meters


class LocalFeaturesProcessor(PointCloudProcessor):
    """Describe the surroundings of each point of a scan, from all of its points.

    The features of a point depend on the scan within some meters of it, and on the ground below. A call returns those
    of `num_points` points at most, drawn at random, which training needs; pipelines describe all.

    Args:
        num_points: points that are returned for a cloud.
        edges: edges of the voxels that surroundings are measured by, the smallest first, each twice the one before;
            boxes of 3 × 3 × 3 voxels are described.
        unit: "meters" describes scans of places; coordinates of a file that says no unit are taken for meters, with a
            warning. "diagonal" describes objects, scaled so that the diagonal of their bounding box is 16 long, and
            adds the place in that box.
        features: "xyz", then what else is read of points: "return_number" and "number_of_returns", "intensity", "rgb",
            "normals". Intensities and colors are seen relative to those of the whole file. A call with a cloud that
            lacks what is read is an error.
        upright: whether objects stand the same way; False leaves out all features that depend on a direction.
        columns: names of further columns of points, such as extra dimensions of LAS or properties of PLY, each seen
            relative to that of the whole file; a point without a value counts as one with the median.
        ground: how the ground of places is found, "uncut" or "windows"; see `GroundSurface.below` and `by_windows`.
        optional: those of the `features` that a cloud may lack, as the model was trained with and without them.
        **kwargs: `seed`, `up_axis` and `min_points` of `PointCloudProcessor`.

    Example:
        ```python
        import numpy as np
        from hf_any3d import LocalFeaturesProcessor

        processor = LocalFeaturesProcessor(num_points=100)
        scan = np.random.default_rng(0).random((1000, 3)) * 20  # or "tile.laz"
        processor(scan)["points"].shape  # (1, 100, 104)
        ```
    """

    optional: Sequence[str] = ()
    _choices = {
        **PointCloudProcessor._choices,
        "unit": ("meters", "diagonal"),
        "ground": ("uncut", "windows"),
    }

    def __init__(
        self,
        num_points: int = 4096,
        edges: Sequence[float] = EDGES,
        unit: str = "meters",
        features: Sequence[str] = ("xyz",),
        up_axis: str = "z",
        upright: bool = True,
        columns: Sequence[str] = (),
        ground: str = "uncut",
        optional: Sequence[str] = (),
        **kwargs: Any,
    ):
        self.edges = [float(edge) for edge in edges]
        self.unit = unit
        self.upright = upright
        self.ground = ground
        super().__init__(num_points=num_points, features=features, up_axis=up_axis, **kwargs)
        check_settings(
            self, {"center": (True,), "scale": ("unit_sphere",), "axes": ("xyz",), "upright": (True, False)}
        )
        # Without any, settings are stored as they were before there were columns and optional features.
        if columns:
            self.columns = list(columns)
        if optional:
            self.optional = list(optional)
        if not {*self.optional} <= {*self.features}:
            raise ValueError(f"optional: {list(optional)}; expected some of the features {', '.join(self.features)}")
        if isinstance(columns, str) or len({*columns}) < len(columns):
            raise ValueError(f"columns: {columns!r}; expected a list of names, each once")
        if unit == "meters" and not upright:
            raise ValueError("upright: False with unit='meters'; expected True, as heights are above the ground")
        if self.edges != sorted({*self.edges}) or self.edges[0] <= 0:
            raise ValueError(f"edges: {self.edges}; expected lengths above 0, the smallest first")

    def names(self) -> list[str]:
        """Return the names of the features, in order."""
        every = self._all_names()
        return [every[number] for number in self.kept]

    @property
    def kept(self) -> list[int]:
        """Indices of the features in use."""
        every = self._all_names()
        # The size of a feature's box follows its name after a comma.
        return [n for n, name in enumerate(every) if self.upright or name.split(",")[0] not in _OF_A_DIRECTION]

    def _all_names(self) -> list[str]:
        point: list[str] = []
        around: list[str] = []
        if {*RETURNS} <= {*self.features}:
            # Only the names are needed.
            of_point, of_others = describe_returns(np.ones(1), np.ones(1))
            point = [*of_point]
            around = [*of_others]
        if "intensity" in self.features:
            around.append("intensity")
        if "rgb" in self.features:
            around += ["red", "green", "blue"]
        columns = [_feature_of(name) for name in self.columns]
        around += columns
        # Of these, the number of the point itself counts beside the mean around it.
        point += [name for name in around if name in ("intensity", "red", "green", "blue", *columns)]
        if self.unit == "diagonal":
            point += ["place in x", "place in y", "place in z", "distance from the middle", "distance from the center"]
            if "normals" in self.features:
                point += ["normal in x", "normal in y", "normal in z", "normal outward"]
        surfaces = SURFACES if self.unit == "meters" else OBJECT_SURFACES
        return feature_names(self.edges, surfaces, point, around)

    def channels_of(self, names: Sequence[str]) -> list[int]:
        """Return the numbers of the features that come from what is read of points, such as "rgb"."""
        # What is read of points -> first words of the features that come from it
        words = {"rgb": ("red", "green", "blue"), "intensity": ("intensity",), "normals": ("normal",)}
        words |= dict.fromkeys(RETURNS, ("return", "returns", "place among", "several", "early"))
        first = {word for name in names for word in words.get(name, ())}
        return [
            n
            for n, name in enumerate(self.names())
            if name.split(",")[0] in first
            or any(name.startswith(f"{word} ") or name.startswith(f"{word},") for word in first)
        ]

    @property
    def may_miss(self) -> list[list[int]]:
        """Groups of features, by their numbers, that scans may lack."""
        groups = [RETURNS, ("intensity",), ("rgb",), ("normals",)]
        return [self.channels_of(names) for names in groups if {*names} <= {*self.features}]

    def check_measured(self, cloud: PointCloudData) -> None:
        """Check that a cloud has what the features are computed of, as no model answers for points without it.

        Raises:
            PointCloudError: Something is missing, or is 0 everywhere, by which files say that nobody has measured it.
        """
        needed = [name for name in self.features if name != "xyz" and name not in self.optional]
        fields = {name: getattr(cloud, ATTRIBUTES[name]) for name in needed}
        missing = [ATTRIBUTES[name] for name, values in fields.items() if values is None or not values.any()]
        if missing:
            hint = f"; {HOW_TO_ESTIMATE}" if "normals" in missing else ""
            raise PointCloudError(
                f"no {' and no '.join(missing)}; the model uses {', '.join(self.features)} of each point; use "
                f"files that have them, or train a model without{hint}"
            )
        further = cloud.further or {}
        for name in self.columns:
            if name not in further:
                raise PointCloudError(f"{no_column(name, further)}; the model reads {', '.join(self.columns)}")
            if not np.isfinite(further[name]).any():
                raise PointCloudError(f"column {name!r} has no value at any point, but the model uses it")
        counts = cloud.number_of_returns
        if counts is not None and {*RETURNS} <= {*needed} and counts.max() <= 1:
            warnings.warn(
                "every pulse has a single return, but the model was trained on scans with several; use a "
                "model without returns",
                stacklevel=2,
            )

    def split_far(self, cloud: PointCloudData, name: object = None) -> tuple[PointCloudData, FarPoints | None]:
        """Return a scan of a place without isolated far points, and warn about those.

        Such points, as zeros beside coordinates of a map, would make each grid thousands of kilometers wide. Objects,
        which have no scale of their own, are returned whole.

        Args:
            cloud: The scan.
            name: Its name in the warning.

        Returns:
            The cloud, and what was left out; None if nothing was.
        """
        return split_far_points(cloud, name) if self.unit == "meters" else (cloud, None)

    def describe(self, cloud: PointCloudData, up_axis: str | None = None, marks: int = 0) -> DescribedScan:
        """Look at a whole scan: its unit, its ground, and the spread of what was measured.

        Args:
            cloud: The scan.
            up_axis: As of a call.
            marks: Number of the last points that are described by the others, and are not surroundings themselves.
        """
        cloud.check_usable(self.min_points)
        up_axis = up_axis or self.up_axis
        # All features are measured with z up.
        if up_axis != "z":
            # The offset is along the axes of before.
            turned = {"points": turn_up_axis(cloud.points, up_axis, "z"), "offset": None}
            if cloud.normals is not None:
                turned["normals"] = turn_up_axis(cloud.normals, up_axis, "z")
            cloud = PointCloudData(**{**vars(cloud), **turned})
        factor = self._factor(cloud, len(cloud) - marks)
        # Quantiles of some hundred thousand points are those of all.
        some = slice(None, None, max(1, len(cloud) // _LOOKED_AT))
        normal = {}
        for name, values in (("intensity", cloud.intensity), ("rgb", cloud.colors)):
            if name in self.features and values is not None:
                normal[name] = _center_and_spread(values[some])
        further = cloud.further or {}
        for name in self.columns:
            normal[_feature_of(name)] = _center_and_spread(further[name][np.isfinite(further[name])])
        # Where the scan's own coordinates begin, (3,), in the unit of the features. Boxes of places lie at multiples
        # of their edges on the map, wherever a file's offset was split off, so that a file in feet has the boxes of
        # the same one in meters.
        in_place = self.unit == "meters" and cloud.offset is not None
        origin = cloud.offset * factor if in_place else np.zeros(3)
        # Marks are no surroundings, so spacing and ground are those of the other points.
        placed = PlacedPoints(cloud.points[: len(cloud) - marks], factor, origin)
        # Few are computed once.
        points = placed[:] if len(placed) <= 4 * BLOCK else placed
        spacing = spacing_of(points)
        ground = None
        is_noise = np.zeros(len(cloud), bool)
        if self.unit == "meters":
            find = GroundSurface.below if self.ground == "uncut" else GroundSurface.by_windows
            ground = find(points, spacing)
            is_noise[: len(points)] = ground.is_noise
        bounds = bounds_of_all(points)
        return DescribedScan(cloud, self, factor, origin, spacing, ground, normal, bounds, is_noise, marks)

    def _factor(self, cloud: PointCloudData, count: int) -> np.ndarray:
        """Return the length of a unit along each axis, (3,), in the unit of the features, by the first points.

        That of depths, which grow downward, is below 0. What this turns into meters on the ground, whoever writes
        coordinates of the file divides by it.
        """
        if self.unit == "meters":
            check_projected(cloud)
            if cloud.meters_per_unit is None:
                warnings.warn(TAKEN_FOR_METERS, stacklevel=4)
            if (remark := remark_on_ground(cloud)) is not None:
                warnings.warn(remark, stacklevel=4)
            unit = cloud.meters_per_unit or 1.0
            on_ground = unit * (cloud.ground_scale or 1.0)
            return np.array([on_ground, on_ground, cloud.meters_per_height or unit])
        extent = np.linalg.norm(np.ptp(cloud.points[:count], axis=0).astype(np.float64))
        if not extent:
            raise PointCloudError(f"all {len(cloud)} points have the same coordinates; use a file with an extent")
        return np.full(3, DIAGONAL / extent)

    def _prepare(self, cloud: PointCloudData, num_points: int, seed: int | None) -> dict[str, np.ndarray]:
        from hf_any3d.data.point_arrays import new_generator, resample_index

        generator = new_generator(seed)
        if cloud.is_mesh:
            # More samples than are returned, since surroundings are measured by them
            cloud = cloud.sample_surface(max(num_points, _SURFACE_POINTS), generator)
        cloud, _ = self.split_far(cloud)
        self.check_measured(cloud)
        scan = self.describe(cloud)
        rows = resample_index(len(cloud), num_points, generator)
        # Surroundings are of all points, of which only some are described.
        everywhere = np.arange(len(cloud))
        features = scan.neighborhoods(everywhere).features(rows)
        points = np.concatenate([cloud.points[rows], features], axis=1, dtype=np.float32)
        return {"points": points, "count": np.array(len(cloud))}


@dataclass(frozen=True)
class DescribedScan:
    """A scan, and what the features of its points take of the whole of it.

    Attributes:
        cloud: The scan, z up.
        processor: The settings.
        factor: (3,) length of a unit of the scan along each axis, in the unit of the features.
        origin: (3,) place of the scan's zero, in the unit of the features.
        spacing: Usual distance of neighboring points, seen from above.
        ground: The ground below; None for objects.
        normal: Center and spread of what was measured, by the names of the processor's features.
        bounds: (2, 3) lowest and highest coordinates, in the unit of the features.
        is_noise: (points,) which points are noise, below the ground or in the air, and are described by the others.
        marks: Number of the last points that are described by the others, such as the centers of faces.
    """

    cloud: PointCloudData
    processor: LocalFeaturesProcessor
    factor: np.ndarray
    origin: np.ndarray
    spacing: float
    ground: GroundSurface | None
    normal: dict[str, tuple[np.ndarray, np.ndarray]]
    bounds: np.ndarray
    is_noise: np.ndarray
    marks: int = 0

    @property
    def reach(self) -> float:
        """Distance, seen from above, at which a point may change features: two voxels of the two largest sizes."""
        largest = self.processor.edges[-2:]
        return 2 * sum(largest) + self.processor.edges[0]

    @property
    def conditions(self) -> dict[str, float]:
        """Conditions of the place, to compare with those that a model has learned; {} for objects.

        `density` is in points a square meter; `slope` in degrees, which nine tenths of the ground do not exceed;
        `noise` the share of points that are noise, below the ground or in the air; `width` in meters, across the
        longest direction; `rise` the height in meters above the ground that one of a thousand points exceeds; `zero`
        the share of the ground at a height of 0, as where heights above the ground stand in place of elevations.
        """
        if self.ground is None:
            return {}
        count = len(self.cloud) - self.marks
        some = self.cloud.points[: count : max(1, count // _LOOKED_AT)].astype(np.float64) * self.factor + self.origin
        flat = some[:, :2] - some[:, :2].mean(axis=0)
        # The last direction is the one in which points vary least.
        across = flat @ np.linalg.svd(flat.T @ flat)[0][:, -1]
        ground = self.ground.heights[1]
        return {
            "density": self.spacing**-2,
            "slope": self.ground.steepness,
            "noise": float(self.is_noise.mean()),
            "width": float(np.ptp(across)),
            "rise": float(np.quantile(self.ground.heights_above(some)[:, 1], 0.999)),
            "zero": float((np.abs(ground) < _NEAR_ZERO).mean()),
        }

    def neighborhoods(self, index: np.ndarray, rows: np.ndarray | None = None) -> Neighborhoods:
        """Describe the surroundings of points `index`, as far as they are among them; with `rows`, of those alone."""
        # By `take`, which copies rows as a whole
        points = self.cloud.points.take(index, axis=0) * self.factor + self.origin
        is_seen = index < len(self.cloud) - self.marks
        # Of noise alone, each is described by the others.
        if not self.is_noise[index[is_seen]].all():
            is_seen &= ~self.is_noise[index]
        described_by = None
        if not is_seen.all():
            # Points are described by themselves, marks and noise by the nearest point.
            described_by = np.arange(len(index))
            nearest = nearest_rows(points[~is_seen], points[is_seen])
            described_by[~is_seen] = np.flatnonzero(is_seen)[nearest]
        measured = self._measured(points, index)
        return Neighborhoods(points, measured, self.processor.edges, described_by, self.processor.kept, rows)

    def parts(self, count: int, margin: float, own: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Cut the scan into parts of at most `count` points, side by side.

        Args:
            count: Points of a part.
            margin: How far around a part others are seen.
            own: Number of the first points that are cut into parts; the others are seen around them. By default all.

        Yields:
            The points of a part, and those within `margin` around it, seen from above, with them: both are sorted
            numbers of points.
        """
        flat = self.cloud.points.T[:2]
        everywhere = np.arange(len(self.cloud))
        if self.marks:
            # An object has few points that are surroundings.
            seen = everywhere[: len(self.cloud) - self.marks]
            for start in range(0, len(self.cloud), count):
                part = everywhere[start : start + count]
                yield part, np.union1d(seen, part)
            return
        if len(self.cloud) <= count and own in (None, len(self.cloud)):
            yield everywhere, everywhere
            return
        index = MapIndex(self.cloud.points)
        # A stack of parts, of which those with too many points are cut at the median of their longer side
        waiting = [everywhere[:own].astype(np.int32)]
        del everywhere
        while waiting:
            part = waiting.pop()
            # Axis by axis, as rows of few numbers take longer
            places = [values[part] for values in flat]
            extents = [np.ptp(values) for values in places]
            if len(part) > count and max(extents) > 0:
                values = places[int(np.argmax(extents))]
                is_low = values < np.median(values)
                # Of many equal coordinates, all may be on one side.
                if is_low.any():
                    waiting += [part[~is_low], part[is_low]]
                    continue
            part = part.astype(np.int64)
            yield part, index.within(*self._around(part, margin))

    def are_within(self, rows: np.ndarray, part: np.ndarray, margin: float) -> np.ndarray:
        """Return which of the points `rows` are within a margin around those of a part, seen from above."""
        low, high = self._around(part, margin)
        x, y = (self.cloud.points[rows, axis] for axis in (0, 1))
        return (x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])

    def _around(self, part: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest x and y, (2,) each, of what is within a margin around a part."""
        low, high = bounds_of(self.cloud.points[part, :2])
        return low - margin / self.factor[:2], high + margin / self.factor[:2]

    @cached_property
    def _has_returns(self) -> bool:
        counts = self.cloud.number_of_returns
        # Where each pulse has one return, nobody has counted them.
        return self.cloud.return_number is not None and counts is not None and bool(counts.max() > 1)

    def _measured(self, points: np.ndarray, index: np.ndarray) -> Measured:
        cloud = self.cloud
        features = self.processor.features
        cut = HIGHEST
        # Objects stand on their lowest point, and no height in them is above their diagonal.
        if self.ground is None:
            heights = (points[:, 2:] - self.bounds[0, 2]).astype(np.float32)
            cut = DIAGONAL
        else:
            heights = self.ground.heights_above(points)
        point: dict[str, np.ndarray] = {}
        around: dict[str, np.ndarray] = {}
        missing = np.zeros(len(index), np.float32)
        if {*RETURNS} <= {*features}:
            number = cloud.return_number
            total = cloud.number_of_returns
            if self._has_returns:
                assert number is not None and total is not None
                point, around = describe_returns(number[index].astype(np.float32), total[index].astype(np.float32))
            else:
                point, around = (dict.fromkeys(names, missing) for names in describe_returns(missing, missing))
        measured: dict[str, np.ndarray] = {}
        if "intensity" in features:
            values = None if cloud.intensity is None else cloud.intensity[index]
            measured["intensity"] = self._relative("intensity", values, missing)
        if "rgb" in features:
            values = None if cloud.colors is None else cloud.colors[index]
            relative = self._relative("rgb", values, np.stack([missing] * 3, axis=1))
            measured |= dict(zip(("red", "green", "blue"), relative.T, strict=True))
        for name in self.processor.columns:
            feature = _feature_of(name)
            assert cloud.further is not None
            measured[feature] = np.nan_to_num(self._relative(feature, cloud.further[name][index], missing))
        point = {**point, **measured}
        around = {**around, **measured}
        if self.processor.unit == "diagonal":
            low, high = self.bounds
            # From the middle of the box, as a share of its diagonal
            place = (points - (low + high) / 2) / DIAGONAL
            away = np.linalg.norm(place, axis=1)
            point |= dict(zip(("place in x", "place in y", "place in z"), place.T, strict=True))
            point |= {"distance from the middle": np.hypot(place[:, 0], place[:, 1]), "distance from the center": away}
            if "normals" in features:
                normals = np.stack([missing] * 3, axis=1)
                if cloud.normals is not None:
                    normals = cloud.normals[index]
                    length = np.linalg.norm(normals, axis=1, keepdims=True)
                    # Those of length 0 stay.
                    normals = normals / np.where(length > 0, length, 1)
                # Cosine between the normal and the direction away from the center
                outward = np.einsum("ij,ij->i", normals, place) / np.maximum(away, 1e-6)
                point |= dict(zip(("normal in x", "normal in y", "normal in z"), normals.T, strict=True))
                point["normal outward"] = outward
        return Measured(heights, point, around, cut)

    def _relative(self, name: str, values: np.ndarray | None, missing: np.ndarray) -> np.ndarray:
        if values is None or name not in self.normal:
            return missing
        center, spread = self.normal[name]
        return ((values - center) / spread).clip(-3, 3).astype(np.float32)


def with_marks(samples: PointCloudData, mesh: PointCloudData) -> tuple[PointCloudData, int]:
    """Add the centers of faces and then the vertices of a mesh to samples of its surface, and return their number.

    They have directions of their own, and else what the nearest sample has.
    """
    assert mesh.faces is not None and samples.normals is not None
    corners = mesh.points[mesh.faces].astype(np.float64)  # (faces, 3, 3)
    doubled = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # (faces, 3), as long as areas
    # Each triangle adds its normal, twice as long as its area, to its three corners.
    of_vertices = np.stack(
        [np.bincount(mesh.faces.reshape(-1), np.repeat(column, 3), len(mesh)) for column in doubled.T], axis=1
    )
    places = np.concatenate([corners.mean(axis=1).astype(mesh.points.dtype), mesh.points])
    nearest = nearest_rows(places, samples.points)
    arrays = {}
    for name in ("colors", "intensity", *RETURNS):
        values = getattr(samples, name)
        if values is not None:
            arrays[name] = np.concatenate([values, values[nearest]])
    if samples.further is not None:
        arrays["further"] = {name: np.concatenate([own, own[nearest]]) for name, own in samples.further.items()}
    points = np.concatenate([samples.points, places])
    normals = np.concatenate([samples.normals, doubled, of_vertices], dtype=np.float32)
    marked = PointCloudData(points, normals=normals, offset=samples.offset, **arrays)
    marked.meters_per_unit = samples.meters_per_unit
    marked.meters_per_height = samples.meters_per_height
    marked.in_degrees = samples.in_degrees
    marked.ground_scale = samples.ground_scale
    marked.no_map = samples.no_map
    return marked, len(places)


def _feature_of(column: str) -> str:
    # Apart from other features, which a column may be called like; commas end names.
    return f"column {column.replace(',', ' ')}"


def _center_and_spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the median of values (points,) or (points, 3), and how far tenths at both ends are apart."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=0)
    # One spread for all colors, so that hues stay what they are.
    return middle, np.maximum(np.mean(high - low), 1e-6)
