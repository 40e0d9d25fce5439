"""PointCloudProcessor: converts files and arrays to model inputs."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.data.inputs import ATTRIBUTES, split_clouds, to_cloud
from hf_any3d.data.normals import with_normals
from hf_any3d.data.options import at_least, one_of
from hf_any3d.modeling.config_checks import check_numbers, check_settings
from hf_any3d.modeling.hooks import LibrarySettingsMixin

FEATURES = ("xyz", *ATTRIBUTES)
UP_AXES = ("x", "y", "z")
# Formats with a fixed place for these have 0 there where nobody has measured them.
_ZERO_IF_UNMEASURED = ("intensity", "return_number", "number_of_returns")
# Farthest point sampling costs points times samples; a random subset of a larger cloud covers it as well.
_FARTHEST_CANDIDATES = 1_000_000
# Points drawn on a mesh for each one that farthest point sampling keeps.
_SURFACE_CANDIDATES = 8
HOW_TO_ESTIMATE = "--estimate-normals (estimate_normals=True) estimates normals from neighbors"
"""What the refusal of a cloud without normals offers."""
# Keys of saved files that are not arguments.
_SAVED = ("feature_extractor_type", "processor_class", "auto_map", "custom_pipelines")


class PointCloudProcessor(LibrarySettingsMixin, FeatureExtractionMixin):
    """Convert point clouds and meshes to model inputs: read, check, sample, center, scale, stack.

    The result of a cloud depends only on the cloud and the seed. Meshes are sampled on their surface, by area. Clouds
    with more than `num_points` points are reduced, then centered and scaled, then, if they have fewer, padded with
    repeated points after the original ones, so that repeats do not shift the center.

    Args:
        num_points: number of points per cloud.
        center: True moves the mean of the points to the origin; "ground" does so only across the up axis and moves the
            lowest point to height 0, as suits parts of scenes, where height matters; False moves nothing. "room" is
            for blocks of rooms as PointNet reads S3DIS: places are relative to the middle of the column that begins at
            a block's lowest coordinates, and to the floor of the room; three more channels are places in the room,
            from 0 to 1 along each axis.
        scale: "unit_sphere" divides by the largest distance from the origin; None keeps the units of the input.
        sampling: how to reduce a cloud. "random" draws without replacement; "first" takes the first ones; "farthest"
            spreads them evenly (clouds above a million points are first reduced to that many at random).
        features: the channels in order: "xyz" first, then "rgb" (in [0, 1]), "normals", "intensity", "ring",
            "return_number" and "number_of_returns" if the model uses them.
        min_points: fewer points are an error. The default 3 is the fewest that span a surface.
        seed: for all random choices; None draws a new one from torch's generator for every cloud.
        up_axis: the up axis of the model's training data; recorded for users, for augmentation and for `center`.
            Clouds are turned only if a call names another one for them.
        block_size: edge of the square columns into which training and pipelines cut scenes, in the units of the
            scene; None for models of complete clouds.
        block_overlap: share of that edge that neighboring columns have in common.
        extent: the points whose mean is moved to the origin and whose radius is scaled to one: the "kept" ones, or
            "all" points of the cloud, which is then normalized before sampling.
        axes: the order in which the model takes the coordinates. "xzy" exchanges y and z of points and normals before
            all else, as some released models do, which mirrors the cloud; `up_axis` is that of the result.
        default_rgb: the color, each value in [0, 1], of clouds without colors; None makes them an error.
        min_squared_norm: "farthest" ignores points whose x²+y²+z² is no larger, as the CUDA kernel of many released
            programs does (there it is 1e-3); None ignores none. Measured after normalization if `extent="all"`.
        estimate_normals: whether normals of clouds that have neither normals nor faces are estimated, see
            `hf_any3d.data.normals.estimate_normals`, with a warning; otherwise such clouds are an error if `features`
            have "normals". Clouds are scenes without a `scale` or with a `block_size`, else single objects.
        small_clouds: what becomes of clouds with fewer than `num_points` points: they are "repeated", or "masked":
            padded with zeros to the largest of the batch, and marked in `points_mask`, for models that take it.

    Raises:
        TypeError: An unknown argument.
        ValueError: An argument that is none of the choices above, or out of range; names both.

    Example:
        ```python
        from hf_any3d import PointCloudProcessor, example_file

        processor = PointCloudProcessor(num_points=1024)
        processor([example_file("chair.ply"), example_file("lamp.ply")])["points"].shape  # (2, 1024, 3)
        ```
    """

    model_input_names = ["points"]
    # Whether every cloud has `num_points` points in the output; otherwise at most as many.
    returns_num_points = True
    # Another value of these would silently mean one of them.
    _choices: dict[str, tuple[Any, ...]] = {
        "center": (True, "ground", "room", False),
        "scale": ("unit_sphere", None),
        "sampling": ("random", "farthest", "first"),
        "extent": ("kept", "all"),
        "axes": ("xyz", "xzy"),
        "small_clouds": ("repeated", "masked"),
        "up_axis": UP_AXES,
    }
    estimate_normals = False
    # Names of further columns of files that are read; only some processors take any.
    columns: Sequence[str] = ()

    def __init__(
        self,
        num_points: int = 1024,
        center: bool | str = True,
        scale: str | None = "unit_sphere",
        sampling: str = "random",
        features: Sequence[str] = ("xyz",),
        min_points: int = 3,
        seed: int | None = 0,
        up_axis: str = "y",
        block_size: float | None = None,
        block_overlap: float = 0.5,
        extent: str = "kept",
        min_squared_norm: float | None = None,
        default_rgb: Sequence[float] | None = None,
        axes: str = "xyz",
        small_clouds: str = "repeated",
        estimate_normals: bool = False,
        **kwargs: Any,
    ):
        # transformers' class would keep any argument, also one with a typing error.
        for name in kwargs:
            if name not in _SAVED and not name.startswith("_"):
                raise TypeError(f"PointCloudProcessor: unknown argument {name}")
        super().__init__(**kwargs)
        features = [features] if isinstance(features, str) else list(features)
        if features[:1] != ["xyz"] or len(set(features)) != len(features) or not set(features) <= set(FEATURES):
            raise ValueError(f"features: {features}; expected 'xyz', then any of {', '.join(FEATURES[1:])}")
        if default_rgb is not None and (len(default_rgb) != 3 or not all(0 <= value <= 1 for value in default_rgb)):
            raise ValueError(f"default_rgb: {default_rgb}; expected red, green and blue, each from 0 to 1")
        self.num_points = num_points
        self.min_points = min_points
        self.seed = seed
        self.center = center
        self.scale = scale
        self.sampling = sampling
        self.extent = extent
        self.axes = axes
        self.small_clouds = small_clouds
        self.up_axis = up_axis
        self.min_squared_norm = min_squared_norm
        self.features = features
        self.default_rgb = None if default_rgb is None else [float(value) for value in default_rgb]
        self.block_size = block_size
        self.block_overlap = block_overlap
        # Without it, settings are stored as they were before normals were estimated.
        if estimate_normals:
            self.with_estimated_normals()
        check_settings(self, self._choices)
        at_least(1, num_points=num_points, min_points=min_points)
        at_least(0, min_squared_norm=min_squared_norm)
        check_numbers(0, above=True, block_size=block_size)
        check_numbers(0, 1, block_overlap=block_overlap)

    def __call__(
        self,
        clouds: Any,
        *,
        num_points: int | None = None,
        seed: int | Sequence[int] | None = None,
        up_axis: str | None = None,
        bounds: np.ndarray | None = None,
        estimate_normals: bool | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prepare one cloud or many, of any sizes.

        Args:
            clouds: one cloud or a list of clouds, each a path, a PointCloudData, an array, tensor or nested list
                (points, channels) with the channels of `features`, a dict with `points` and perhaps `colors` and
                `normals` (a dataset row), a data frame with x, y and z, or a trimesh Trimesh, PointCloud or Scene; or
                an array or tensor (batch, points, channels), or a table with a column `points` or `path`.
            num_points: instead of the processor's.
            seed: instead of the processor's; a sequence has one for each cloud.
            up_axis: the axis that points up in the clouds, with a minus where it points down; they are turned so that
                the processor's points up. None turns nothing.
            bounds: (2, 3), lowest and highest coordinates of the room that the clouds are blocks of, for
                `center="room"`; None for those of each cloud.
            estimate_normals: instead of the processor's.
            return_tensors: "pt" for a torch tensor, "np" for numpy; None gives a list of arrays.

        Returns:
            `points` (batch, num_points, channels) float32, in the order of the input; with `small_clouds="masked"`
            only as many points as the largest cloud has, and `points_mask` (batch, points) bool, False for padding.

        Raises:
            PointCloudError: a cloud with too few points, NaN or infinite coordinates, only equal points or a missing
                feature; names the cloud. A ValueError, too.
            PointCloudFileError: a file that cannot be read; a PointCloudError, too.
        """
        num_points = self.num_points if num_points is None else num_points
        at_least(1, num_points=num_points)
        entries = split_clouds(clouds)
        rows = []
        seeds: Any = self.seed if seed is None else seed
        if not isinstance(seed, (Sequence, np.ndarray)):
            # One seed is that of every cloud.
            seeds = [seeds] * len(entries)
        for number, (entry, cloud_seed) in enumerate(zip(entries, seeds, strict=True)):
            with errors_of_cloud(number, len(entries)):
                cloud = self._turned(self.read_whole(entry, up_axis, estimate_normals), up_axis)
                rows.append(self._prepare(cloud, num_points, cloud_seed))
                if self.center == "room":
                    # Bounds turn with the block that was cut from them.
                    room = cloud.points if bounds is None else self._turn(bounds, up_axis)
                    rows[-1]["points"] = self._in_room(rows[-1]["points"], self._reorder(room))
        return self._batch(rows, num_points, return_tensors)

    def _batch(self, rows: list[dict[str, np.ndarray]], num_points: int, return_tensors: str | None) -> BatchFeature:
        clouds = [row["points"] for row in rows]
        if self.small_clouds == "masked":
            # Clouds in a list keep their own sizes, so that there is no padding to mask.
            if return_tensors is None:
                return BatchFeature({"points": clouds})
            masks = [np.ones(len(cloud), dtype=bool) for cloud in clouds]
            filled = {"points": fill_up(clouds), "points_mask": fill_up(masks)}
            return BatchFeature(filled, tensor_type=return_tensors)
        small = [int(row["count"]) for row in rows if row["count"] < num_points]
        if small:
            warnings.warn(
                f"{len(small)} of {len(rows)} clouds have fewer than num_points={num_points} points, the smallest "
                f"{min(small)}; their points are repeated",
                stacklevel=3,
            )
        points = np.stack(clouds) if return_tensors is not None else clouds  # (batch, num_points, channels)
        return BatchFeature({"points": points}, tensor_type=return_tensors)

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, points: Any = None, **rule: Any
    ) -> list[dict[str, Any]]:
        """Choose the answers among the boxes of a detector.

        Args:
            outputs: of the model, with `logits` and `pred_boxes`.
            threshold: lowest score.
            points: `(batch, points, channels)`, the input; needed if `min_points` is not 0.
            **rule: settings of `hf_any3d.modeling.layers.boxes.DetectionRule`, such as `nms`, `nms_iou`, `top_k`.

        Returns:
            For each cloud `boxes (answers, 7)`, center, size and heading in the frame of the input, `labels` and
            `scores (answers,)`, the highest score first.
        """
        from hf_any3d.modeling.layers.boxes import DetectionRule, select_detections

        detection_rule = DetectionRule(threshold=threshold, **rule)
        for name in ("logits", "pred_boxes"):
            if outputs[name].isnan().any():  # no box would have a score, as if nothing were there
                raise ValueError(f"{name} have NaN; the model has diverged or its input was not finite")
        probabilities = outputs["logits"].float().softmax(dim=-1)  # (batch, boxes, labels + 1)
        answers = []
        for cloud, boxes in enumerate(outputs["pred_boxes"]):
            shares = probabilities[cloud]
            xyz = None if points is None else points[cloud][..., :3]
            # The last label stands for no object.
            number, labels, scores = select_detections(boxes, shares[:, :-1], 1 - shares[:, -1], detection_rule, xyz)
            # The highest score first; equal ones in the order of the boxes
            order = scores.argsort(descending=True, stable=True)
            answers.append({"boxes": boxes[number][order], "labels": labels[order], "scores": scores[order]})
        return answers

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the file that `save_pretrained` writes; see `LibrarySettingsMixin`."""
        # AutoProcessor finds the class by this key; without it, it would try image processors first.
        self.processor_class = type(self).__name__
        try:
            super().to_json_file(json_file_path)
        finally:
            del self.processor_class

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a processor from the content of such a file, of the subclass that it names."""
        for kind in cls.__subclasses__():
            if kind.__name__ == feature_extractor_dict.get("processor_class"):
                return kind.from_dict(feature_extractor_dict, **kwargs)
        stored = dict(feature_extractor_dict)
        # Written for AutoProcessor alone, and no argument of this class
        if stored.get("processor_class") == cls.__name__:
            del stored["processor_class"]
        return super().from_dict(stored, **kwargs)

    def with_estimated_normals(self) -> None:
        """Estimate normals of all clouds that have none; this is saved."""
        self._check_takes_normals()
        self.estimate_normals = True

    def _check_takes_normals(self) -> None:
        if "normals" not in self.features:
            raise ValueError(
                f"estimate_normals=True (--estimate-normals), but the features are {self.features}; expected "
                "'normals' in them"
            )

    def estimates(self, cloud: PointCloudData, estimate_normals: bool | None = None) -> bool:
        """Return whether the normals of a cloud are estimated; `estimate_normals` is that of a call."""
        is_asked = self.estimate_normals if estimate_normals is None else estimate_normals
        return is_asked and cloud.normals is None and not cloud.is_mesh

    def read_whole(
        self, entry: Any, up_axis: str | None = None, estimate_normals: bool | None = None
    ) -> PointCloudData:
        """Read a cloud as it is, with estimated normals where that is asked for.

        Pipelines cut clouds after it, as neighbors of a point may be in another part.

        Args:
            entry: A cloud, see `to_cloud`.
            up_axis: The axis that points up in it; None for the processor's.
            estimate_normals: Whether they are estimated if it has none; None for the processor's setting.
        """
        if estimate_normals:
            self._check_takes_normals()
        cloud = to_cloud(entry, self.features, self.columns)
        if not self.estimates(cloud, estimate_normals):
            return cloud
        is_scene = self.scale is None or self.block_size is not None
        up = (up_axis or self.axes["xyz".index(self.up_axis)]) if is_scene else None
        return with_normals(cloud, up)

    def _turned(self, cloud: PointCloudData, up_axis: str | None) -> PointCloudData:
        """Turn a cloud so that `up_axis` becomes the up axis of the processor."""
        if up_axis is None:
            return cloud
        points = self._turn(cloud.points, up_axis)
        normals = None if cloud.normals is None else self._turn(cloud.normals, up_axis)
        # The offset is along the axes of before.
        return PointCloudData(**{**vars(cloud), "points": points, "normals": normals, "offset": None, "scanner": None})

    def _turn(self, vectors: np.ndarray, up_axis: str | None) -> np.ndarray:
        if up_axis is None:
            return vectors
        one_of("up_axis", up_axis, (*UP_AXES, *(f"-{axis}" for axis in UP_AXES)))
        from hf_any3d.data.frames.axes import turn_up_axis

        # That axis of the file which `axes` puts in the place of the processor's.
        return turn_up_axis(vectors, up_axis, self.axes["xyz".index(self.up_axis)])

    def _prepare(self, cloud: PointCloudData, num_points: int, seed: int | None) -> dict[str, np.ndarray]:
        """Return `points` (num_points, channels) of a cloud, and the `count` of those that it has."""
        from hf_any3d.data.point_arrays import new_generator, resample_index

        generator = new_generator(seed)
        if cloud.is_mesh:
            # Of exactly `num_points` samples, farthest point sampling would keep all and choose nothing.
            dense = num_points * _SURFACE_CANDIDATES if self.sampling == "farthest" else num_points
            cloud = cloud.sample_surface(dense, generator)
        cloud.check_usable(self.min_points)
        channels = self._channels(cloud)
        xyz = self._reorder(cloud.points.astype(np.float32, copy=False))
        # Whether the scale is that of the whole cloud or of the points that are kept.
        if self.extent == "all":
            xyz = self._normalize(xyz)
        if len(cloud) > num_points:
            keep = self._reduce(xyz, num_points, generator)
            xyz = xyz.take(keep, axis=0)
            channels = [values.take(keep, axis=0) for values in channels]
        if self.extent != "all":
            xyz = self._normalize(xyz)
        points = np.concatenate([xyz, *channels], axis=1)
        # After normalization, so that repeats do not shift the center
        if len(points) < num_points and self.small_clouds == "repeated":
            points = points.take(resample_index(len(points), num_points, generator), axis=0)
        return {"points": points, "count": np.array(len(cloud))}

    def _channels(self, cloud: PointCloudData) -> list[np.ndarray]:
        channels = []
        for name in self.features[1:]:
            values = getattr(cloud, ATTRIBUTES[name])
            if name in _ZERO_IF_UNMEASURED and values is not None and not values.any():
                values = None
            if values is None and name == "rgb" and self.default_rgb is not None:
                values = np.tile(np.asarray(self.default_rgb, np.float32), (len(cloud), 1))
            if values is None:
                hint = f"; {HOW_TO_ESTIMATE}" if name == "normals" else ""
                raise PointCloudError(
                    f"no {ATTRIBUTES[name]}; the processor needs them, since its features are {tuple(self.features)}"
                    f"{hint}"
                )
            # Normals have axes like coordinates; colors have none.
            channels.append(self._reorder(values) if name == "normals" else values.reshape(len(cloud), -1))
        return channels

    def _reorder(self, vectors: np.ndarray) -> np.ndarray:
        """Put the coordinates `(points, 3)` into the order of the model."""
        return vectors if self.axes == "xyz" else np.ascontiguousarray(vectors[:, ["xyz".index(a) for a in self.axes]])

    def _reduce(self, xyz: np.ndarray, num_points: int, generator: np.random.Generator) -> np.ndarray:
        if self.sampling == "first":
            return np.arange(num_points)
        if self.sampling == "random":
            return generator.choice(len(xyz), num_points, replace=False)
        import torch

        from hf_any3d.modeling.point_ops import farthest_point_sample

        # Time grows with candidates times points kept, so large clouds are thinned out at random first.
        limit = max(_FARTHEST_CANDIDATES, num_points)
        candidates = np.arange(len(xyz))
        if len(xyz) > limit:
            candidates = generator.choice(len(xyz), limit, replace=False)
        xyz = xyz[candidates]
        largest = np.abs(xyz).max()
        if not 1e-12 < largest < 1e12:
            # Squared distances would exceed the range of float32.
            xyz = (xyz.astype(np.float64) / max(largest, np.finfo(np.float64).tiny)).astype(np.float32)
        index = farthest_point_sample(torch.from_numpy(xyz)[None], num_points, min_squared_norm=self.min_squared_norm)
        return candidates[index[0].numpy()]

    def _in_room(self, points: np.ndarray, room: np.ndarray) -> np.ndarray:
        """Return points `(num_points, channels + 3)` of a block, with places as `center="room"` describes them."""
        assert self.block_size is not None, 'center="room" is of blocks'
        low = room.min(axis=0)
        high = room.max(axis=0)
        xyz = points[:, :3]
        up = "xyz".index(self.up_axis)
        origin = xyz.min(axis=0) + self.block_size / 2
        origin[up] = low[up]
        places = (xyz - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
        return np.concatenate([xyz - origin, points[:, 3:], places], axis=1, dtype=np.float32)

    def _normalize(self, xyz: np.ndarray) -> np.ndarray:
        from hf_any3d.data.point_arrays import largest_norm, mean_point

        if self.scale is not None and (xyz == xyz[0]).all():
            raise PointCloudError(f"all {len(xyz)} points are equal; a cloud without extent cannot be scaled")
        # In float64, as sums of many float32 numbers lose digits; one row per axis, which numpy sums fastest.
        axes = np.ascontiguousarray(xyz.T, dtype=np.float64)  # (3, num_points)
        if self.center in (True, "ground"):
            origin = mean_point(axes)  # (3, 1)
            if self.center == "ground":
                up = "xyz".index(self.up_axis)
                origin[up] = axes[up].min()
            axes -= origin
        if self.scale is not None:
            axes /= np.abs(axes).max() if self.scale == "unit_box" else largest_norm(axes)
        return np.ascontiguousarray(axes.T, dtype=np.float32)


@contextmanager
def errors_of_cloud(number: int, count: int) -> Iterator[None]:
    """Begin errors about one of several clouds with its number."""
    try:
        yield
    except ValueError as error:
        # An error about a file stays one.
        kind = type(error) if isinstance(error, PointCloudError) else PointCloudError
        raise kind(f"cloud {number}: {error}" if count > 1 else str(error)) from error


def fill_up(rows: Sequence[np.ndarray], value: int = 0) -> np.ndarray:
    """Stack arrays of different lengths, filled up with a value at the end."""
    filled = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return filled
