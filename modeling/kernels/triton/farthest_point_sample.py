"""The loop of farthest point sampling in one launch: one program a cloud, which keeps the cloud in registers.

Indices are those of the plain loop: distances are rounded alike, as no product is fused with a sum, and of equally far
points the first is taken.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_any3d.modeling.kernels.triton.settings import block

# Points of a cloud that fit into the registers of 1024 threads; larger clouds are read again at every step, in parts.
_WHOLE, _PART = 1 << 14, 1 << 13


@triton.jit
def _sample_kernel(
    axes,  # (3, clouds, points)
    nearest,  # (clouds, points), overwritten for clouds in parts
    start,
    index,
    clouds,
    count,
    num_samples,
    is_whole: tl.constexpr,
    block_points: tl.constexpr,
):
    # In 64 bits, as the place of a cloud may lie beyond 2^31.
    cloud = tl.program_id(0).to(tl.int64)
    x = axes + cloud * count
    y = x + clouds.to(tl.int64) * count
    z = y + clouds.to(tl.int64) * count
    nearest += cloud * count
    index += cloud * num_samples
    last = tl.load(start + cloud)
    tl.store(index, last)
    place = tl.arange(0, block_points)
    if is_whole:
        is_point = place < count
        own_x = tl.load(x + place, mask=is_point, other=0.0)
        own_y = tl.load(y + place, mask=is_point, other=0.0)
        own_z = tl.load(z + place, mask=is_point, other=0.0)
        # A place beyond the cloud is never the farthest.
        least = tl.load(nearest + place, mask=is_point, other=float("-inf"))
        for step in range(1, num_samples):
            dx, dy, dz = own_x - tl.load(x + last), own_y - tl.load(y + last), own_z - tl.load(z + last)
            # The order of the plain loop's sum.
            least = tl.minimum(least, dx * dx + dy * dy + dz * dz)
            last = tl.argmax(least, axis=0).to(tl.int64)
            tl.store(index + step, last)
    else:
        for step in range(1, num_samples):
            last_x, last_y, last_z = tl.load(x + last), tl.load(y + last), tl.load(z + last)
            farthest, last = float("-inf"), last * 0
            for first in range(0, count, block_points):
                point = first + place
                is_point = point < count
                dx = tl.load(x + point, mask=is_point, other=0.0) - last_x
                dy = tl.load(y + point, mask=is_point, other=0.0) - last_y
                dz = tl.load(z + point, mask=is_point, other=0.0) - last_z
                least = tl.load(nearest + point, mask=is_point, other=float("-inf"))
                least = tl.minimum(least, dx * dx + dy * dy + dz * dz)
                tl.store(nearest + point, least, mask=is_point)
                value, offset = tl.max(least, axis=0, return_indices=True)
                # Strictly greater: of equal ones, the point of the first part stays.
                last = tl.where(value > farthest, first + offset, last).to(tl.int64)
                farthest = tl.maximum(farthest, value)
            tl.store(index + step, last)


def sample(axes: Tensor, nearest: Tensor, start: Tensor, num_samples: int) -> Tensor:
    """Sample points as `_loop_in_torch` does.

    Args:
        axes: `(3, clouds, points)` float32.
        nearest: `(clouds, points)`, at first infinity, and -1 for points that are never taken; overwritten.
        start: `(clouds,)`, the first samples.
        num_samples: Samples of each cloud.

    Returns:
        Indices `(clouds, num_samples)`.
    """
    clouds, count = nearest.shape
    index = torch.empty(clouds, num_samples, dtype=torch.long, device=axes.device)
    is_whole = count <= _WHOLE
    block_points = block(count, 128, _WHOLE) if is_whole else _PART
    with torch.cuda.device_of(axes):
        _sample_kernel[clouds,](
            axes.contiguous(),
            nearest,
            start,
            index,
            clouds,
            count,
            num_samples,
            is_whole=is_whole,
            block_points=block_points,
            num_warps=block(block_points // 512, 4, 32),
            enable_fp_fusion=False,
        )
    return index
