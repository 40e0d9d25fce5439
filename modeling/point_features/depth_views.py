"""Depth maps of point clouds from several sides, for vision models (PointCLIP, arXiv 2112.02413, Sec. 3.1)."""

import torch
from torch import Tensor, nn

VIEWS = 6
"""Front, right, back and left around the up axis, top, bottom."""
_GRID = 64
_FAINTEST = 0.2


def depth_views(points: Tensor, size: int, views: int = VIEWS, up_axis: str = "y") -> Tensor:
    """Draw the depth of clouds from several sides, without perspective: near points are bright, nothing is 0.

    Points `(batch, points, channels)`, xyz first, are drawn on a coarse grid, whose gaps between points are closed as
    PointCLIP V2 does (arXiv 2211.11682, Sec. 3.1), and which is then enlarged. Returns the first of the six views,
    `(batch, views, size, size)` from 0 to 1.
    """
    grid = min(_GRID, size)
    low = points[..., :3].amin(1, keepdim=True)
    high = points[..., :3].amax(1, keepdim=True)
    xyz = points[..., :3] - (low + high) / 2
    # A cloud of equal points has no radius.
    xyz = xyz / xyz.square().sum(-1).amax(1).clamp(min=1e-24).sqrt()[:, None, None]
    # The other two axes in the order that makes right, up and near a right-handed system.
    y, z, x = (xyz[..., ("xyz".index(up_axis) + shift) % 3] for shift in range(3))
    right = torch.stack([x, -z, -x, z, x, x], dim=1)  # (batch, 6, points)
    up = torch.stack([y, y, y, y, -z, z], dim=1)
    near = torch.stack([z, x, -z, -x, y, -y], dim=1)  # toward the viewer
    # Rows of an image are counted downward.
    column, row = (((place[:, :views] + 1) / 2 * (grid - 1)).round().long() for place in (right, -up))
    # Above 0 for the farthest points too, as empty places are 0.
    value = _FAINTEST + (1 - _FAINTEST) * (near[:, :views] + 1) / 2
    empty = points.new_zeros(*column.shape[:2], grid * grid)
    drawn = empty.scatter_reduce(2, row * grid + column, value.to(points.dtype), "amax").unflatten(2, (grid, grid))
    closed = nn.functional.max_pool2d(drawn, 3, stride=1, padding=1)
    # Only empty places take the value of a neighbor.
    drawn = torch.where(drawn > 0, drawn, closed)
    return nn.functional.interpolate(drawn, (size, size), mode="bilinear", align_corners=False)
