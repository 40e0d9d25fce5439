"""A mini-PointNet in evaluation: rows of points stay on the chip between its layers and maxima.

Two kernels, and one product of torch between them: the points of some patches through the first two layers to the
first maximum; that maximum through its half of the third layer, once for each patch; the points again through the
first layer, and through the others to the second maximum. Norms are part of the weights. Reads are the points and the
weights, writes the two maxima; layer by layer each row of hundreds of channels is written and read four times.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_any3d.modeling.kernels.dispatch import autocast_disabled
from hf_any3d.modeling.kernels.pooled_patches import MiniPointNet, folded
from hf_any3d.modeling.kernels.triton.settings import block, product_precision, widens

# Rows of a program: one patch of 64 points, or several smaller ones.
_ROWS = 64


@triton.jit
def _rows(patches, k: tl.constexpr, block_patches: tl.constexpr, block_points: tl.constexpr):
    """Compute the patch and the row of each point of a program, and whether there is such a point."""
    line = tl.arange(0, block_patches * block_points)
    patch, point = tl.program_id(0) * block_patches + line // block_points, line % block_points
    return patch, patch.to(tl.int64) * k + point, (patch < patches) & (point < k)


@triton.jit
def _store_maxima(
    rows,  # (block_patches * block_points, block_columns) float32
    is_row,
    bias,
    result,
    column,
    patches,
    columns: tl.constexpr,
    block_patches: tl.constexpr,
    block_points: tl.constexpr,
):
    """Write the maximum over the points of each patch, plus the bias, to `result` `(patches, columns)`."""
    # Rows that fill up the tile must not win.
    rows = tl.where(is_row[:, None], rows, float("-inf"))
    most = tl.max(tl.reshape(rows, (block_patches, block_points, column.shape[0])), axis=1)
    most += tl.load(bias + column, mask=column < columns, other=0.0)[None, :]
    patch = tl.program_id(0) * block_patches + tl.arange(0, block_patches)
    place = patch.to(tl.int64)[:, None] * columns + column[None, :]
    mask = (patch < patches)[:, None] & (column < columns)[None, :]
    tl.store(result + place, most.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _lift(
    points,
    lift,
    lift_bias,
    row,
    is_row,
    hidden,
    channels: tl.constexpr,
    lifted: tl.constexpr,
    block_channels: tl.constexpr,
):
    """Compute some channels of the first layer for points, `(rows, channels)`, in float32."""
    channel = tl.arange(0, block_channels)
    is_channel, is_hidden = channel < channels, hidden < lifted
    own = tl.load(
        points + row[:, None] * channels + channel[None, :], mask=is_row[:, None] & is_channel[None, :], other=0.0
    )
    place = hidden[None, :] * channels + channel[:, None]
    weight = tl.load(lift + place, mask=is_channel[:, None] & is_hidden[None, :], other=0.0)
    bias = tl.load(lift_bias + hidden, mask=is_hidden, other=0.0)
    return tl.maximum(tl.dot(own, weight, input_precision="ieee") + bias[None, :], 0.0)


@triton.jit
def _first_maximum_kernel(
    points,  # (patches, k, channels) float32
    lift,  # (lifted, channels) float32
    lift_bias,
    weight,  # (columns, lifted)
    bias,  # (columns,) float32
    result,  # (patches, columns) float32
    patches,
    k: tl.constexpr,
    channels: tl.constexpr,
    lifted: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
    widens: tl.constexpr,
    block_patches: tl.constexpr,
    block_points: tl.constexpr,
    block_channels: tl.constexpr,
    block_lifted: tl.constexpr,
    block_columns: tl.constexpr,
):
    patch, row, is_row = _rows(patches, k, block_patches, block_points)
    column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    is_column = column < columns
    rows = tl.zeros((block_patches * block_points, block_columns), dtype=tl.float32)
    for first in range(0, lifted, block_lifted):
        number = first + tl.arange(0, block_lifted)
        hidden = _lift(points, lift, lift_bias, row, is_row, number, channels, lifted, block_channels)
        place = column[None, :] * lifted + number[:, None]
        matrix = tl.load(weight + place, mask=(number < lifted)[:, None] & is_column[None, :], other=0.0)
        hidden = hidden.to(matrix.dtype)
        if widens:
            hidden, matrix = hidden.to(tl.float32), matrix.to(tl.float32)
        rows = tl.dot(hidden, matrix, rows, input_precision=precision)
    _store_maxima(rows, is_row, bias, result, column, patches, columns, block_patches, block_points)


@triton.jit
def _second_maximum_kernel(
    points,
    lift,
    lift_bias,
    through,  # (joined, lifted)
    shared,  # (patches, joined) float32
    weight,  # (columns, joined)
    bias,
    result,
    patches,
    k: tl.constexpr,
    channels: tl.constexpr,
    lifted: tl.constexpr,
    joined: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
    widens: tl.constexpr,
    block_patches: tl.constexpr,
    block_points: tl.constexpr,
    block_channels: tl.constexpr,
    block_lifted: tl.constexpr,
    block_joined: tl.constexpr,
    block_columns: tl.constexpr,
):
    patch, row, is_row = _rows(patches, k, block_patches, block_points)
    number = tl.arange(0, block_lifted)
    hidden = _lift(points, lift, lift_bias, row, is_row, number, channels, lifted, block_channels)
    hidden = hidden.to(through.dtype.element_ty)
    if widens:
        hidden = hidden.to(tl.float32)
    column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    is_column = column < columns
    rows = tl.zeros((block_patches * block_points, block_columns), dtype=tl.float32)
    for first in range(0, joined, block_joined):
        join = first + tl.arange(0, block_joined)
        is_join = join < joined
        place = join[None, :] * lifted + number[:, None]
        matrix = tl.load(through + place, mask=(number < lifted)[:, None] & is_join[None, :], other=0.0)
        if widens:
            matrix = matrix.to(tl.float32)
        place = patch.to(tl.int64)[:, None] * joined + join[None, :]
        own = tl.load(shared + place, mask=is_row[:, None] & is_join[None, :], other=0.0)
        own = tl.maximum(tl.dot(hidden, matrix, input_precision=precision) + own, 0.0)
        place = column[None, :] * joined + join[:, None]
        matrix = tl.load(weight + place, mask=is_join[:, None] & is_column[None, :], other=0.0)
        own = own.to(matrix.dtype)
        if widens:
            own, matrix = own.to(tl.float32), matrix.to(tl.float32)
        rows = tl.dot(own, matrix, rows, input_precision=precision)
    _store_maxima(rows, is_row, bias, result, column, patches, columns, block_patches, block_points)


@torch.no_grad()
def encode(patches: Tensor, layers: MiniPointNet) -> Tensor:
    """Compute `pooled_patches_plain` in evaluation; products are in autocast's dtype or that of the weights."""
    batch, groups, k, channels = patches.shape
    device = patches.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layers.widen.weight.dtype
    with autocast_disabled(patches.device):
        points = patches.reshape(-1, k, channels).float().contiguous()
        (lift, lift_bias), (join, join_bias) = (
            [part.float() for part in folded(*pair)]
            for pair in ((layers.lift, layers.lift_norm), (layers.join, layers.join_norm))
        )
        join_patch, join_point = join.chunk(2, dim=1)
        widen, widen_bias = layers.widen.weight.float(), layers.widen.bias.float()
        through = join_point @ widen  # (joined, lifted): no norm between the two
        join_bias = join_bias + join_point @ widen_bias
        count, lifted, joined = len(points), len(lift), len(join)
        # A tile holds full patches, each filled up to a power of two of points.
        block_points = block(k, 1, 128)
        block_patches = max(1, _ROWS // block_points)
        sizes = {
            "k": k,
            "channels": channels,
            "lifted": lifted,
            "precision": product_precision(),
            "block_patches": block_patches,
            "block_points": block_points,
            "block_channels": block(channels, 16, 64),
            "num_stages": 1,
            "num_warps": 8,
        }
        programs = triton.cdiv(count, block_patches)
        most = points.new_empty(count, len(widen))
        widen = widen.to(dtype).contiguous()
        block_columns = block(len(widen), 16, 64)
        with torch.cuda.device_of(points):
            _first_maximum_kernel[programs, triton.cdiv(len(widen), block_columns)](
                points,
                lift.contiguous(),
                lift_bias,
                widen,
                widen_bias,
                most,
                count,
                columns=len(widen),
                widens=widens(widen),
                block_lifted=32,
                block_columns=block_columns,
                **sizes,
            )
        shared = torch.addmm(join_bias, most, join_patch.T)  # (patches, joined)
        out = layers.out.weight.to(dtype).contiguous()
        tokens = points.new_empty(count, len(out), dtype=dtype)
        block_columns = block(len(out), 16, 128)
        with torch.cuda.device_of(points):
            _second_maximum_kernel[programs, triton.cdiv(len(out), block_columns)](
                points,
                lift.contiguous(),
                lift_bias,
                through.to(dtype).contiguous(),
                shared,
                out,
                layers.out.bias.float(),
                tokens,
                count,
                joined=joined,
                columns=len(out),
                widens=widens(out),
                block_lifted=block(lifted, 16, 256),
                block_joined=32,
                block_columns=block_columns,
                **sizes,
            )
    return tokens.view(batch, groups, -1)
