"""Residual blocks of a tokenizer stage in evaluation, beside those in training of `pooled_blocks`.

The norms become part of the weights, the first layer multiplies the summands of its input before they are added, and
every part of the rows stays in the cache from its first layer to the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_any3d.modeling.kernels.neighborhoods import Neighborhoods
from hf_any3d.modeling.kernels.pooled_blocks import ResidualBlock, blocks_are_plain, pooled_blocks_fused
from hf_any3d.modeling.kernels.pooled_patches import folded
from hf_any3d.modeling.kernels.residual_blocks import add_product, multiply
from hf_any3d.modeling.layers.forward_contract import is_unmodified


def stage_is_plain(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> bool:
    """Return whether blocks can be fused: unchanged, in training in full precision or in evaluation without gradients.

    No compiler unrolls the parts of an evaluation.
    """
    if not blocks or any(norm.training for block in blocks for norm in (block.reduce_norm, block.expand_norm)):
        return blocks_are_plain(neighborhoods, blocks)
    layers = [layer for one in blocks for layer in (one.reduce, one.reduce_norm, one.expand, one.expand_norm)]
    inputs = (
        neighborhoods.features,
        neighborhoods.offsets,
        *(weight for layer in layers for weight in layer.parameters()),
    )
    needs_gradient = torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
    # Norms without running statistics use those of the batch in evaluation, too.
    has_statistics = all(block.reduce_norm.track_running_stats for block in blocks) and all(
        block.expand_norm.track_running_stats for block in blocks
    )
    # Other devices compute all of it in half precision.
    precise = (torch.float32, torch.float64, *([torch.bfloat16] if neighborhoods.device.type == "cpu" else []))
    is_plain = is_unmodified(*layers) and all(block.reduce.weight.dtype in precise for block in blocks)
    is_plain = is_plain and has_statistics
    return is_plain and not needs_gradient and not torch.compiler.is_compiling()


def stage_fused(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> Tensor:
    """Compute `pooled_blocks_plain` in training or in evaluation."""
    if blocks[0].reduce_norm.training:
        return pooled_blocks_fused(neighborhoods, blocks)
    return _with_running_statistics(neighborhoods, blocks)


@torch.no_grad()
def _with_running_statistics(neighborhoods: Neighborhoods, blocks: Sequence[ResidualBlock]) -> Tensor:
    dtype = torch.promote_types(blocks[0].reduce.weight.dtype, torch.float32)
    rounded = neighborhoods.features.dtype == torch.bfloat16  # half precision under autocast
    features = neighborhoods.features.to(dtype)
    neighborhoods = Neighborhoods(
        features, neighborhoods.neighbors, neighborhoods.centers, neighborhoods.offsets, neighborhoods.frequencies
    )
    weights = [(*folded(one.reduce, one.reduce_norm), *folded(one.expand, one.expand_norm)) for one in blocks]
    count, k = neighborhoods.neighbors.shape
    pooled = features.new_empty(count, neighborhoods.width)
    last = len(blocks) - 1
    for part, reduced in zip(neighborhoods.parts(), neighborhoods.reduced_rows(weights[0][0]), strict=True):
        rows = neighborhoods.rows(part)  # (centers * k, width)
        for number, (reduce, reduce_bias, expand, expand_bias) in enumerate(weights):
            # The first product comes with the part, as a sum of products of few rows.
            hidden = (multiply(rows, reduce.T, rounded) if number else reduced).add_(reduce_bias)
            add_product(rows, hidden.relu_(), expand.T, rounded)
            if number < last:
                rows.add_(expand_bias).relu_()
        # The last shift is the same for all neighbors and the ReLU monotonic: both are applied after the maximum.
        pooled[part] = rows.view(-1, k, neighborhoods.width).amax(dim=1).add_(weights[last][3]).relu_()
    return pooled.to(blocks[0].reduce.weight.dtype)
