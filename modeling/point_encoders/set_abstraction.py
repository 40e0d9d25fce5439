"""PointNet's shared layers and PointNet++'s set abstraction, for the baselines and for 3DETR."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from hf_any3d.modeling.kernels.dispatch import is_exporting
from hf_any3d.modeling.kernels.pooled_patches import folded
from hf_any3d.modeling.layers.direct_weights import is_unmodified
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.modeling.point_ops import ball_query, farthest_point_sample, gather_points, group, knn

# Numbers of the widest layer in a part of the rows that stays in a core's cache.
_PART = 1 << 18
NEIGHBOR_ORDERS = ("first", "nearest")


class PointNetLayer(nn.Module):
    """A linear layer with batch norm and ReLU for every row.

    The norm subtracts the mean, so a bias before it has no effect; some released weights have one.
    """

    activation = staticmethod(torch.relu)

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform features `(..., inputs)` of points to `(..., outputs)`."""
        # BatchNorm1d takes rows: its statistics are over all points of all clouds.
        rows = self.linear(hidden_states.flatten(0, -2))  # (rows, outputs)
        return self.activation(self.norm(rows)).view(*hidden_states.shape[:-1], -1)


def shared_layers(sizes: Iterable[int], bias: bool = False) -> nn.ModuleList:
    """Build the layers between consecutive sizes."""
    return nn.ModuleList(PointNetLayer(inputs, outputs, bias) for inputs, outputs in pairwise(sizes))


class Groups(NamedTuple):
    """Centers of a level, `(batch, centers, 3)`, with the features of their groups, `(batch, centers, width)`.

    Their `index` is among the points; the mask `(batch, centers)` is False for centers that a cloud has too few points
    for, None if there are none.
    """

    centers: torch.Tensor
    features: torch.Tensor
    index: torch.Tensor
    mask: torch.Tensor | None


