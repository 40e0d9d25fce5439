"""Hand-made numbers that describe the whole of a shape, whatever its size and place, in the order of `_SETS`.

- `extents`: lengths of the bounding box along the axes of the cloud.
- `eigenvalues`: spreads along the principal axes, and linearity, planarity, sphericity, omnivariance and entropy of
  the covariance (Weinmann et al., "Semantic point cloud interpretation based on optimal neighborhoods, relevant
  features and efficient classifiers", 2015); how steep the first and the last axis of the horizontal plane are.
- `moments`: standard deviation and skewness along each axis.
- `pair_distances`: the shape distribution D2, distances of random pairs of points (Osada et al., "Shape
  distributions", 2002), and their vertical and horizontal parts.
- `center_distances`: the shape distribution D1, distances to the center.
- `heights`: a histogram along the up axis, and one over height and distance to the vertical axis through the center:
  shells and sectors (Ankerst et al., "3D shape histograms for similarity search and classification", 1999).
- `normals`, where they exist: how steep the surface is, an extended Gaussian image around the up axis (Horn,
  "Extended Gaussian images", 1984), and the angles between the normals of pairs of points.

The unit of lengths is the root mean square distance to the center. Histograms share a value between the two nearest
bins, so that rounding does not move a count, and gradients exist.
"""

import math

import torch
from torch import Tensor

BINS = 12
HEIGHT_BINS, RADIUS_BINS = 6, 4
NORMAL_BINS = 8
# A point's partners are so many 1024ths of the cloud after it: multiples of the golden ratio, which spread over any
# order of points.
_SHARES = (633, 242, 874, 483)
_EPS = 1e-6


def count_descriptors(normals: bool = False) -> int:
    """Return the number of descriptors of a cloud."""
    return 3 + 11 + 6 + 3 * BINS + BINS + BINS + HEIGHT_BINS * RADIUS_BINS + (2 * NORMAL_BINS if normals else 0)


def describe(points: Tensor, up_axis: str = "y", normals: bool = False) -> Tensor:
    """Compute the descriptors of clouds: `(batch, count_descriptors(normals))`, each between about -3 and 3.

    Points `(batch, points, channels)` are in full precision, xyz first; with `normals` these are channels 3 to 5.
    """
    # To the center, at a root mean square distance of 1. Squares of any scan stay within the range of float32.
    xyz = points[..., :3] - points[..., :3].mean(dim=1, keepdim=True)
    xyz = xyz / xyz.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    xyz = xyz / xyz.square().sum(-1).mean(1).clamp(min=1e-12).sqrt()[:, None, None]
    up = "xyz".index(up_axis)
    sides = {"x": slice(1, 3), "y": slice(0, 3, 2), "z": slice(0, 2)}[up_axis]  # a list would be sent to the device
    # Here and below a little is added, as the root has an infinite derivative at 0.
    height, radius = xyz[..., up], xyz[..., sides].square().sum(-1).add(_EPS).sqrt()  # (batch, points) each
    first = xyz.unsqueeze(1)  # (batch, 1, points, 3)
    pairs = _partners(xyz) - first  # (batch, pairs, points, 3)
    vertical = pairs[..., up].abs().flatten(1)  # (batch, pairs * points)
    horizontal = pairs[..., sides].square().sum(-1).add(_EPS).sqrt().flatten(1)
    distance = pairs.square().sum(-1).add(_EPS).sqrt().flatten(1)
    deviation = xyz.square().mean(1).clamp(min=_EPS).sqrt()  # (batch, 3)
    rows = _memberships(height, -2.0, 2.0, HEIGHT_BINS)  # (batch, points, height bins)
    columns = _memberships(radius, 0.0, 2.0, RADIUS_BINS)
    described = [
        xyz.amax(1) - xyz.amin(1),
        _eigenvalue_features(xyz, sides),
        torch.cat([deviation, (xyz / deviation.unsqueeze(1)).pow(3).mean(1).clamp(-3, 3)], dim=-1),  # and skewness
        histogram(distance, 0.0, 3.0, BINS),
        histogram(vertical, 0.0, 3.0, BINS),
        histogram(horizontal, 0.0, 3.0, BINS),
        histogram(xyz.square().sum(-1).add(_EPS).sqrt(), 0.0, 2.0, BINS),
        histogram(height, -2.0, 2.0, BINS),
        (rows.transpose(1, 2) @ columns / xyz.shape[1]).flatten(1),
    ]
    if normals:
        directions = torch.nn.functional.normalize(points[..., 3:6], dim=-1)
        facing = (_partners(directions) * directions.unsqueeze(1)).sum(-1).abs().flatten(1)
        described += [
            histogram(directions[..., up].abs(), 0.0, 1.0, NORMAL_BINS),
            histogram(facing, 0.0, 1.0, NORMAL_BINS),
        ]
    return torch.cat(described, dim=-1)


