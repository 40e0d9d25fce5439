"""Corruptions of point clouds: the fifteen of ModelNet40-C, each at five severities, for clouds of any size.

Source: Sun et al., "Benchmarking Robustness of 3D Point Cloud Recognition Against Common Corruptions", arXiv
2201.12296, and its program. Numbers of points are shares of the cloud here. `occlusion` and `lidar` start from meshes
there; their docstrings describe what replaces that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.spatial import ConvexHull

from hf_any3d.data.inputs import first_channel
from hf_any3d.data.options import one_of
from hf_any3d.data.point_arrays import rotation_matrix

SEVERITIES = (1, 2, 3, 4, 5)
# Points of a region or hole, as shares of the cloud: 100 and 30 of 1024 in ModelNet40-C.
_REGION, _HOLE = 100 / 1024, 30 / 1024
_CAMERA_DISTANCE, _LIDAR_DISTANCE = 3.0, 5.0  # in radii of the cloud
_LIDAR_ELEVATION = 22.5  # degrees
# Radius of the spherical flipping, in distances of the farthest point: larger values leave more points visible.
_FLIPPING_RADIUS = 100.0
_CONTROL_POINTS = 5  # along each axis of the box [-1, 1]^3


@dataclass
class Corrupted:
    """Result of a corruption."""

    xyz: np.ndarray  # (num_points', 3)
    index: np.ndarray | None = None  # (num_points',), whose colors and normals each point gets; None for its own
    matrix: np.ndarray | None = None  # (3, 3), linear map `xyz @ matrix` that normals follow


def occlusion(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Remove points that a camera does not see, 20 % of them at severity 1 and all at 5, the most distant first.

    The camera looks down from 30 to 60 degrees. ModelNet40-C renders meshes from five sides instead; here hidden
    points are found by spherical flipping (Katz et al., "Direct visibility of point sets", 2007).
    """
    camera = _viewpoint(generator, up, generator.uniform(30, 60), _CAMERA_DISTANCE)
    hidden = np.flatnonzero(~_visible(xyz, camera))
    distances = np.linalg.norm(xyz[hidden] - camera, axis=1)
    removed = hidden[np.argsort(-distances)][: round(len(hidden) * severity / 5)]
    kept = np.delete(np.arange(len(xyz)), removed)
    return Corrupted(xyz[kept], kept)


