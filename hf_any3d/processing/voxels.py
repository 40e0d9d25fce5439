"""PointTransformerV3Processor: converts files and arrays to voxels."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers.feature_extraction_utils import BatchFeature

from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.data.options import at_least
from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.processing.point_clouds import ATTRIBUTES, HOW_TO_ESTIMATE, PointCloudProcessor, fill_up

SURFACE_POINTS = 100_000
"""Points drawn on a mesh that is sampled on a grid."""
_ZEROS = (0.0, 0.0, 0.0)
# Points whose nearest voxels are looked up at a time.
_PIECE = 1_000_000


class PointTransformerV3Processor(PointCloudProcessor):
    """Convert point clouds to voxels: center, scale, sample on a grid, stack.

    One point of each grid cell is kept, that nearest to its center, and `inverse` leads from every point of the cloud
    to its voxel, so that features and labels go back to all points. Unlike in the released programs, whose points are
    drawn at random, the same cloud always gives the same voxels. `VOXEL_PRESETS` has the settings of the released
    encoders by kind of cloud, for `PointTransformerV3Processor(**VOXEL_PRESETS["concerto_outdoor"])`.

    A call takes the arguments of `PointCloudProcessor` and returns `points` (batch, voxels, channels) float32,
    `grid_coord` (batch, voxels, 3) and `point_mask` (batch, voxels), filled up with zeros to the largest number of
    voxels, and `inverse` (batch, points), the voxel of each point, filled up with -1; without `return_tensors`, lists
    of arrays that are not filled up.

    Args:
        num_points: most points per cloud; larger ones are reduced as `sampling` says.
        features: see `PointCloudProcessor`.
        factor: factor of the coordinates; the edge of a cell is `grid_size / factor` in the units of the input.
        grid_size: edge of a cell, after scaling.
        box_center: "ground" moves the middle of the bounding box to the origin across the up axis, and the lowest
            point to height 0, "half_ground" to half of its height; "across" keeps heights; None moves nothing.
        center_voxels: move to `box_center` after sampling instead of before it.
        scale: "unit_sphere" moves the mean of the points to the origin and divides by the largest distance from it,
            "unit_box" by the largest coordinate, before all else; None keeps the units.
        model_axes: the signed axes of the cloud that the model takes as x, y and z, such as `["-x", "z", "y"]`, after
            all else was done with `up_axis`; normals stay as they are, as in the training of Find3D. None for xyz.
        drawn_points: most points that are sampled on the grid, drawn at random from the cloud; then `inverse` leads
            from every point of the cloud to the nearest voxel instead of its own. None for all points.
        color_range: "unit" for colors in [0, 1], "signed" for [-1, 1].
        needs_normals: whether a cloud without normals is an error; otherwise they are zero, as in the training of
            Concerto, Utonia and the Sonata of October 2025.
        intensity_range: how an intensity is scaled: "bytes" divides it by 255, "tanh" takes the hyperbolic tangent,
            None nothing.
        clip: lowest and highest coordinates, two lists of three; points outside are moved onto this box. None for no
            box.
        views: scales and turns in degrees around the up axis, a pair for each time that a cloud is segmented to be
            voted on; None for models without such a procedure.
        first_grid: edge of the cells of which each keeps one point before that; None keeps all.
        up_axis: see `PointCloudProcessor`.
        default_rgb: the color of clouds without colors; None makes them an error, like `needs_normals`.
        **kwargs: further arguments of `PointCloudProcessor`.

    Example:
        ```python
        from hf_any3d import PointTransformerV3Processor, example_file

        processor = PointTransformerV3Processor(features=["xyz"], scale="unit_sphere", factor=1.0, grid_size=0.05)
        inputs = processor(example_file("chair.ply"))  # model(**inputs, output_point_features=True)
        inputs["points"].shape  # (1, 890, 3)
        ```
    """

    model_input_names = ["points", "point_mask", "grid_coord", "inverse"]
    returns_num_points = False
    _choices = PointCloudProcessor._choices | {
        "scale": ("unit_sphere", None, "unit_box"),
        "small_clouds": ("repeated",),  # no voxel is padded or masked
        "box_center": ("ground", "half_ground", "across", None),
        "color_range": ("unit", "signed"),
        "intensity_range": ("bytes", "tanh", None),
    }

    def __init__(
        self,
        num_points: int = 1_000_000,
        features: Sequence[str] = ("xyz", "rgb", "normals"),
        factor: float = 1.0,
        grid_size: float = 0.02,
        box_center: str | None = "ground",
        center_voxels: bool = False,
        scale: str | None = None,
        color_range: str = "unit",
        needs_normals: bool = True,
        intensity_range: str | None = None,
        clip: Sequence[Sequence[float]] | None = None,
        views: Sequence[Sequence[float]] | None = None,
        first_grid: float | None = None,
        model_axes: Sequence[str] | None = None,
        drawn_points: int | None = None,
        up_axis: str = "z",
        default_rgb: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        self.box_center = box_center
        self.color_range = color_range
        self.intensity_range = intensity_range
        super().__init__(
            num_points=num_points, features=features, scale=scale, up_axis=up_axis, default_rgb=default_rgb, **kwargs
        )
        at_least(1, drawn_points=drawn_points)
        check_numbers(0, above=True, factor=factor, grid_size=grid_size, first_grid=first_grid)
        self.factor = float(factor)
        self.grid_size = float(grid_size)
        self.first_grid = first_grid
        self.clip = None if clip is None else np.asarray(clip, dtype=float).tolist()
        self.views: Any = None if views is None else np.asarray(views, dtype=float).tolist()
        self.needs_normals = needs_normals
        self.center_voxels = center_voxels
        self.drawn_points = drawn_points
        self.model_axes = None if model_axes is None else list(model_axes)
        if self.model_axes is None:
            return
        is_signed_xyz = sorted(axis.removeprefix("-") for axis in self.model_axes) == ["x", "y", "z"]
        if not is_signed_xyz or self.center_voxels or self.views is not None:
            raise ValueError(
                f"model_axes: {self.model_axes}; expected three axes, such as ['-x', 'z', 'y'], or None, which it has "
                "to be with center_voxels or views, which know the up axis"
            )

    def _batch(self, rows: list[dict[str, np.ndarray]], num_points: int, return_tensors: str | None) -> BatchFeature:
        columns = {name: [row[name] for row in rows] for name in self.model_input_names}
        if return_tensors is None:
            return BatchFeature(columns)
        # 0 is the number of a voxel, so that points that are not there have -1.
        filled = {name: fill_up(values, -1 if name == "inverse" else 0) for name, values in columns.items()}
        return BatchFeature(filled, tensor_type=return_tensors)

    def _prepare(self, cloud: PointCloudData, num_points: int, seed: int | None) -> dict[str, np.ndarray]:
        import torch

        from hf_any3d.data.point_arrays import new_generator
        from hf_any3d.modeling.point_ops import grid_sample

        generator = new_generator(seed)
        if cloud.is_mesh:
            cloud = cloud.sample_surface(min(num_points, SURFACE_POINTS), generator)
        cloud.check_usable(self.min_points)
        channels = self._channels(cloud)
        xyz = self._reorder(cloud.points).astype(np.float32)
        if len(xyz) > num_points:
            keep = self._reduce(xyz, num_points, generator)
            xyz = xyz.take(keep, axis=0)
            channels = [values.take(keep, axis=0) for values in channels]
        xyz = self._place(xyz)
        drawn = self._draw(len(xyz), generator)
        sample = grid_sample(torch.from_numpy(np.ascontiguousarray(xyz[drawn])), self.grid_size)
        # From numbers among the drawn points to numbers in the cloud
        kept = drawn[sample.kept.numpy()]
        inverse = sample.inverse.numpy()
        if self.drawn_points is not None:
            # Points that were not drawn may lie in cells without a voxel.
            inverse = nearest_rows(xyz, xyz[kept])
        xyz = xyz.take(kept, axis=0)
        # The cells are cut by now, and only coordinates change.
        if self.center_voxels:
            xyz = self._move_box(xyz)
        return {
            "points": np.concatenate([xyz, *(values.take(kept, axis=0) for values in channels)], axis=1),
            "point_mask": np.ones(len(kept), dtype=bool),
            "grid_coord": sample.grid_coord.numpy(),
            "inverse": inverse,
        }

    def _draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draw the points whose cells become voxels, or take all."""
        if self.drawn_points is None or count <= self.drawn_points:
            return np.arange(count)
        return generator.choice(count, self.drawn_points, replace=False)

    def fragments(self, cloud: PointCloudData) -> Iterator[tuple[np.ndarray, BatchFeature]]:
        """Yield each view of a cloud in fragments, together all of its points, with one point of each cell.

        With `first_grid` only the points that it keeps occur; see `first_sample`.

        Yields:
            Numbers of the points in a fragment, `(voxels,)`, and the inputs of the model.
        """
        import torch

        from hf_any3d.modeling.point_ops import grid_sample

        cloud.check_usable(self.min_points)
        channels = self._channels(cloud)
        xyz = self._place(self._reorder(cloud.points).astype(np.float32)).astype(np.float64)
        rows = self.first_sample(cloud)[0]
        xyz = xyz[rows]
        channels = [values[rows] for values in channels]
        names = self.features[1:]
        for scale, degrees in self.views:
            turn = self._turn_of_view(degrees)
            moved = xyz * scale @ turn.T
            # In float64 as above, since the cells are cut before the coordinates are rounded.
            sample = grid_sample(torch.from_numpy(moved), self.grid_size)
            # The points cell by cell; in each fragment the next point of every cell, and the first again where a cell
            # has no more.
            order = sample.inverse.argsort(stable=True).numpy()
            counts = np.bincount(sample.inverse.numpy())
            starts = counts.cumsum() - counts
            for number in range(counts.max()):
                index = order[starts + number % counts]
                placed = self._move_box(moved[index]) if self.center_voxels else moved[index]
                # Normals turn with the cloud; colors and intensities do not.
                others = [
                    values[index] @ turn.T if name == "normals" else values[index]
                    for name, values in zip(names, channels, strict=True)
                ]
                points = np.concatenate([placed, *others], axis=1).astype(np.float32)
                inputs = {"points": points[None], "grid_coord": sample.grid_coord.numpy()[None]}
                yield rows[index], BatchFeature(inputs, tensor_type="pt")

    def _turn_of_view(self, degrees: float) -> np.ndarray:
        """Return the rotation (3, 3) about the up axis."""
        # Rounded, so that quarter turns are exact.
        cosine = round(float(np.cos(np.deg2rad(degrees))), 15)
        sine = round(float(np.sin(np.deg2rad(degrees))), 15)
        up = "xyz".index(self.up_axis)
        # The axes across the up axis, in the order in which turns are counterclockwise
        first = (up + 1) % 3
        second = (up + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = cosine
        turn[first, second] = -sine
        turn[second, first] = sine
        return turn

    def first_sample(self, cloud: PointCloudData) -> tuple[np.ndarray, np.ndarray]:
        """Return the points of a cloud that `first_grid` keeps, and for each point which of these stands for it."""
        import torch

        from hf_any3d.modeling.point_ops import grid_sample

        if self.first_grid is None:
            return np.arange(len(cloud)), np.arange(len(cloud))
        xyz = self._place(self._reorder(cloud.points).astype(np.float32))
        sample = grid_sample(torch.from_numpy(np.ascontiguousarray(xyz)), self.first_grid)
        return sample.kept.numpy(), sample.inverse.numpy()

    def _place(self, xyz: np.ndarray) -> np.ndarray:
        """Move and scale the points `(points, 3)` as before sampling."""
        if self.scale is not None:
            xyz = self._normalize(xyz)
        if self.factor != 1:
            # In float32 the factor would be rounded too, and points near the edge of a cell could change cells.
            xyz = (xyz.astype(np.float64) * self.factor).astype(np.float32)
        # Cells lie at multiples of their edge, so it matters whether the box is moved before or after sampling.
        if not self.center_voxels:
            xyz = self._move_box(xyz)
        if self.model_axes is not None:
            directions = np.array([-1 if axis[0] == "-" else 1 for axis in self.model_axes], xyz.dtype)
            xyz = np.ascontiguousarray(xyz[:, ["xyz".index(axis[-1]) for axis in self.model_axes]] * directions)
        if self.clip is None:
            return xyz
        low, high = np.asarray(self.clip, xyz.dtype)
        return xyz.clip(low, high)

    def _channels(self, cloud: PointCloudData) -> list[np.ndarray]:
        # Normals are made up if the model takes that; all else it was never trained without.
        fillings = {"rgb": self.default_rgb, "normals": None if self.needs_normals else _ZEROS}
        missing = [name for name in fillings if name in self.features and getattr(cloud, ATTRIBUTES[name]) is None]
        refused = [ATTRIBUTES[name] for name in missing if fillings[name] is None]
        if refused:
            hint = f"; {HOW_TO_ESTIMATE}" if "normals" in refused else ""
            raise PointCloudError(
                f"no {' and no '.join(refused)}, but the model was never trained without; expected a cloud with them, "
                "or a model that was: Pointcept/Sonata, Pointcept/Concerto:base or :scannet, Pointcept/Utonia:base. "
                "default_rgb=(0, 0, 0) and needs_normals=False of the processor put zeros there, with which a model "
                f"that was not answers something else{hint}"
            )
        if "normals" in missing:
            cloud = PointCloudData(**{**vars(cloud), "normals": np.zeros_like(cloud.points)})
        channels = super()._channels(cloud)
        # `features` begins with xyz, which is not among the channels.
        if self.color_range == "signed" and "rgb" in self.features:
            place = self.features.index("rgb") - 1
            channels[place] = 2 * channels[place] - 1
        if self.intensity_range is not None and "intensity" in self.features:
            place = self.features.index("intensity") - 1
            # As in the training of the model
            values = channels[place]
            if self.intensity_range == "tanh":
                channels[place] = np.tanh(values)
            else:
                low = float(values.min())
                high = float(values.max())
                # Another unit would give wrong classes without an error.
                if low < 0 or high > 255 or (0 < high <= 1 and (values % 1).any()):
                    raise PointCloudError(f"intensity from {low:g} to {high:g}; expected the sensor's bytes, 0 to 255")
                channels[place] = values / np.float32(255)
        return channels

    def _move_box(self, xyz: np.ndarray) -> np.ndarray:
        if self.box_center is None:
            return xyz
        low = xyz.min(axis=0)
        high = xyz.max(axis=0)
        origin = (low + high) / 2
        up = "xyz".index(self.up_axis)
        # "across" keeps heights.
        origin[up] = {"ground": low[up], "half_ground": low[up] / 2}.get(self.box_center, 0)
        return xyz - origin


_TURNS = (0, 90, 180, 270)
# The authors' lists, whose flips are half turns.
_SCALED = [[scale, turn] for turn in (0, 180) for scale in (0.9, 0.95, 1, 1.05, 1.1)]
# Colors and normals were left out now and then in the training; in that of all others they never were.
_LACKING = {"default_rgb": _ZEROS, "needs_normals": False}
_FINE = {"grid_size": 0.01, **_LACKING}
_STREET = {"grid_size": 0.05, "box_center": None, "features": ["xyz", "intensity"], "first_grid": 0.025}
VOXEL_PRESETS: dict[str, dict[str, Any]] = {
    "sonata": {},
    "concerto": _LACKING,
    "concerto_outdoor": {**_FINE, "factor": 0.2, "box_center": "across", "center_voxels": True},
    "utonia_indoor": {**_FINE, "factor": 0.5},
    "utonia_outdoor": {**_FINE, "factor": 0.2, "box_center": None},
    "utonia_objects": {**_FINE, "scale": "unit_sphere"},
    "utonia_tabletop": {**_FINE, "factor": 4.0},
    "utonia_city": {**_FINE, "factor": 0.0015},
    "scannet": {"views": [*([scale, turn] for scale in (1, 0.95, 1.05) for turn in _TURNS), [1, 180]]},
    "s3dis": {"views": _SCALED},
    "nuscenes": {**_STREET, "intensity_range": "bytes", "views": _SCALED},
    "waymo": {
        **_STREET,
        "intensity_range": "tanh",
        "clip": [[-75.2, -75.2, -4], [75.2, 75.2, 2]],
        "views": [[1, turn] for turn in _TURNS],
    },
    # Objects, of any size and with y up; the model was trained with 5,000 points of each.
    "find3d": {
        "color_range": "signed",
        "scale": "unit_box",
        "factor": 0.75,
        "up_axis": "y",
        "model_axes": ["-x", "z", "y"],
        "drawn_points": 5000,
    },
}
"""Settings of `PointTransformerV3Processor` for the released models; of scenes, coordinates are in meters, z is up."""


def nearest_rows(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each of `points (points, 3)` the number of the nearest of `others`."""
    from scipy.spatial import KDTree

    # Cut in the middle of cells, not of points: most of the time is that of the tree, as queries are few.
    tree = KDTree(others, compact_nodes=False, balanced_tree=False)
    # In pieces, since the result of a query is several times larger than the points.
    pieces = range(0, len(points), _PIECE)
    return np.concatenate([tree.query(points[start : start + _PIECE])[1] for start in pieces])