def histogram(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Return the shares of values in bins, `(batch, values)` to `(batch, bins)`; values beyond count at the ends."""
    return _memberships(values, low, high, bins).mean(dim=1)


def _memberships(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Return how much each value belongs to each bin, `(..., bins)`; the shares of a value sum to 1."""
    place = ((values - low) * ((bins - 1) / (high - low))).clamp(0, bins - 1)
    centers = torch.arange(bins, device=values.device, dtype=values.dtype)
    return (1 - (place.unsqueeze(-1) - centers).abs()).clamp(min=0)


def _partners(values: Tensor) -> Tensor:
    """Return for each point some others, the same ones by number in all clouds: `(batch, pairs, points, channels)`."""
    count = values.shape[1]
    # In whole numbers, so that a program can be exported for clouds of any size; slices at them would fix the size.
    places = torch.arange(count, device=values.device)
    steps = [1 + count * share // 1024 for share in _SHARES]
    twice = torch.cat([values, values], dim=1)
    return torch.stack([twice[:, places + step] for step in steps], dim=1)


def _eigenvalue_features(xyz: Tensor, sides: slice) -> Tensor:
    covariance = xyz.transpose(1, 2) @ xyz / xyz.shape[1]  # (batch, 3, 3)
    values = symmetric_eigenvalues(covariance).clamp(min=0)
    values = values / values.sum(-1, keepdim=True).clamp(min=_EPS)
    spread = (values + _EPS).sqrt()  # (batch, 3), the largest first
    large, middle, small = spread.unbind(-1)
    entropy = -(values * (values + _EPS).log()).sum(-1)
    a, mixed, _, b = covariance[:, sides, sides].flatten(1).unbind(1)
    # Eigenvalues of the horizontal part of the covariance, in closed form.
    half = ((a - b).square() / 4 + mixed.square() + _EPS).sqrt()
    wide = (a + b) / 2 + half
    narrow = ((a + b) / 2 - half).clamp(min=0)
    others = [
        (large - middle) / large,
        (middle - small) / large,
        small / large,
        (values + _EPS).log().mean(-1).exp(),
        entropy,
        (narrow + _EPS).sqrt() / (wide + _EPS).sqrt(),
        mixed,
        (a + b).clamp(min=0),
    ]
    return torch.cat([spread, torch.stack(others, dim=-1)], dim=-1)


def symmetric_eigenvalues(matrices: Tensor) -> Tensor:
    """Return the eigenvalues of symmetric matrices `(batch, 3, 3)`, the largest first.

    In closed form (Smith, "Eigenvalues of a symmetric 3 x 3 matrix", 1961): exported formats have no solver.
    """
    mean = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)  # (batch,)
    centered = matrices - mean[:, None, None] * torch.eye(3, dtype=matrices.dtype, device=matrices.device)
    size = (centered.square().sum((-2, -1)) / 6 + 1e-12).sqrt()
    a, b, c = (centered / size[:, None, None]).unbind(-2)
    determinant = (a * torch.linalg.cross(b, c)).sum(-1)
    # Away from the ends, where the derivative of the arc cosine is infinite.
    angle = (determinant / 2).clamp(-1 + 1e-6, 1 - 1e-6).acos() / 3
    largest = mean + 2 * size * angle.cos()
    smallest = mean + 2 * size * (angle + 2 * math.pi / 3).cos()
    # The sum of the eigenvalues is the trace.
    return torch.stack([largest, 3 * mean - largest - smallest, smallest], dim=-1)
