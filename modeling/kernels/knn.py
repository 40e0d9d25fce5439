"""Search for the nearest points of every query."""

import numpy as np
import torch
from torch import Tensor

from hf_any3d.modeling.kernels.coordinates import coordinates, refuse_out_of_range
from hf_any3d.modeling.kernels.dispatch import operator

METHODS = ("auto", "exact", "matmul", "kdtree")
# Distances held at a time: on the CPU as many as fit into the core's cache, elsewhere 64 MiB.
_BLOCK_CPU, _BLOCK = 1 << 17, 1 << 24
# With fewer points per neighbor, a tree costs more than comparing with all points (measured).
_TREE_POINTS_PER_NEIGHBOR = 16


@torch.no_grad()
def knn_plain(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    """Find the k nearest points of every query, by comparing all pairs block by block.

    Args:
        query: `(batch, queries, channels)`, channels >= 3.
        points: `(batch, points, channels)`, channels >= 3.
        k: Number of neighbors, 1 to points.
        method: See `hf_any3d.modeling.point_ops.knn`.

    Returns:
        Indices `(batch, queries, k)`, from near to far, and squared distances in float32.

    Raises:
        ValueError: If an argument has the wrong shape, range or device.
    """
    query, points = checked_search(query, points, k, method)
    index = torch.empty(*query.shape[:2], k, dtype=torch.long, device=points.device)
    distance = torch.empty(index.shape, device=points.device)
    search = _search_by_product if method == "matmul" else _search_exactly
    limit = _BLOCK_CPU if points.device.type == "cpu" else _BLOCK
    batch, queries, _ = query.shape
    count = points.shape[1]
    rows = max(1, min(queries, limit // count))
    clouds = max(1, limit // (rows * count))
    for cloud in range(0, batch, clouds):
        for row in range(0, queries, rows):
            block = slice(cloud, cloud + clouds), slice(row, row + rows)
            distance[block], index[block] = search(query[block], points[block[0]], k)
    return index, distance


@torch.no_grad()
def knn_fused(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    """Compute `knn_plain` with a tree for each cloud; equally far points are in the same order."""
    query, points = checked_search(query, points, k, method)
    index = torch.empty(*query.shape[:2], k, dtype=torch.long)
    distance = torch.empty(index.shape)
    for cloud in range(len(points)):
        distance[cloud], index[cloud] = _search_tree(query[cloud], points[cloud], k)
    return index, distance


def has_many_points(query: Tensor, points: Tensor, k: int, method: str) -> bool:
    """Return whether a tree is requested, or faster."""
    if method != "auto":
        return method == "kdtree"
    return points.dim() == 3 and points.shape[1] >= _TREE_POINTS_PER_NEIGHBOR * k


@operator("knn")
def knn_traced(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    """Search in one operator: compilers can trace neither trees nor checks of values."""
    from hf_any3d.modeling import kernels  # the table, which imports this module

    return kernels.knn(query, points, k, method)


@torch.library.impl("hf_any3d::knn", "Meta")
def _result_shapes(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    index = query.new_empty(*query.shape[:2], k, dtype=torch.long)
    return index, torch.empty_like(index, dtype=torch.float32)


def checked_search(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    """Check the arguments of `knn_plain`; returns the coordinates of queries and points in float32."""
    query, points = (coordinates(*pair).detach().float() for pair in (("query", query), ("points", points)))
    batch, count = points.shape[:2]
    if query.shape[0] != batch:
        raise ValueError(f"query: batch of {query.shape[0]}; expected {batch}, the batch of points")
    if query.device != points.device:
        raise ValueError(f"query: on device {query.device}; expected {points.device}, the device of points")
    if not 1 <= k <= count:
        raise ValueError(f"k: {k}; expected 1 to {count}, the number of points")
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; expected one of {METHODS}")
    if method == "kdtree" and points.device.type != "cpu":
        raise ValueError(f"method: 'kdtree' on device {points.device}; expected points on the CPU")
    for name, value in (("query", query), ("points", points)):
        refuse_out_of_range(name, value)
    return query, points


def _search_exactly(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    difference = query[:, :, None, 0] - points[:, None, :, 0]  # (batch, queries, points)
    distance = difference.square_()
    for axis in (1, 2):
        distance += (query[:, :, None, axis] - points[:, None, :, axis]).square_()
    # The bits of non-negative floats sort like integers. With the index as last bits no two keys are equal, so that
    # ties go to the lowest index, and integers are selected as fast as floats.
    key = distance.view(torch.int32).long() << 32
    key |= torch.arange(points.shape[1], device=points.device)
    key = key.topk(k, dim=-1, largest=False).values  # (batch, queries, k)
    return (key >> 32).int().view(torch.float32), key & 0xFFFFFFFF


def _search_by_product(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # In double precision: small distances are differences of large norms. TF32 does not round it.
    query = query.double()
    points = points.double()
    # The query's norm is the same for all neighbors and does not change their order.
    score = torch.baddbmm(points.square().sum(-1)[:, None], query, points.transpose(1, 2), alpha=-2)
    score, index = score.topk(k, dim=-1, largest=False)  # (batch, queries, k)
    # Rounding may leave squares of equal points slightly below 0.
    return (score + query.square().sum(-1, keepdim=True)).clamp_(min=0).float(), index


def _search_tree(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from scipy.spatial import cKDTree  # here, since a model that looks for no neighbors needs no scipy

    count = len(points)
    tree = cKDTree(points.numpy(), balanced_tree=False, compact_nodes=False)
    # One more neighbor than requested shows whether there is a tie for the last place.
    ranks = np.arange(1, min(k + 1, count) + 1)
    distance, index = tree.query(query.numpy(), ranks, workers=torch.get_num_threads())
    equal = distance[:, 1:] == distance[:, :-1]
    distance = torch.from_numpy(distance[:, :k]).square().float()
    index = torch.from_numpy(index[:, :k])
    # The tree returns equally far points in any order, and an arbitrary one of them last.
    tied = torch.from_numpy(np.flatnonzero(equal.any(axis=1)))
    for rows in tied.split(max(1, _BLOCK_CPU // count)) if len(tied) else ():
        exact = _search_exactly(query[None, rows], points[None], k)
        distance[rows], index[rows] = exact[0][0], exact[1][0]
    return distance, index
