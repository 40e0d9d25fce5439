"""Group clouds into patches: sampled centres and their nearest points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
