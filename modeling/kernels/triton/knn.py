"""Search for nearest points, which keeps the best points of each query in registers: no matrix of distances.

Indices are those of the plain search: distances are rounded alike, as no product is fused with a sum, and equally far
points are in the order of their indices. Most parts of a cloud have no point nearer than those already found; they
cost only their distances.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_any3d.modeling.kernels.triton.settings import block

_QUERIES, _POINTS = 8, 128


@triton.jit
def _search_kernel(
    query,  # (clouds, 3, queries)
    points,  # (clouds, 3, points)
    index,
    distance,
    queries,
    count,
    neighbors: tl.constexpr,
    kept: tl.constexpr,
    block_queries: tl.constexpr,
    block_points: tl.constexpr,
):
    blocks = tl.cdiv(queries, block_queries)
    cloud = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * block_queries + tl.arange(0, block_queries)
    is_row = row < queries
    query += cloud * 3 * queries + row
    own_x = tl.load(query, mask=is_row, other=0.0)[:, None]
    own_y = tl.load(query + queries, mask=is_row, other=0.0)[:, None]
    own_z = tl.load(query + 2 * queries, mask=is_row, other=0.0)[:, None]
    points += cloud * 3 * count
    # The bits of a distance, which sort like integers, before those of the index; all inverted, so that the largest
    # keys are the nearest points.
    nothing = -0x7FFFFFFFFFFFFFFF
    best = tl.full((block_queries, kept), nothing, dtype=tl.int64)  # descending
    for first in range(0, count, block_points):
        point = first + tl.arange(0, block_points)
        is_point = point < count
        dx = own_x - tl.load(points + point, mask=is_point, other=0.0)[None, :]
        dy = own_y - tl.load(points + count + point, mask=is_point, other=0.0)[None, :]
        dz = own_z - tl.load(points + 2 * count + point, mask=is_point, other=0.0)[None, :]
        square = dx * dx + dy * dy + dz * dz  # in the order of the plain search
        key = (square.to(tl.int32, bitcast=True).to(tl.int64) << 32) | point.to(tl.int64)[None, :]
        key = tl.where(is_point[None, :], ~key, nothing)
        is_nearer = key > tl.min(best, axis=1)[:, None]
        if tl.max(tl.max(is_nearer.to(tl.int32), axis=1), axis=0) > 0:
            # Of two sorted lists, one of them reversed, the larger ones are the best of both.
            best = tl.maximum(best, tl.flip(tl.topk(key, kept), 1))
            best = tl.bitonic_merge(best, descending=True)
    best = ~best
    rank = tl.arange(0, kept)[None, :]
    place = (cloud * queries + row[:, None]) * neighbors + rank
    is_wanted = is_row[:, None] & (rank < neighbors)
    tl.store(index + place, best & 0xFFFFFFFF, mask=is_wanted)
    tl.store(distance + place, (best >> 32).to(tl.int32).to(tl.float32, bitcast=True), mask=is_wanted)


def search(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k nearest points of every query.

    Args:
        query: `(clouds, queries, 3)` float32.
        points: `(clouds, points, 3)` float32.
        k: Number of neighbors, at most 64.

    Returns:
        Indices `(clouds, queries, k)`, from near to far, and squared distances.
    """
    (clouds, queries, _), count = query.shape, points.shape[1]
    index = torch.empty(clouds, queries, k, dtype=torch.long, device=query.device)
    distance = torch.empty(index.shape, device=query.device)
    with torch.cuda.device_of(query):
        _search_kernel[clouds * triton.cdiv(queries, _QUERIES),](
            query.transpose(1, 2).contiguous(),
            points.transpose(1, 2).contiguous(),
            index,
            distance,
            queries,
            count,
            neighbors=k,
            kept=block(k, 2, 64),
            block_queries=_QUERIES,
            block_points=_POINTS,
            enable_fp_fusion=False,
        )
    return index, distance
