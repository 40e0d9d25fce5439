"""Eigenvectors of graphs between points, and the order of points along a curve that cuts them into small graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_any3d.modeling.config_checks import check_numbers
from hf_any3d.modeling.point_ops.geometry import normalize_centers
from hf_any3d.modeling.point_ops.serialization import curve_codes

DISTANCES = ("exact", "expanded")
"""Distances between points: by their differences, or, of more than 25 points, by |a|² + |b|² - 2ab."""
SCALES = ("cloud", "batch")
"""What the smallest distance is taken of that is the unit of all others."""
_CELLS = 100
"""Cells of a curve along a radius of the cloud."""


@dataclass(frozen=True)
class GraphSettings:
    """Settings of the graphs of a cloud.

    Args:
        local_size: Points of a local graph; what remains at the end of the curve is a smaller one.
        distances: One of `DISTANCES`. Expanded distances of a point to itself are noise of rounding, which then
            decides the unit of all distances.
        scale_over: One of `SCALES`.
        curve_cell: Edge of the curve's cells in units of the input, counted from the origin; cells with a negative
            coordinate come last. None for cells of a hundredth of the cloud's radius from its lowest corner.
    """

    local_size: int
    distances: str = "exact"
    scale_over: str = "cloud"
    curve_cell: float | None = None

    def __post_init__(self):
        check_numbers(1, local_size=self.local_size)
        check_numbers(0, above=True, curve_cell=self.curve_cell)


class Spectrum(NamedTuple):
    """Eigenvectors of the graphs of clouds, `(batch, points, points)`, in columns with ascending eigenvalues.

    `whole` are of the graph of all points; `local` of those of consecutive points along the curve, as blocks on the
    diagonal; `inverse (batch, points)` is the place of each point along the curve.
    """

    whole: Tensor
    local: Tensor
    inverse: Tensor


def curve_keys(centers: Tensor, cell: float | None = None) -> Tensor:
    """Return the position of points `(batch, points, 3)` along a Z-order curve, `(batch, points)`."""
    if cell is None:
        centers = normalize_centers(centers)
        steps = ((centers - centers.amin(dim=1, keepdim=True)) * _CELLS).long()
    else:
        # Sixteen bits of the two's complement, so that negative numbers follow all positive ones. The factor, not the
        # cell, is exact in binary.
        steps = (centers * (1 / cell)).trunc().long() & 0xFFFF
    return curve_codes(steps.flatten(0, 1), "z-trans", 16).view(centers.shape[:2])


def graph_laplacian(distance: Tensor, scale: Tensor) -> Tensor:
    """Return the normalized Laplacians `(…, points, points)` of complete graphs with loops of weight 1.

    The weight of an edge is `scale` by its length, at most 1.
    """
    ratio = distance / scale
    loops = torch.eye(distance.shape[-1], dtype=torch.bool, device=distance.device)
    # Without the bound, points at the same place would have an edge of infinite weight.
    weight = torch.where(loops, ratio + 1, ratio.clamp_min(1)).reciprocal()
    root = (weight.sum(dim=-1) + 1e-6).rsqrt()
    laplacian = torch.eye(len(loops), dtype=weight.dtype, device=weight.device)
    return laplacian - root.unsqueeze(-1) * weight * root.unsqueeze(-2)


def pair_distances(points: Tensor, how: str = "exact") -> Tensor:
    """Compute the pairwise distances of `(…, points, 3)`, in a way named in `DISTANCES`: `(…, points, points)`."""
    if how == "exact":
        wide = points.double()
        return (wide.unsqueeze(-2) - wide.unsqueeze(-3)).norm(dim=-1)
    return torch.cdist(points, points).double()


def smallest_distance(distance: Tensor, over: str = "cloud") -> Tensor:
    """Return the smallest positive distance `(batch, …)` over one of `SCALES`, with as many axes; 1 if none is."""
    axes = tuple(range(1 if over == "cloud" else 0, distance.ndim))
    least = torch.where(distance > 0, distance, torch.inf).amin(dim=axes, keepdim=True)
    return torch.where(least.isinf(), 1.0, least)


@torch.no_grad()
def graph_spectrum(centers: Tensor, settings: GraphSettings) -> Spectrum:
    """Compute the eigenvectors, with any signs, of a cloud's graphs: that of all points, and local ones."""
    # In float64: gaps between eigenvalues are as small as 1e-5, so that float32 would not determine their vectors.
    batch, count = centers.shape[:2]
    order = curve_keys(centers, settings.curve_cell).argsort(dim=1, stable=True)
    # The inverse of a permutation is the order of its values.
    inverse = order.argsort(dim=1)
    along = centers.gather(1, order.unsqueeze(-1).expand_as(centers))
    # All whole groups at once, and the points that remain as a smaller one.
    size = min(settings.local_size, count)
    full = count // size * size
    parts = [along[:, :full].unflatten(1, (-1, size)), along[:, full:].unsqueeze(1)]
    distances = [pair_distances(part, settings.distances) for part in parts if part.shape[2]]
    flat = torch.cat([part.flatten(1) for part in distances], dim=1)
    scale = smallest_distance(flat, settings.scale_over)[..., None, None]
    local = centers.new_zeros(batch, count, count)
    first = 0
    for part in distances:
        for vectors in torch.linalg.eigh(graph_laplacian(part, scale)).eigenvectors.unbind(dim=1):
            last = first + vectors.shape[-1]
            local[:, first:last, first:last] = vectors
            first = last
    distance = pair_distances(centers, settings.distances)
    laplacian = graph_laplacian(distance, smallest_distance(distance, settings.scale_over))
    return Spectrum(torch.linalg.eigh(laplacian).eigenvectors.to(centers.dtype), local, inverse)
