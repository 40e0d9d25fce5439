"""Places of the voxels of a batch: from clouds to voxels, what the blocks of a stage share, and back to the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from hf_any3d.modeling.kernels.submanifold_convolution import NeighborTable
from hf_any3d.modeling.point_ops import PatchGroups, grid_pool, neighbor_table, patch_table, scatter_mean, serialize
from hf_any3d.modeling.point_ops.geometry import FlatGeometry
from hf_any3d.modeling.point_ops.serialization import curve_depths
from hf_any3d.modeling.point_ops.voxels import GridPool
from hf_any3d.modeling.point_transformer_v3.configuration_point_transformer_v3 import PointTransformerV3Config

Clouds = torch.Tensor | Sequence[torch.Tensor]
"""`(clouds, points, channels)`, or one `(points, channels)` for each cloud."""


class Batch:
    """Clouds of a batch one after the other, and the way back to the layout they came in.

    `point_mask (clouds, points)` is False where a cloud is filled up; None if none is, or for a list.
    """

    def __init__(self, points: Clouds, point_mask: torch.Tensor | None = None):
        if isinstance(points, torch.Tensor):
            self.shape = points.shape[:2]
            if point_mask is None:
                point_mask = torch.ones(self.shape, dtype=torch.bool, device=points.device)
            self.mask = point_mask.to(points.device).bool()
        else:
            if point_mask is not None:
                raise ValueError("point_mask: expected None for a list of clouds, which need no filling")
            lengths = torch.tensor([len(cloud) for cloud in points], device=points[0].device)
            self.shape = (len(points), int(lengths.max()))
            self.mask = torch.arange(self.shape[1], device=lengths.device) < lengths[:, None]
        self.counts = self.mask.sum(dim=1).tolist()
        if not all(self.counts):
            raise ValueError(f"cloud {self.counts.index(0)} has no points; expected one or more")
        sizes = torch.tensor(self.counts, device=self.mask.device)
        self.cloud = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)

    def flatten(self, values: Clouds, name: str) -> torch.Tensor:
        """Return `(points of all clouds, …)` of values in the layout of the points."""
        if isinstance(values, torch.Tensor):
            return values[self.mask]
        if [len(cloud) for cloud in values] != self.counts:
            raise ValueError(f"{name} has {[len(cloud) for cloud in values]} rows; expected {self.counts}")
        return torch.cat(list(values))

    def unflatten(self, values: torch.Tensor) -> torch.Tensor:
        """Return `(clouds, points, channels)` of `(points of all clouds, channels)`, filled up with zeros."""
        # No cloud is filled up, so nothing has to be scattered.
        if len(values) == self.mask.numel():
            return values.unflatten(0, self.shape)
        return values.new_zeros(*self.shape, values.shape[-1]).masked_scatter(self.mask[..., None], values)


@dataclass
class Voxels:
    """Places of the voxels of a stage, and what its blocks share."""

    config: PointTransformerV3Config
    stage: int
    coord: torch.Tensor  # (voxels, 3), float32
    grid_coord: torch.Tensor  # (voxels, 3), int64
    cloud: torch.Tensor  # (voxels,), the number of each voxel's cloud
    counts: tuple[int, ...]  # voxels of each cloud
    turns: Sequence[int]  # order of the curves
    inverse: torch.Tensor | None = None  # (voxels of the stage before,), the voxel that each was pooled to
    depths: torch.Tensor | None = None  # (clouds,), bits of the curves of each cloud; None for what its voxels need
    context: torch.Tensor | None = None  # (1, condition_size), the data set that the clouds are from
    # What the convolution of a block reads in place of its input, by whether it is in the decoder and its number;
    # blocks leave it for the next one, unpoolings for the first one.
    sources: dict[tuple[bool, int], torch.Tensor] = field(default_factory=dict, repr=False)
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def neighbors(self) -> NeighborTable:
        """Pairs of voxels that touch."""
        return neighbor_table(self.grid_coord, self.cloud, len(self.counts))

    @cached_property
    def wide_neighbors(self) -> NeighborTable:
        """Pairs of voxels within the stem's kernel of 5³."""
        return neighbor_table(self.grid_coord, self.cloud, len(self.counts), reach=2)

    def source_of(self, in_decoder: bool, number: int) -> torch.Tensor | None:
        """Return what the convolution of a block reads, `(voxels, channels)`; None for the block's input."""
        # Kept for a backward pass, which may run a block again; otherwise it would only take memory.
        if torch.is_grad_enabled():
            return self.sources.get((in_decoder, number))
        return self.sources.pop((in_decoder, number), None)

    @cached_property
    def curve_bits(self) -> torch.Tensor:
        """Bits of the curves of each cloud, `(clouds,)`."""
        if self.depths is not None:
            return self.depths
        config = self.config
        plus_one = self.config.depth_rule == "max_plus_one"
        return curve_depths(self.grid_coord, self.cloud, len(self.counts), config.depth_of_batch, plus_one)

    @property
    def patch_size(self) -> int:
        """Voxels of a patch."""
        size = self.config.patch_sizes[self.stage]
        return min(size, *self.counts) if self.config.equal_patches else size

    def groups(self, as_one: bool) -> PatchGroups:
        """Patches as groups of equal shape, or as one group."""
        # Blocks of a stage share their patches and curves, which are computed once.
        if ("groups", as_one) not in self._cache:
            self._cache["groups", as_one] = PatchGroups(self.counts, self.patch_size, self.coord.device, as_one)
        return self._cache["groups", as_one]

    def order(self, block: int) -> torch.Tensor:
        """Voxels in the order of the curve of a block, `(voxels,)`."""
        # Blocks take the curves in turns, so that each sees patches cut differently.
        curve = self.config.curves[self.turns[block % len(self.turns)]]
        if ("order", curve) not in self._cache:
            count = len(self.counts)
            sorted_voxels = serialize(self.grid_coord, self.cloud, count, [curve], depths=self.curve_bits)
            self._cache["order", curve] = sorted_voxels.order[0]
        return self._cache["order", curve]

    def arrange(self, block: int, groups: PatchGroups | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the voxels in the order of the groups for a block, and the place of each voxel in that order."""
        order = self.order(block)
        # Both are kept in `_cache`, too, so that no other object can get their addresses.
        key = ("arranged", order.data_ptr(), id(groups))
        if key not in self._cache:
            arranged = order if groups is None else order[groups.arranged]
            places = torch.arange(len(arranged), device=arranged.device)
            # The inverse of a permutation, without sorting.
            self._cache[key] = arranged, torch.empty_like(arranged).scatter_(0, arranged, places)
        return self._cache[key]

    def varlen(self, prompts: int = 0) -> dict[str, Any]:
        """Boundaries of the patches for attention of variable length, whose queries are not repeated."""
        if ("varlen", prompts) in self._cache:
            return self._cache["varlen", prompts]
        pad, _, starts = patch_table(self.counts, self.patch_size)
        if prompts:
            # Prompts follow the voxels among the keys; every patch reads all of them.
            extra = sum(self.counts) + torch.arange(prompts)
            sizes = starts.diff()
            pad = torch.cat([part for own in pad.split(sizes.tolist()) for part in (own, extra)])
            starts = torch.cat([starts[:1], (sizes + prompts).cumsum(0).to(starts.dtype)])
        ends = [0]
        first = 0
        for count in self.counts:
            # Queries are voxels without borrowed copies, so the last patch of a cloud has fewer queries than keys.
            ends += [
                first + min(place, count) for place in range(self.patch_size, count + self.patch_size, self.patch_size)
            ]
            first += count
        queries = torch.tensor(ends, dtype=torch.int32)
        boundaries = self._cache["varlen", prompts] = {
            "pad": pad.to(self.coord.device),
            "cu_seq_lens_q": queries.to(self.coord.device),
            "cu_seq_lens_k": starts.to(self.coord.device),
            "max_length_q": int(queries.diff().max()),
            "max_length_k": int(starts.diff().max()),
        }
        return boundaries

    @cached_property
    def geometry(self) -> FlatGeometry:
        """Cells of the voxels, for guided adapters."""
        return FlatGeometry(self.grid_coord, self.coord, self.cloud, len(self.counts))

    def rotation(self, frequencies: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `(voxels, 3, frequencies)` of rotary positions, for coordinates that are not augmented."""
        if "rotation" not in self._cache:
            self._cache["rotation"] = rotation_of(self.coord, frequencies, theta)
        return self._cache["rotation"]

    def pool_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average values `(voxels of the stage before, channels)` over each voxel of this stage."""
        assert self.inverse is not None, "the first stage is not pooled"
        return scatter_mean(values[None], self.inverse[None], len(self.cloud))[0]

    def pool(self, turns: Sequence[int]) -> Voxels:
        """Return the voxels of the next stage, whose curves take turns as drawn."""
        count = len(self.counts)
        stride = self.config.pooling_strides[self.stage]
        depths = None
        if self.config.pooling == "grid":
            pooled = grid_pool(self.grid_coord, self.cloud, count, stride)
        else:
            # Each stage takes the upper bits of the first one's codes, of which a pooling drops as many as a step of
            # the stride has. A cloud of fewer bits is not pooled.
            bits = stride.bit_length() - 1
            dropped = torch.where(self.curve_bits >= bits, bits, 0)  # (clouds,)
            depths = self.curve_bits - dropped
            pooled = grid_pool(self.grid_coord >> dropped[self.cloud, None], self.cloud, count, 1)
            # In the order of the first of this stage's curves, to which the drawn turns refer.
            first = [self.config.curves[self.turns[0]]]
            order = serialize(pooled.grid_coord, pooled.cloud, count, first, depths=depths)
            inverse = order.inverse[0][pooled.inverse]
            pooled = GridPool(pooled.grid_coord[order.order[0]], pooled.cloud, inverse)
            turns = [self.turns[turn] for turn in turns]
        # The mean of its voxels, not the middle of the cell, as in the released program.
        coord = scatter_mean(self.coord[None], pooled.inverse[None], len(pooled.cloud))[0]
        counts = tuple(torch.bincount(pooled.cloud, minlength=count).tolist())
        return Voxels(
            self.config,
            self.stage + 1,
            coord,
            pooled.grid_coord,
            pooled.cloud,
            counts,
            turns,
            pooled.inverse,
            depths,
            self.context,
        )


def rotation_of(coord: torch.Tensor, frequencies: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines `(voxels, 3, frequencies)` of coordinates `(voxels, 3)` times falling frequencies."""
    # In float64, so that frequencies are the same on every device.
    steps = torch.arange(frequencies, dtype=torch.float64, device=coord.device) / frequencies
    angles = coord[..., None] * (theta**-steps).to(coord.dtype)
    return angles.cos(), angles.sin()


def rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of channels of `(voxels, heads, channels)`: a chunk for each axis, its halves are the pairs."""
    chunks = heads.to(cosines.dtype).unflatten(-1, (3, 2, -1))  # (voxels, heads, axes, halves, frequencies)
    u, v = chunks.unbind(dim=-2)
    # The same for all heads.
    cosines = cosines[:, None]
    sines = sines[:, None]
    # The halves of an axis stay next to each other, as the released weights expect.
    rotated = torch.stack([u * cosines - v * sines, v * cosines + u * sines], dim=-2)
    return rotated.flatten(-3)


def follow(inverse: torch.Tensor, batch: Batch, of_point: torch.Tensor) -> tuple[Batch, torch.Tensor]:
    """Return the layout of the original points, and the voxel of each."""
    counts = torch.tensor(batch.counts, device=of_point.device)
    inverse = inverse.to(of_point.device)
    if inverse.shape[:1] != counts.shape or inverse.ndim != 2 or (inverse.amax(dim=1) >= counts).any():
        raise ValueError(
            f"inverse has shape {tuple(inverse.shape)} and numbers up to {int(inverse.max())}; expected "
            f"({len(counts)}, original points) with numbers below those of the points, {batch.counts}"
        )
    original = Batch(inverse, inverse >= 0)
    # Numbers of points start at 0 in each cloud; `of_point` has those of all clouds in one list.
    first = counts.cumsum(0) - counts
    return original, of_point[original.flatten(inverse + first[:, None], "inverse")]
