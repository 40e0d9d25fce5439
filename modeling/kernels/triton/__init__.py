"""Triton implementations for GPUs: each computes what its plain twin does, one file an operation.

This module names them for the table of `hf_any3d.modeling.kernels` and decides which calls they support; it imports
triton only when one is called. With TRITON_INTERPRET=1, set before triton is imported, they run on the CPU: slowly,
for tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_any3d.modeling.kernels.farthest_point_sample import sample_with
from hf_any3d.modeling.kernels.knn import checked_search
from hf_any3d.modeling.kernels.pooled_patches import MiniPointNet, norms_can_be_folded
from hf_any3d.modeling.kernels.submanifold_convolution import NeighborTable
from hf_any3d.modeling.kernels.triton.settings import DTYPES

MOST_NEIGHBORS = 64
"""Neighbors of a query that the search keeps in registers."""
MOST_POINTS, WIDEST_POINT, MOST_LIFTED = 128, 64, 256
"""Points of a patch, channels of a point and of its first layer, that are in one tile."""


def farthest_point_sample_triton(
    points: Tensor, num_samples: int, start_index: int | Tensor, min_squared_norm: float | None, tie_rule: str
) -> Tensor:
    """Compute `farthest_point_sample_plain` in one launch; the same indices."""
    from hf_any3d.modeling.kernels.triton.farthest_point_sample import sample

    return sample_with(sample, points, num_samples, start_index, min_squared_norm, tie_rule)


def knn_triton(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    """Compute `knn_plain` without distances in memory; the same indices and distances."""
    from hf_any3d.modeling.kernels.triton.knn import search

    with torch.no_grad():
        return search(*checked_search(query, points, k, method), k)


def supports_search(query: Tensor, points: Tensor, k: int, method: str) -> bool:
    """Return whether few neighbors are searched, by squared differences."""
    return method in ("auto", "exact") and k <= MOST_NEIGHBORS


def submanifold_convolution_triton(
    values: Tensor, weight: Tensor, bias: Tensor | None, table: NeighborTable
) -> Tensor:
    """Compute `submanifold_convolution_plain` as products of gathered tiles; saves only its inputs."""
    from hf_any3d.modeling.kernels.triton.submanifold_convolution import convolve

    return convolve(values, weight.flatten(1, 3), bias, table.dense(len(values)))


def supports_convolution(values: Tensor, weight: Tensor, bias: Tensor | None, table: NeighborTable) -> bool:
    """Return whether values and weights have one dtype that the kernel multiplies, it is 3³, and there are voxels."""
    is_small = weight.shape[1] == 3
    return is_small and values.dtype in DTYPES and weight.dtype == values.dtype and len(values) > 0


def pooled_patches_triton(patches: Tensor, layers: MiniPointNet) -> Tensor:
    """Compute `pooled_patches_plain` in evaluation, in two launches and a product."""
    from hf_any3d.modeling.kernels.triton.pooled_patches import encode

    return encode(patches, layers)


def supports_patches(patches: Tensor, layers: MiniPointNet) -> bool:
    """Return whether norms can be folded, and patches and the first layer are small enough for one program."""
    if not norms_can_be_folded(patches, layers):
        return False
    own = layers.lift.weight
    fits = patches.shape[2] <= MOST_POINTS and patches.shape[3] <= WIDEST_POINT and len(own) <= MOST_LIFTED
    return fits and patches.numel() > 0 and own.dtype in DTYPES