def sample_centers(
    xyz: torch.Tensor, num_centers: int, mask: torch.Tensor | None = None, min_squared_norm: float | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sample centers with farthest point sampling from clouds `(batch, points, 3)` of any number of points.

    The mask `(batch, points)` is False for padding; `min_squared_norm` is as of `farthest_point_sample`. Returns
    indices `(batch, num_centers)`, and a mask of the same shape, or None if all clouds have that many points. Where it
    is False, the index is that of a cloud's first point.
    """
    start = 0
    places = xyz
    if mask is not None:
        start = mask.long().argmax(dim=1)  # the first point of each cloud
        # Copies of the point that is taken first are never the farthest.
        places = torch.where(mask.unsqueeze(2), xyz, gather_points(xyz, start.unsqueeze(1)))
    # Exported graphs are for clouds of at least that many points.
    count = num_centers if is_exporting() else min(num_centers, xyz.shape[1])
    index = farthest_point_sample(places, count, start_index=start, min_squared_norm=min_squared_norm)
    if mask is None and count == num_centers:
        return index, None
    # All clouds of a batch get as many rows; those that there are no points for are marked below.
    index = torch.cat([index, index[:, :1].expand(-1, num_centers - count)], dim=1)
    if mask is None:
        # (batch,), the points that each cloud has
        points = torch.full((len(xyz),), count, device=xyz.device)
    else:
        points = mask.sum(dim=1)
    valid = torch.arange(num_centers, device=xyz.device) < points.unsqueeze(1)
    return torch.where(valid, index, index[:, :1]), valid


def ball_neighbors(
    centers: torch.Tensor, xyz: torch.Tensor, radius: float, count: int, order: str, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Find points in the ball around each center: indices `(batch, centers, count)`.

    Of a crowded ball the "nearest" points are kept, or with `order="first"` the first ones of the cloud, as in the
    released programs of PointNet++ and its followers; a ball with fewer is filled up with its first one. The mask
    `(batch, points)` is False for padding.
    """
    if mask is not None:  # out of reach of every ball
        beyond = xyz.amax(dim=(1, 2)) + 4 * radius  # (batch,)
        xyz = torch.where(mask.unsqueeze(2), xyz, beyond[:, None, None])
    if order == "first":
        return ball_query(centers, xyz, radius, count)
    # A small cloud may have fewer points than a ball takes.
    available = min(count, xyz.shape[1])
    index, distance = knn(centers, xyz, available, return_distances=True)
    # What is beyond the radius is replaced by the nearest point, the center itself; a maximum does not change by it.
    index = torch.where(distance <= radius**2, index, index[..., :1])
    return torch.cat([index, index[..., :1].expand(-1, -1, count - available)], dim=2)


class SetAbstraction(nn.Module):
    """A level of PointNet++: centers, the points in a ball around each, shared layers, and their maximum.

    With `scale_offsets`, offsets from the center are divided by the radius; see `ball_neighbors` for the order, and
    `farthest_point_sample` for `min_squared_norm`.

    Source: PointNet++, Sec. 3.2.
    """

    def __init__(
        self,
        inputs: int,
        num_centers: int,
        radius: float,
        num_neighbors: int,
        widths: Sequence[int],
        *,
        scale_offsets: bool = False,
        neighbor_order: str = "first",
        min_squared_norm: float | None = None,
    ):
        super().__init__()
        self.num_centers = num_centers
        self.radius = radius
        self.num_neighbors = num_neighbors
        self.scale_offsets = scale_offsets
        self.neighbor_order = neighbor_order
        self.min_squared_norm = min_squared_norm
        self.layers = shared_layers((3 + inputs, *widths))

    def forward(self, xyz: torch.Tensor, features: torch.Tensor, mask: torch.Tensor | None = None) -> Groups:
        """Group points `(batch, points, 3)` with features `(batch, points, inputs)`, and encode the groups.

        The mask `(batch, points)` is False for padding; None without padding.
        """
        center_index, valid = sample_centers(xyz, self.num_centers, mask, self.min_squared_norm)
        centers = gather_points(xyz, center_index)
        index = ball_neighbors(centers, xyz, self.radius, self.num_neighbors, self.neighbor_order, mask)
        return Groups(centers, self.encode(xyz, features, centers, index), center_index, valid)

    def encode(
        self, xyz: torch.Tensor, features: torch.Tensor, centers: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Encode the groups of points `index (batch, centers, neighbors)`: `(batch, centers, widths[-1])`."""
        features = in_precision_of(self, features)
        layers = [module for layer in self.layers for module in (layer.linear, layer.norm)]
        needs_gradient = torch.is_grad_enabled() and (
            features.requires_grad or any(weight.requires_grad for weight in self.parameters())
        )
        if self.training or needs_gradient or torch.compiler.is_compiling() or not is_unmodified(*layers):
            hidden_states = self._inputs(xyz, features, centers, index)
            for layer in self.layers:
                hidden_states = layer(hidden_states)
            return hidden_states.amax(dim=2)
        return self._encode_folded(xyz, features, centers, index)

    def _encode_folded(
        self, xyz: torch.Tensor, features: torch.Tensor, centers: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Encode groups in evaluation, as `encode` does."""
        # The norms become part of the weights, and the rows of some centers at a time go through all layers while
        # they are in the cache.
        weights = [folded(layer.linear, layer.norm) for layer in self.layers]
        # The widest rows decide how many centers fit into the cache.
        widest = max(len(bias) for _, bias in weights)
        size = max(1, _PART // (index.shape[2] * widest))
        pooled = []
        for cloud in range(len(index)):
            for start in range(0, index.shape[1], size):
                part = slice(start, start + size)
                one = slice(cloud, cloud + 1)
                rows = self._inputs(xyz[one], features[one], centers[one, part], index[one, part])
                rows = rows.flatten(0, 2).to(weights[0][0].dtype)
                for weight, bias in weights[:-1]:
                    rows = torch.addmm(bias, rows, weight.T).relu_()
                # The last shift is the same for all neighbors and the ReLU monotonic: both follow the maximum.
                weight, bias = weights[-1]
                rows = (rows @ weight.T).view(-1, index.shape[2], len(bias)).amax(dim=1)
                pooled.append(rows.add_(bias).relu_())
        return torch.cat(pooled).view(*index.shape[:2], -1).to(features.dtype)

    def _inputs(
        self, xyz: torch.Tensor, features: torch.Tensor, centers: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Return offsets and features of the neighbors, `(batch, centers, neighbors, 3 + inputs)`."""
        # In full precision: differences of near points lose most digits in half precision.
        offsets = group(xyz, index) - centers.unsqueeze(2)
        if self.scale_offsets:
            offsets = offsets / self.radius
        # Relative to the center, so that the same shape gives the same features wherever it is.
        return torch.cat([offsets.to(features.dtype), group(features, index)], dim=-1)
