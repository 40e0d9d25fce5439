"""Patches of clouds, and the mini-PointNet that encodes them, shared by several models."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers import PreTrainedConfig

from hf_any3d.modeling import kernels
from hf_any3d.modeling.layers.direct_weights import is_unmodified
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_ops import farthest_point_sample, gather_points, group, in_full_precision, knn
from hf_any3d.modeling.point_ops.grouping import check_channels


@dataclass
class Patches:
    """Patches of a batch of clouds."""

    # `(batch, groups, neighbors, channels)`, xyz relative to the center in the units of the input, further channels
    # unchanged; the nearest point, the center itself, comes first.
    neighborhoods: torch.Tensor
    centers: torch.Tensor  # (batch, groups, 3), in the order in which they were sampled
    center_index: torch.Tensor  # (batch, groups), among the input points
    neighbor_index: torch.Tensor | None = None  # (batch, groups, neighbors); None if not kept

    @property
    def points(self) -> torch.Tensor:
        """Coordinates of the neighborhoods' points in the cloud, `(batch, groups, neighbors, 3)`."""
        return self.neighborhoods[..., :3] + self.centers.unsqueeze(2)

    def select(self, index: torch.Tensor) -> "Patches":
        """Return some patches of each cloud, by their numbers `(batch, some)`."""
        # `(batch, 1)` broadcasts against the index `(batch, some)`, so that one indexing selects from every field.
        rows = torch.arange(len(index), device=index.device).unsqueeze(1)
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return Patches(**{name: None if tensor is None else tensor[rows, index] for name, tensor in tensors.items()})


def group_patches(
    points: torch.Tensor, num_groups: int, group_size: int, sampling_min_squared_norm: float | None = None
) -> Patches:
    """Group clouds `(batch, points, channels)` into patches around centers from farthest point sampling.

    With `sampling_min_squared_norm`, points this close to the origin are never sampled as centers, except for the
    first point (released programs: 1e-3, from their CUDA kernel).

    Source: Point-BERT, Sec. 3.1.
    """
    xyz = points[..., :3].contiguous()
    # From the first point on, so that patches depend on which point comes first.
    index = farthest_point_sample(xyz, num_groups, min_squared_norm=sampling_min_squared_norm)
    return patches_around(points, index, group_size)


def patches_around(points: torch.Tensor, center_index: torch.Tensor, group_size: int) -> Patches:
    """Group the nearest points of centers `center_index (batch, groups)` into patches of clouds, xyz first."""
    xyz = points[..., :3].contiguous()
    centers = gather_points(xyz, center_index)  # (batch, groups, 3)
    neighbor_index = knn(centers, xyz, group_size)  # (batch, groups, neighbors)
    neighbors = group(points, neighbor_index)  # (batch, groups, neighbors, channels)
    offsets = neighbors[..., :3] - centers.unsqueeze(2)
    # Colors and normals do not depend on the place.
    if points.shape[2] > 3:
        offsets = torch.cat([offsets, neighbors[..., 3:]], dim=-1)
    return Patches(offsets, centers, center_index, neighbor_index)


def cut_patches(points: torch.Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> Patches:
    """Check clouds `(batch, points, in_channels)` and group them into the patches that a config describes."""
    check_channels(points, config.in_channels)
    points = in_full_precision(points, dtype)
    return group_patches(points, config.num_groups, config.group_size, config.sampling_min_squared_norm)


class PatchEncoder(nn.Module):
    """Two shared layers, a maximum that is concatenated to every point, two shared layers, a maximum.

    Shape: `(batch, groups, neighbors, in_channels)` to `(batch, groups, width)`. `hidden_widths` are the output
    channels of the first three layers, or of four with a third layer before the first maximum (PointGPT's larger
    sizes); `bias` is of layers before a norm, which cancels it. With `pooled_width`, the last maximum has so many
    channels, and a final layer maps them to `width`.

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
        lifted, *between, own, joined = hidden_widths
        self.lift = nn.Linear(in_channels, lifted, bias=bias)
        self.lift_norm = nn.BatchNorm1d(lifted)
        self.deepen = nn.Linear(lifted, between[0], bias=bias) if between else None
        self.deepen_norm = nn.BatchNorm1d(between[0]) if between else None
        self.widen = nn.Linear(between[0] if between else lifted, own)
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
        rows = in_precision_of(self, neighborhoods.reshape(-1, channels))  # (batch * groups * k, channels)
        # The same two layers for every point of every patch.
        rows = self.lift_norm(self.lift(rows)).relu_()
        if self.deepen is not None and self.deepen_norm is not None:
            rows = self.deepen_norm(self.deepen(rows)).relu_()
        rows = self.widen(rows)
        patch_max = rows.view(-1, k, rows.shape[-1]).amax(dim=1)  # (batch * groups, own)
        # An adapter or a quantized layer must be called on the concatenation that it was made for.
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
        # Quantized layers take at most three axes. Unlike amax, max does not keep the rows for the backward pass.
        pooled = self.out(rows.flatten(0, 1)).max(dim=1).values  # (batch * groups, pooled_width)
        return self._project(pooled.unflatten(0, rows.shape[:2]))

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        return pooled if self.project is None else self.project(pooled)
