"""Nearest neighbours of query points."""

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

METHODS = ("auto", "exact", "matmul", "kdtree")
# Numbers in one block of the distance matrix: 64 MiB of float32.
_BLOCK = 1 << 24


@torch.no_grad()
def knn(
    query: Tensor, points: Tensor, k: int, *, method: str = "auto", return_distances: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Find the k nearest points of every query, sorted from near to far.

    Args:
        query: (batch, queries, channels), channels >= 3; only x, y, z count.
        points: (batch, points, channels), channels >= 3.
        k: how many neighbours, 1 to points. A query that is itself one of the points is its own first neighbour.
        method: "exact" squares the coordinate differences in float32; "matmul" expands the square into one matrix
            product, which may swap neighbours whose distances nearly agree; "kdtree" searches a tree in float64, on
            CPU only; "auto" takes the tree on CPU and "exact" elsewhere.
        return_distances: also return the squared distances.

    Returns:
        (batch, queries, k) LongTensor, and with `return_distances` the squared distances (batch, queries, k).

    Raises:
        ValueError: if an argument has the wrong shape, range or device.
    """
    for name, value in (("query", query), ("points", points)):
        if value.dim() != 3 or value.shape[2] < 3:
            raise ValueError(f"{name}: shape {tuple(value.shape)}; expected (batch, rows, channels >= 3)")
        if not value.is_floating_point():
            raise ValueError(f"{name}: dtype {value.dtype}; expected a floating point dtype")
    if query.shape[0] != points.shape[0]:
        raise ValueError(f"query: batch of {query.shape[0]}; expected {points.shape[0]}, the batch of points")
    if not 1 <= k <= points.shape[1]:
        raise ValueError(f"k: {k}; expected 1 to {points.shape[1]}, the number of points")
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; expected one of {METHODS}")
    on_cpu = points.device.type == "cpu"
    if method == "kdtree" and not on_cpu:
        raise ValueError(f"method: 'kdtree' with points on {points.device}; expected points on the CPU")
    if method == "auto":
        method = "kdtree" if on_cpu else "exact"
    query, points = query[..., :3].detach().float(), points[..., :3].detach().float()

    search = {"exact": _search_exact, "matmul": _search_matmul, "kdtree": _search_tree}[method]
    distance, index = search(query, points, k)
    return (index, distance) if return_distances else index


def _search_exact(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    axes = points.permute(2, 0, 1)[:, :, None].contiguous()  # (3, batch, 1, points)
    found = []
    for block in query.split(_rows(points), dim=1):
        distance = (block[:, :, 0, None] - axes[0]).square_()  # (batch, rows, points)
        for axis in (1, 2):
            distance += (block[:, :, axis, None] - axes[axis]).square_()
        found.append(distance.topk(k, dim=-1, largest=False))
    return _join(found)


def _search_matmul(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    norm = points.square().sum(-1)[:, None]  # (batch, 1, points)
    found = []
    for block in query.split(_rows(points), dim=1):
        # The query's own norm is the same for all of its neighbours: it cannot change their order.
        score = torch.baddbmm(norm, block, points.transpose(1, 2), alpha=-2)  # (batch, rows, points)
        distance, index = score.topk(k, dim=-1, largest=False)
        found.append((distance.add_(block.square().sum(-1, keepdim=True)).clamp_(min=0), index))
    return _join(found)


def _search_tree(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*query.shape[:2], k)
    distance, index = np.empty(shape, np.float32), np.empty(shape, np.int64)
    for row, (cloud_query, cloud) in enumerate(zip(query.numpy(), points.numpy(), strict=True)):
        # A list of ranks keeps the last axis also for k = 1.
        found = cKDTree(cloud, balanced_tree=False, compact_nodes=False).query(cloud_query, list(range(1, k + 1)))
        distance[row], index[row] = np.square(found[0]), found[1]
    return torch.from_numpy(distance), torch.from_numpy(index)


def _rows(points: Tensor) -> int:
    return max(1, _BLOCK // max(1, points.shape[0] * points.shape[1]))


def _join(found: list) -> tuple[Tensor, Tensor]:
    return torch.cat([part[0] for part in found], dim=1), torch.cat([part[1] for part in found], dim=1)
