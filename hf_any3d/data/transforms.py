"""Augmentations of one point cloud.

Every transform is called as `transform(points, generator=None)` with points (num_points, channels), whose first three
channels are xyz, and returns a new float32 array; other channels stay with their point. `generator` is a
`numpy.random.Generator`; by default it is seeded from torch, so that it follows the seed of Trainer and of DataLoader
workers.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch

from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.data.options import one_of
from hf_any3d.data.point_arrays import largest_norm, mean_point, new_generator, resample_index, rotation_matrix
from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.point_ops import farthest_point_sample

AXES = {"x": 0, "y": 1, "z": 2}


class Transform(Protocol):
    """A function from cloud to cloud."""

    def __call__(self, points: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """Transform (num_points, channels) to (num_points', channels) float32."""
        ...


@dataclass
class PointTransform:
    """Base of the transforms: copies the points and creates the generator."""

    def __post_init__(self):
        """Check numbers: noise that is clipped at -0.05, for instance, would move all points."""
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, (int, float)):
                # Probabilities and shares; all other numbers are lengths, factors or angles.
                most = 1.0 if setting.name in ("p", "max_ratio") else np.inf
                check_numbers(0, most, **{setting.name: value})  # pyright: ignore[reportArgumentType] not `above`

    def __call__(self, points: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """Transform one cloud (num_points, channels), xyz first; returns float32.

        There are as many points unless the class documents otherwise.
        """
        # A copy: transforms write in place, and rows of a dataset are often views of its memory.
        points = np.array(points, dtype=np.float32)
        return self.apply(points, new_generator() if generator is None else generator)

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Transform `points`, which this call may overwrite."""
        raise NotImplementedError


@dataclass
class RandomScale(PointTransform):
    """Multiply xyz by a random factor between `low` and `high`, one for all axes or one for each.

    With `normals_columns`, the three channels of normals stay perpendicular to the scaled surface.
    """

    low: float = 0.8
    high: float = 1.25
    per_axis: bool = False
    normals_columns: tuple[int, int, int] | None = None

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Scale about the origin."""
        # (3,) or (1,), which scales all axes alike
        factor = generator.uniform(self.low, self.high, 3 if self.per_axis else 1).astype(np.float32)
        points[:, :3] *= factor
        if self.per_axis and self.normals_columns is not None:
            columns = list(self.normals_columns)
            length = np.linalg.norm(points[:, columns], axis=1, keepdims=True)  # (num_points, 1)
            normals = points[:, columns] / factor  # a normal is a covector: it scales inversely
            # Normals keep the length that they had.
            normals *= length / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            points[:, columns] = normals
        return points


@dataclass
class RandomShift(PointTransform):
    """Shift the cloud by up to `limit` along each axis, in the units of the points."""

    limit: float = 0.1

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Add one random vector to all points."""
        points[:, :3] += generator.uniform(-self.limit, self.limit, 3).astype(np.float32)
        return points


@dataclass
class RandomRotation(PointTransform):
    """Rotate the cloud about an axis through the origin by an angle between -`limit` and `limit` radians.

    With `normals_columns`, the three channels of normals are rotated too.
    """

    axis: str = "y"
    limit: float = np.pi
    normals_columns: tuple[int, int, int] | None = None

    def __post_init__(self):
        super().__post_init__()
        one_of("axis", self.axis, AXES)

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Rotate about the origin."""
        matrix = rotation_matrix(AXES[self.axis], generator.uniform(-self.limit, self.limit)).astype(np.float32)
        # Points are rows, so the matrix is transposed.
        points[:, :3] = points[:, :3] @ matrix.T
        if self.normals_columns is not None:
            columns = list(self.normals_columns)
            points[:, columns] = points[:, columns] @ matrix.T
        return points


@dataclass
class RandomUpAxis(PointTransform):
    """Turn a cloud whose up axis is `up_axis` so that a random one of `axes` points up instead.

    With `normals_columns`, the three channels of normals are turned too.
    """

    axes: str = "yz"
    up_axis: str = "y"
    normals_columns: tuple[int, int, int] | None = None

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Rotate by a quarter turn, or not at all."""
        # One of the axes that were chosen, which may be the one that points up already
        axis = self.axes[int(generator.integers(len(self.axes)))]
        points[:, :3] = turn_up_axis(points[:, :3], self.up_axis, axis)
        if self.normals_columns is not None:
            columns = list(self.normals_columns)
            points[:, columns] = turn_up_axis(points[:, columns], self.up_axis, axis)
        return points


@dataclass
class RandomFlip(PointTransform):
    """Mirror the cloud across each of the two axes of the ground, each with probability `p`.

    With `normals_columns`, the three channels of normals are mirrored too.
    """

    p: float = 0.5
    up_axis: str = "y"
    normals_columns: tuple[int, int, int] | None = None

    def __post_init__(self):
        super().__post_init__()
        one_of("up_axis", self.up_axis, AXES)

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Change signs of coordinates."""
        mirrored = np.where(generator.random(3) < self.p, np.float32(-1), np.float32(1))
        # What points up stays up.
        mirrored[AXES[self.up_axis]] = 1
        points[:, :3] *= mirrored
        if self.normals_columns is not None:
            points[:, list(self.normals_columns)] *= mirrored
        return points


@dataclass
class GlobalRotScaleTrans(PointTransform):
    """Turn, scale and move a street or room so that its ground stays where it is.

    It is turned about the up axis by up to `rotation` radians, scaled by `low` to `high` about the height of its
    ground, the first percentile, and moved along the ground by Gaussian noise of `translation_std`. With
    `normals_columns`, the three channels of normals are turned too.

    Source: the transform of this name in MMDetection3D, which scales about the sensor.
    """

    rotation: float = np.pi / 4
    low: float = 0.95
    high: float = 1.05
    translation_std: float = 0.2
    up_axis: str = "y"
    normals_columns: tuple[int, int, int] | None = None

    def __post_init__(self):
        super().__post_init__()
        self._turn = RandomRotation(self.up_axis, self.rotation, self.normals_columns)
        self._scale = RandomScale(self.low, self.high)

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Move the ground to height 0, turn and scale, and move it back."""
        self._turn.normals_columns = self.normals_columns
        up = AXES[self.up_axis]
        # The lowest point may be a stray one far below the ground.
        ground = np.percentile(points[:, up], 1).astype(np.float32)
        points[:, up] -= ground
        points = self._scale.apply(self._turn.apply(points, generator), generator)
        shift = generator.normal(0, self.translation_std, 3).astype(np.float32)
        # Back to its height, without noise.
        shift[up] = ground
        points[:, :3] += shift
        return points


@dataclass
class PointsRangeFilter(PointTransform):
    """Keep the points in a box, `point_cloud_range`: the lowest x, y and z, then the highest."""

    point_cloud_range: Sequence[float] = (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0)

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Select rows."""
        # Six numbers, the lowest three first
        low, high = np.array(self.point_cloud_range, np.float32).reshape(2, 3)
        kept = ((points[:, :3] >= low) & (points[:, :3] <= high)).all(axis=1)
        # An empty cloud would fail later, in a sampler that does not know of this box.
        if not kept.any():
            raise ValueError(f"none of {len(points)} points is in point_cloud_range {list(self.point_cloud_range)}")
        return points[kept]


@dataclass
class Jitter(PointTransform):
    """Add Gaussian noise of `std` to every point, at most `clip` along an axis."""

    std: float = 0.01
    clip: float = 0.05

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Add clipped noise to xyz."""
        # In float32, as float64 numbers would be rounded anyway.
        noise = generator.standard_normal((len(points), 3), dtype=np.float32) * np.float32(self.std)
        points[:, :3] += np.clip(noise, -self.clip, self.clip)
        return points


@dataclass
class RandomDropout(PointTransform):
    """Replace a random share of the points, up to `max_ratio`, by the first kept point.

    Source: random input dropout of PointNet++, Sec. 3.3.
    """

    max_ratio: float = 0.875

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Overwrite the dropped points."""
        # Each point is dropped with one probability, which is drawn anew for each cloud.
        dropped = generator.random(len(points)) < generator.uniform(0, self.max_ratio)
        points[dropped] = points[np.argmin(dropped)]  # the first point when all are dropped
        return points


@dataclass
class Shuffle(PointTransform):
    """Put the points in random order."""

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Permute the rows."""
        return generator.permutation(points)


@dataclass
class RandomSubsample(PointTransform):
    """Draw `num_points` points at random; a smaller cloud gives each point once before any is repeated."""

    num_points: int = 1024

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Select rows; the result has `num_points` of them."""
        return points.take(resample_index(len(points), self.num_points, generator), axis=0)


@dataclass
class FarthestSubsample(PointTransform):
    """Keep `num_points` evenly spread points, starting from the first; a smaller cloud is not changed.

    After `shuffle` the start is random. With `min_squared_norm`, points whose x²+y²+z² is no larger are ignored, as in
    the CUDA kernel of many released programs (there it is 1e-3).
    """

    num_points: int = 1024
    min_squared_norm: float | None = None

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Select rows in the order in which they are found."""
        if len(points) <= self.num_points:
            return points
        xyz = torch.from_numpy(points[None, :, :3])  # (1, num_points', 3)
        index = farthest_point_sample(xyz, self.num_points, min_squared_norm=self.min_squared_norm)
        return points[index[0].numpy()]


@dataclass
class CenterAndScale(PointTransform):
    """Move the mean of the points to the origin and scale them into the unit sphere.

    With `scale=False`, or if all points coincide, a cloud is only moved.
    """

    scale: bool = True

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Normalize xyz."""
        axes = np.ascontiguousarray(points[:, :3].T)  # (3, num_points)
        axes -= mean_point(axes).astype(np.float32)
        radius = largest_norm(axes) if self.scale else 0
        points[:, :3] = (axes / radius if radius > 0 else axes).T
        return points


@dataclass
class Compose(PointTransform):
    """Apply transforms one after the other, all from one generator."""

    transforms: list[Transform]

    def apply(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Run through the list."""
        for transform in self.transforms:
            points = transform(points, generator)
        return points


TRANSFORMS: dict[str, type[PointTransform]] = {
    "scale": RandomScale,
    "shift": RandomShift,
    "rotate": RandomRotation,
    "up": RandomUpAxis,
    "flip": RandomFlip,
    "rot_scale_trans": GlobalRotScaleTrans,
    "range": PointsRangeFilter,
    "jitter": Jitter,
    "dropout": RandomDropout,
    "shuffle": Shuffle,
    "subsample": RandomSubsample,
    "farthest": FarthestSubsample,
    "center": CenterAndScale,
}
"""Names for `build_transform`."""


def build_transform(spec: str | Iterable[str] | Mapping[str, Mapping]) -> Compose:
    """Build a chain of transforms from names, as given on a command line or in a JSON file.

    Args:
        spec: names in order, each with or without arguments: `["scale", "rotate:axis=z,limit=0.5", "jitter"]`; or a
            mapping from name to arguments: `{"scale": {"low": 0.9}, "jitter": {}}`.
    """
    # Either form keeps the order in which the transforms run.
    if isinstance(spec, Mapping):
        items = [(name, dict(arguments)) for name, arguments in spec.items()]
    else:
        items = [parse_transform(text) for text in ([spec] if isinstance(spec, str) else spec)]
    return Compose([build_named(TRANSFORMS, name, arguments) for name, arguments in items])


def parse_transform(text: str) -> tuple[str, dict]:
    """Split a text such as "rotate:axis=z,limit=0.5" into a name and arguments.

    Truth values may be written as in Python, or as in YAML and JSON.
    """
    name, _, rest = text.partition(":")
    arguments = {}
    # Commas in brackets separate the numbers of one setting.
    for part in filter(None, re.split(r",(?![^\[(]*[\])])", rest)):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"transform {text!r}: {part!r} is not a setting; expected name:key=value,key=value")
        try:
            # Numbers, True and None as in Python; it runs no code.
            arguments[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            word = value.strip()  # a bare word such as the axis
            # As a word, false would be taken for true.
            arguments[key.strip()] = {"true": True, "false": False, "null": None}.get(word, word)
    return name.strip(), arguments


def build_named(kinds: Mapping[str, type], name: str, arguments: Mapping[str, Any]) -> Any:
    """Return an object of the class that `kinds` has under a name, with arguments."""
    # Names come from command lines and files, so errors list what there is.
    one_of("transform", name, kinds)
    for setting in arguments:
        one_of(f"setting of {name}", setting, [field.name for field in fields(kinds[name])])
    return kinds[name](**arguments)
