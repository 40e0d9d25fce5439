"""Mini-PointNet that turns a patch of points into a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hf_any3d.modeling import kernels
from hf_any3d.modeling.layers.forward_contract import is_unmodified
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, group, knn


@dataclass
class Patches:
    """Patches of a batch of clouds.

    Args:
        neighborhoods: `(batch, groups, neighbors, channels)`, xyz relative to the centre in the units of the input,
            further channels unchanged; the nearest point, the centre itself, comes first.
        centers: `(batch, groups, 3)`, in the order in which they were sampled.
        center_index: `(batch, groups)`, the indices of the centres among the input points.
    """

    neighborhoods: torch.Tensor
    centers: torch.Tensor
    center_index: torch.Tensor

    @property
    def points(self) -> torch.Tensor:
        """Coordinates of the neighbourhoods' points in the cloud, `(batch, groups, neighbors, 3)`."""
        return self.neighborhoods[..., :3] + self.centers.unsqueeze(2)


def group_patches(
    points: torch.Tensor, num_groups: int, group_size: int, sampling_min_squared_norm: float | None = None
) -> Patches:
    """Group clouds into patches around centres from farthest point sampling.

    Args:
        points: `(batch, points, channels)`, xyz first.
        num_groups: Patches per cloud.
        group_size: Points per patch.
        sampling_min_squared_norm: Points this close to the origin are never sampled as centres, except for the
            first point (released programs: 1e-3, from their CUDA kernel); None samples from all points.

    Raises:
        ValueError: If a cloud has fewer than `num_groups` or `group_size` points.

    Source: Point-BERT, Sec. 3.1.
    """
    count = points.shape[1] if points.ndim == 3 else 0
    if count < max(num_groups, group_size):
        raise ValueError(
            f"points has shape {tuple(points.shape)}; expected (batch, points, channels) with at least "
            f"{max(num_groups, group_size)} points for num_groups={num_groups}, group_size={group_size}"
        )
    xyz = points[..., :3].contiguous()
    index = farthest_point_sample(xyz, num_groups, min_squared_norm=sampling_min_squared_norm)
    centers = gather_points(xyz, index)  # (batch, groups, 3)
    neighbors = group(points, knn(centers, xyz, group_size))  # (batch, groups, neighbors, channels)
    offsets = neighbors[..., :3] - centers.unsqueeze(2)
    if points.shape[2] > 3:
        offsets = torch.cat([offsets, neighbors[..., 3:]], dim=-1)
    return Patches(offsets, centers, index)


class PatchEncoder(nn.Module):
    """Two shared layers, a maximum that is concatenated to every point, two shared layers, a maximum.

    Shape: `(batch, groups, neighbors, in_channels)` to `(batch, groups, width)`.

    Args:
        in_channels: Channels of a point: 3 for xyz, more with colours.
        width: Channels of a token.
        hidden_widths: Output channels of the first, second and third layer.
        bias: Whether layers before a norm have biases, which the norm cancels.
        pooled_width: Channels of the last maximum, if a final layer maps them to `width`; None for `width` and no
            final layer.

    Raises:
        ValueError: If there are not three hidden widths.

    Source: Point-BERT, Sec. 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        hidden_widths: Sequence[int] = (128, 256, 512),
        bias: bool = True,
        pooled_width: int | None = None,
    ):
        super().__init__()
        if len(hidden_widths) != 3:
            raise ValueError(f"patch_widths={tuple(hidden_widths)}; expected three widths")
        lifted, own, joined = hidden_widths
        self.lift = nn.Linear(in_channels, lifted, bias=bias)
        self.lift_norm = nn.BatchNorm1d(lifted)
        self.widen = nn.Linear(lifted, own)
        self.join = nn.Linear(2 * own, joined, bias=bias)
        self.join_norm = nn.BatchNorm1d(joined)
        self.out = nn.Linear(joined, width if pooled_width is None else pooled_width)
        self.project = None if pooled_width is None else nn.Linear(pooled_width, width)

    def forward(self, neighborhoods: torch.Tensor) -> torch.Tensor:
        """Encode patches; see the class."""
        return self._project(kernels.pooled_patches(neighborhoods, self))

    def point_features(self, neighborhoods: torch.Tensor) -> torch.Tensor:
        """Compute features of every point in its patch, `(batch, groups, neighbors, hidden_widths[-1])`."""
        batch, groups, k, channels = neighborhoods.shape
        rows = neighborhoods.reshape(-1, channels).to(self.lift.weight.dtype)  # (batch * groups * k, channels)
        rows = self.widen(self.lift_norm(self.lift(rows)).relu_())
        patch_max = rows.view(-1, k, rows.shape[-1]).amax(dim=1)  # (batch * groups, own)
        if not is_unmodified(self.join):
            joined = torch.cat([patch_max.repeat_interleave(k, dim=0), rows], dim=1)  # (batch * groups * k, 2 * own)
            return self.join_norm(self.join(joined)).relu_().view(batch, groups, k, -1)
        # The joined layer is linear: the term of the patch maximum is computed once per patch, not for each point.
        patch_weight, point_weight = self.join.weight.chunk(2, dim=1)
        shared = nn.functional.linear(patch_max, patch_weight, self.join.bias).unsqueeze(1)
        rows = nn.functional.linear(rows, point_weight).view(-1, k, shared.shape[-1]).add_(shared).flatten(0, 1)
        return self.join_norm(rows).relu_().view(batch, groups, k, -1)

    def pool(self, rows: torch.Tensor) -> torch.Tensor:
        """Pool the output of `point_features` into patch tokens `(batch, groups, width)`."""
        # Unlike amax, max does not keep the rows for the backward pass.
        return self._project(self.out(rows).max(dim=2).values)

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        return pooled if self.project is None else self.project(pooled)
