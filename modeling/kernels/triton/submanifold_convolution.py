"""Submanifold convolution as an implicit matrix product: rows are gathered tile by tile through the neighbor table.

Neither the gathered rows nor the products of single kernel positions are written to memory. Every sum has one order,
so results are the same in every run: gradients of the values are sums over the transposed table, those of the weights
sums over fixed parts of the voxels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_any3d.modeling.kernels.dispatch import operator, without_autocast
from hf_any3d.modeling.kernels.submanifold_convolution import POSITIONS
from hf_any3d.modeling.kernels.triton.settings import block, product_precision, widens

_VOXELS = 64
# Programs of the weight gradient that keep a large GPU busy; a fixed number, so that results don't depend on the GPU.
_PROGRAMS = 1024


@triton.jit
def _convolve_kernel(
    values,
    weight,
    bias,
    neighbors,
    result,
    voxels,
    in_channels: tl.constexpr,
    out_channels: tl.constexpr,
    weight_out: tl.constexpr,  # strides of the weight
    weight_position: tl.constexpr,
    weight_in: tl.constexpr,
    positions: tl.constexpr,
    has_bias: tl.constexpr,
    reverses: tl.constexpr,
    precision: tl.constexpr,
    widens: tl.constexpr,
    block_voxels: tl.constexpr,
    block_in: tl.constexpr,
    block_out: tl.constexpr,
):
    voxel = tl.program_id(0) * block_voxels + tl.arange(0, block_voxels)
    out = tl.program_id(1) * block_out + tl.arange(0, block_out)
    is_voxel, is_out = voxel < voxels, out < out_channels
    total = tl.zeros((block_voxels, block_out), dtype=tl.float32)
    for position in range(positions):
        # Positions opposite each other have numbers that sum to 26.
        entry = positions - 1 - position if reverses else position
        row = tl.load(neighbors + entry * voxels + voxel, mask=is_voxel, other=-1)
        is_row = row >= 0
        if tl.max(is_row.to(tl.int32), axis=0) > 0:  # voxels are in the order of their cells: most blocks lack some
            start = row.to(tl.int64)[:, None] * in_channels
            for first in range(0, in_channels, block_in):
                channel = first + tl.arange(0, block_in)
                is_in = channel < in_channels
                own = tl.load(values + start + channel[None, :], mask=is_row[:, None] & is_in[None, :], other=0.0)
                place = position * weight_position + channel[:, None] * weight_in + out[None, :] * weight_out
                kernel = tl.load(weight + place, mask=is_in[:, None] & is_out[None, :], other=0.0)
                if widens:
                    own, kernel = own.to(tl.float32), kernel.to(tl.float32)
                total = tl.dot(own, kernel, total, input_precision=precision)
    if has_bias:
        total += tl.load(bias + out, mask=is_out, other=0.0).to(tl.float32)[None, :]
    place = result + voxel.to(tl.int64)[:, None] * out_channels + out[None, :]
    tl.store(place, total.to(result.dtype.element_ty), mask=is_voxel[:, None] & is_out[None, :])


@triton.jit
def _weight_gradient_kernel(
    gradient,
    values,
    neighbors,
    parts,  # (parts, out_channels, positions, in_channels)
    voxels,
    part_voxels,
    in_channels: tl.constexpr,
    out_channels: tl.constexpr,
    positions: tl.constexpr,
    precision: tl.constexpr,
    widens: tl.constexpr,
    block_voxels: tl.constexpr,
    block_in: tl.constexpr,
    block_out: tl.constexpr,
):
    position, part = tl.program_id(0), tl.program_id(2)
    blocks_in = tl.cdiv(in_channels, block_in)
    out = tl.program_id(1) // blocks_in * block_out + tl.arange(0, block_out)
    channel = tl.program_id(1) % blocks_in * block_in + tl.arange(0, block_in)
    is_out, is_in = out < out_channels, channel < in_channels
    total = tl.zeros((block_out, block_in), dtype=tl.float32)
    first = part * part_voxels
    for start in range(first, tl.minimum(first + part_voxels, voxels), block_voxels):
        voxel = start + tl.arange(0, block_voxels)
        row = tl.load(neighbors + position * voxels + voxel, mask=voxel < voxels, other=-1)
        is_row = row >= 0
        if tl.max(is_row.to(tl.int32), axis=0) > 0:
            place = voxel.to(tl.int64)[:, None] * out_channels + out[None, :]
            own = tl.load(gradient + place, mask=is_row[:, None] & is_out[None, :], other=0.0)
            place = row.to(tl.int64)[:, None] * in_channels + channel[None, :]
            other = tl.load(values + place, mask=is_row[:, None] & is_in[None, :], other=0.0)
            if widens:
                own, other = own.to(tl.float32), other.to(tl.float32)
            total = tl.dot(tl.trans(own), other, total, input_precision=precision)
    place = ((part * out_channels + out[:, None]).to(tl.int64) * positions + position) * in_channels
    tl.store(parts + place + channel[None, :], total, mask=is_out[:, None] & is_in[None, :])


@operator("triton_convolution")
def convolve(values: Tensor, weight: Tensor, bias: Tensor | None, neighbors: Tensor) -> Tensor:
    """Convolve voxels with a 3³ kernel.

    Args:
        values: `(voxels, in_channels)`.
        weight: `(out_channels, 27, in_channels)`, of the same dtype.
        bias: `(out_channels,)` or None.
        neighbors: `(27, voxels)` int32, see `NeighborTable.dense`.

    Returns:
        `(voxels, out_channels)`.
    """
    return _launch(values, weight, bias, neighbors, reverses=False)


@torch.library.impl("hf_any3d::triton_convolution", "Meta")
def _result_shape(values: Tensor, weight: Tensor, bias: Tensor | None, neighbors: Tensor) -> Tensor:
    return values.new_empty(len(values), len(weight))


@operator("triton_convolution_values_gradient")
def _values_gradient(gradient: Tensor, weight: Tensor, neighbors: Tensor) -> Tensor:
    # The neighbor at a position has this voxel at the opposite one.
    return _launch(gradient, weight.transpose(0, 2), None, neighbors, reverses=True)


@torch.library.impl("hf_any3d::triton_convolution_values_gradient", "Meta")
def _values_gradient_shape(gradient: Tensor, weight: Tensor, neighbors: Tensor) -> Tensor:
    return gradient.new_empty(len(gradient), weight.shape[2])


@operator("triton_convolution_weight_gradient")
def _weight_gradient(gradient: Tensor, values: Tensor, neighbors: Tensor) -> Tensor:
    gradient, values, neighbors = gradient.contiguous(), values.contiguous(), neighbors.contiguous()
    voxels, out_channels, in_channels = len(values), gradient.shape[1], values.shape[1]
    block_out, block_in = block(out_channels, 16, 64), block(in_channels, 16, 64)
    tiles = triton.cdiv(out_channels, block_out) * triton.cdiv(in_channels, block_in)
    count = max(1, min(triton.cdiv(voxels, _VOXELS), triton.cdiv(_PROGRAMS, POSITIONS * tiles)))
    # Whole blocks, so that no block belongs to two parts.
    part_voxels = triton.cdiv(triton.cdiv(voxels, count), _VOXELS) * _VOXELS
    parts = values.new_empty(count, out_channels, POSITIONS, in_channels, dtype=torch.float32)
    with torch.cuda.device_of(values):
        _weight_gradient_kernel[POSITIONS, tiles, count](
            gradient,
            values,
            neighbors,
            parts,
            voxels,
            part_voxels,
            in_channels=in_channels,
            out_channels=out_channels,
            positions=POSITIONS,
            precision=product_precision(),
            widens=widens(values),
            block_voxels=_VOXELS,
            block_in=block_in,
            block_out=block_out,
        )
    return parts.sum(dim=0).to(values.dtype)


@torch.library.impl("hf_any3d::triton_convolution_weight_gradient", "Meta")
def _weight_gradient_shape(gradient: Tensor, values: Tensor, neighbors: Tensor) -> Tensor:
    return values.new_empty(gradient.shape[1], POSITIONS, values.shape[1])


def _launch(values: Tensor, weight: Tensor, bias: Tensor | None, neighbors: Tensor, reverses: bool) -> Tensor:
    values, neighbors = values.contiguous(), neighbors.contiguous()
    (voxels, in_channels), out_channels = values.shape, len(weight)
    block_out = block(out_channels, 16, 64)
    result = values.new_empty(voxels, out_channels)
    with torch.cuda.device_of(values):
        _convolve_kernel[triton.cdiv(voxels, _VOXELS), triton.cdiv(out_channels, block_out)](
            values,
            weight,
            # A pointer that is never read.
            values if bias is None else bias.contiguous(),
            neighbors,
            result,
            voxels,
            in_channels=in_channels,
            out_channels=out_channels,
            weight_out=weight.stride(0),
            weight_position=weight.stride(1),
            weight_in=weight.stride(2),
            positions=POSITIONS,
            has_bias=bias is not None,
            reverses=reverses,
            precision=product_precision(),
            widens=widens(values),
            block_voxels=_VOXELS,
            block_in=block(in_channels, 16, 64),
            block_out=block_out,
        )
    return result


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    values, weight, _, neighbors = inputs
    ctx.save_for_backward(values, weight, neighbors)


@without_autocast
def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    values, weight, neighbors = ctx.saved_tensors
    needs_values, needs_weight, needs_bias, _ = ctx.needs_input_grad
    return (
        _values_gradient(gradient, weight, neighbors) if needs_values else None,
        _weight_gradient(gradient, values, neighbors) if needs_weight else None,
        gradient.sum(dim=0) if needs_bias else None,
        None,
    )


torch.library.register_autograd("hf_any3d::triton_convolution", _backward, setup_context=_keep)