def lidar(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Keep visible points near the scan lines of a sensor, moved onto them; lines are 1 to 4 degrees apart."""
    step = np.radians((1.0, 1.5, 2.0, 3.0, 4.0)[severity - 1])
    sensor = _viewpoint(generator, up, _LIDAR_ELEVATION, _LIDAR_DISTANCE)
    index = np.flatnonzero(_visible(xyz, sensor))
    rays = xyz[index] - sensor  # (visible, 3)
    across = [axis for axis in range(3) if axis != up]
    level = np.linalg.norm(rays[:, across], axis=1)
    elevation = np.arctan2(rays[:, up], level)
    # The middle of the band of angles that a ray falls into.
    line = (np.floor((elevation - elevation.min()) / step) + 0.5) * step + elevation.min()
    # Half of each band, so half of the points if they are spread evenly.
    near = np.abs(elevation - line) <= step / 4
    # A cloud that the lines miss stays whole instead of nearly empty.
    if near.sum() < min(4, len(index)):
        near = np.ones(len(index), bool)
    distance = np.linalg.norm(rays, axis=1)
    # Points move along an arc to the line's elevation, at the same distance from the sensor. The tiny number avoids 0
    # / 0 straight above or below it.
    flat = rays[:, across] / np.maximum(level, np.finfo(np.float64).tiny)[:, None]  # (visible, 2)
    moved = np.empty_like(rays)
    moved[:, across] = flat * (distance * np.cos(line))[:, None]
    moved[:, up] = distance * np.sin(line)
    return Corrupted((sensor + moved)[near], index[near])


def density_inc(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Keep one to five regions as they are and thin out everything else, so that half of the points remain.

    For clouds of the usual size, start from twice as many points.
    """
    kept = []
    rest = np.arange(len(xyz))
    for _ in range(min(severity, len(rest))):
        # Half the share, since the cloud has twice as many points: a region has as many as in the other corruptions.
        region = _region(xyz, rest, _REGION / 2, generator)
        kept.append(region)
        rest = np.setdiff1d(rest, region)
    count = max(len(xyz) // 2, min(4, len(xyz))) - sum(map(len, kept))
    index = np.concatenate([*kept, generator.choice(rest, max(0, count), replace=False)])
    return Corrupted(xyz[index], index)


def density(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Remove three quarters of the points in one to five regions."""
    rest = np.arange(len(xyz))
    for _ in range(severity):
        region = _region(xyz, rest, _REGION, generator)
        rest = np.setdiff1d(rest, generator.choice(region, 3 * len(region) // 4, replace=False))
    return Corrupted(xyz[rest], rest)


def cutout(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Cut two to ten holes."""
    rest = np.arange(len(xyz))
    for _ in range((2, 3, 5, 7, 10)[severity - 1]):
        hole = _region(xyz, rest, _HOLE, generator)
        if len(rest) - len(hole) < min(4, len(xyz)):
            break
        rest = np.setdiff1d(rest, hole)
    return Corrupted(xyz[rest], rest)


def uniform(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Move each point by up to 0.01 to 0.05 along each axis."""
    return Corrupted(xyz + generator.uniform(-0.01 * severity, 0.01 * severity, xyz.shape))


def gaussian(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Add Gaussian noise of deviation 0.01 to 0.03."""
    return Corrupted(np.clip(xyz + generator.normal(0, 0.005 + 0.005 * severity, xyz.shape), -1, 1))


def impulse(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Move 1 in 30 to 1 in 10 points by 0.1 along each axis, in random directions."""
    count = _count(xyz, (30, 25, 20, 15, 10)[severity - 1])
    moved = xyz.copy()
    moved[generator.choice(len(xyz), count, replace=False)] += generator.choice([-0.1, 0.1], (count, 3))
    return Corrupted(moved)


def upsampling(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Add a fifth to as many points again, each within 0.05 of a point."""
    chosen = generator.choice(len(xyz), _count(xyz, (5, 4, 3, 2, 1)[severity - 1]), replace=False)
    added = xyz[chosen] + generator.uniform(-0.05, 0.05, (len(chosen), 3))
    return _extended(xyz, added, chosen, generator)


def background(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Add 1 in 45 to 1 in 20 points anywhere in the cube around the cloud."""
    count = _count(xyz, (45, 40, 35, 30, 20)[severity - 1])
    added = generator.uniform(-1, 1, (count, 3))
    return _extended(xyz, added, generator.integers(len(xyz), size=count), generator)


def rotation(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Rotate about all three axes, by 0 to 5 degrees at severity 1 and 12.5 to 17.5 at 5."""
    center = (2.5, 5.0, 7.5, 10.0, 15.0)[severity - 1]
    angles = np.radians(generator.uniform(center - 2.5, center + 2.5, 3) * generator.choice([-1, 1], 3))
    matrix = np.linalg.multi_dot([rotation_matrix(axis, angle) for axis, angle in enumerate(angles)])
    return Corrupted(xyz @ matrix, matrix=matrix)


def shear(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Shear across the up axis, by up to 0.1 at severity 1 and 0.2 to 0.3 at 5."""
    matrix = np.eye(3)
    factors = generator.uniform(0.05 * severity - 0.05, 0.05 * severity + 0.05, (3, 3))
    factors *= generator.choice([-1, 1], (3, 3))
    for target in range(3):
        # Columns of the matrix are the new axes, so the up axis keeps its column.
        if target != up:
            sources = [axis for axis in range(3) if axis != target]
            matrix[sources, target] = factors[sources, target]
    return Corrupted(xyz @ matrix, matrix=matrix)


def distortion(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Deform the space by moving 125 control points of a Bézier volume, by up to 10 to 50 % of its edge."""
    # The box has an edge of 2, and shifts are shares of an edge.
    shifts = 2 * generator.uniform(-0.1 * severity, 0.1 * severity, (*[_CONTROL_POINTS] * 3, 3))
    degree = _CONTROL_POINTS - 1
    # Bernstein polynomials of degree 4: their product over the three axes is the weight of a control point.
    binomials = np.array([1, 4, 6, 4, 1])
    share = np.clip((xyz + 1) / 2, 0, 1)[..., None]  # (points, 3, 1)
    power = np.arange(_CONTROL_POINTS)
    basis = binomials * share**power * (1 - share) ** (degree - power)  # (points, 3, 5)
    return Corrupted(
        xyz + np.einsum("ni,nj,nk,ijkc->nc", basis[:, 0], basis[:, 1], basis[:, 2], shifts, optimize=True)
    )


def distortion_rbf(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Deform the space by moving a grid of 125 points by 0.025 to 0.125, interpolated by multiquadric splines."""
    return Corrupted(_deformed(xyz, 0.025 * severity, "multiquadric", generator))


def distortion_rbf_inv(xyz: np.ndarray, severity: int, generator: np.random.Generator, up: int) -> Corrupted:
    """Deform the space by moving a grid of 125 points, interpolated by inverse multiquadric splines."""
    return Corrupted(_deformed(xyz, 0.025 * severity, "inverse_multiquadric", generator))


Corruption = Callable[[np.ndarray, int, np.random.Generator, int], Corrupted]
"""Called with xyz (num_points, 3) in the unit sphere, severity 1 to 5, a generator, and the number of the up axis."""
FAMILIES: dict[str, tuple[Corruption, ...]] = {
    "density": (occlusion, lidar, density_inc, density, cutout),
    "noise": (uniform, gaussian, impulse, upsampling, background),
    "transformation": (rotation, shear, distortion, distortion_rbf, distortion_rbf_inv),
}
CORRUPTIONS: dict[str, Corruption] = {
    corruption.__name__: corruption for family in FAMILIES.values() for corruption in family
}
"""Name -> function, with the names of ModelNet40-C's files."""


def corrupt(
    points: np.ndarray,
    name: str,
    severity: int,
    generator: np.random.Generator,
    *,
    features: Sequence[str] = ("xyz",),
    up_axis: str = "y",
) -> np.ndarray:
    """Corrupt a cloud (num_points, channels) of any position and size; lengths are relative to its radius.

    The channels are those of `features`, as in `PointCloudProcessor`. Colors stay with their points; normals follow
    rotation and shear, and are kept by the other corruptions. Those of density and noise change the number of points.
    """
    one_of("severity", severity, SEVERITIES)  # 0 would count as the highest
    # Corruptions are defined in the unit sphere; the result goes back to the cloud's place and size.
    xyz = np.asarray(points[:, :3], np.float64)
    center = xyz.mean(axis=0)
    # 1 for a cloud of equal points, whose radius is 0.
    radius = np.linalg.norm(xyz - center, axis=1).max() or 1.0
    changed = CORRUPTIONS[name]((xyz - center) / radius, severity, generator, "xyz".index(up_axis))
    channels = points[:, 3:] if changed.index is None else points[changed.index, 3:]
    if changed.matrix is not None and "normals" in features:
        # `channels` begins after xyz.
        first = first_channel(features, "normals") - 3
        channels = channels.copy()
        # Under a linear map, normals transform with its inverse transpose, which changes their length.
        normals = channels[:, first : first + 3] @ np.linalg.inv(changed.matrix).T
        channels[:, first : first + 3] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return np.concatenate([changed.xyz * radius + center, channels], axis=1).astype(np.float32)


def _viewpoint(generator: np.random.Generator, up: int, elevation: float, distance: float) -> np.ndarray:
    """Draw a point (3,) around the origin, `elevation` in degrees."""
    azimuth = generator.uniform(0, 2 * np.pi)
    height = np.radians(elevation)
    point = np.insert(np.cos(height) * np.array([np.cos(azimuth), np.sin(azimuth)]), up, np.sin(height))
    return distance * point


def _visible(xyz: np.ndarray, viewpoint: np.ndarray) -> np.ndarray:
    """Return which points (num_points,) are seen from a viewpoint: those on the hull of the flipped cloud."""
    if len(xyz) < 4:
        return np.ones(len(xyz), bool)
    rays = xyz - viewpoint
    distances = np.linalg.norm(rays, axis=1, keepdims=True)
    # Points are mirrored in a large sphere around the viewpoint: the nearest become the farthest, and those that
    # nothing hides are on the hull.
    flipped = rays + 2 * (_FLIPPING_RADIUS * distances.max() - distances) * rays / distances
    # Option QJ moves points slightly, for clouds in a plane.
    hull = ConvexHull(np.concatenate([flipped, np.zeros((1, 3))]), qhull_options="QJ").vertices
    # One more for the viewpoint itself, the last row of the hull's points.
    seen = np.zeros(len(xyz) + 1, bool)
    seen[hull] = True
    return seen[:-1]


def _extended(xyz: np.ndarray, added: np.ndarray, source: np.ndarray, generator: np.random.Generator) -> Corrupted:
    """Append points, in random order: some processors take the first points of a cloud."""
    order = generator.permutation(len(xyz) + len(added))
    index = np.concatenate([np.arange(len(xyz)), source])
    return Corrupted(np.concatenate([xyz, added])[order], index[order])


def _region(xyz: np.ndarray, rest: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Return those of the points `rest` that are nearest to a random one, as many as `share` of the whole cloud."""
    count = min(max(1, round(share * len(xyz))), len(rest))
    squares = ((xyz[rest] - xyz[generator.choice(rest)]) ** 2).sum(axis=1)
    # The whole order, as random numbers pick from it: a partition's order depends on the processor's instructions.
    return rest[np.argsort(squares, kind="stable")[:count]]


def _count(xyz: np.ndarray, divisor: int) -> int:
    return max(1, len(xyz) // divisor)


def _deformed(xyz: np.ndarray, length: float, kernel: str, generator: np.random.Generator) -> np.ndarray:
    """Move points (num_points, 3) with a grid whose points move by `length` in random directions."""
    line = np.linspace(-1, 1, _CONTROL_POINTS)
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    azimuth, polar = generator.uniform(-np.pi, np.pi, (2, len(grid)))
    directions = [np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)]
    shifts = length * np.stack(directions, axis=1)  # (125, 3)
    return xyz + RBFInterpolator(grid, shifts, kernel=kernel, epsilon=2.0, degree=1)(xyz)
