"""Search for the nearest points of every query."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from hf_any3d.modeling.kernels.coordinates import coordinates, refuse_out_of_range
from hf_any3d.modeling.kernels.dispatch import operator

METHODS = ("auto", "exact", "matmul", "kdtree")
# Distances held at a time: on the CPU as many as fit into the core's cache, elsewhere 64 MiB.
_BLOCK_CPU, _BLOCK = 1 << 18, 1 << 24
# With fewer points per neighbor, a tree costs more than groups of points (measured).
_TREE_POINTS_PER_NEIGHBOR = 48
_LOW = 0xFFFFFFFF  # of a key, the bits of the index


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
    search = _search_by_product if method == "matmul" else _search_exactly
    return _in_blocks(search, query, points, k)


@torch.no_grad()
def knn_fused(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    """Compute `knn_plain` with a tree for each cloud or in groups of points; ties are in the same order."""
    query, points = checked_search(query, points, k, method)
    if method != "kdtree" and (method == "exact" or points.shape[1] < _TREE_POINTS_PER_NEIGHBOR * k):
        return _in_blocks(_search_groups, query, points, k)
    index = torch.empty(*query.shape[:2], k, dtype=torch.long)
    distance = torch.empty(index.shape)
    for cloud in range(len(points)):
        distance[cloud], index[cloud] = _search_tree(query[cloud], points[cloud], k)
    return index, distance


def compares_exactly(query: Tensor, points: Tensor, k: int, method: str) -> bool:
    """Return whether distances are those of coordinates, not of a product."""
    return method != "matmul"


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


def _in_blocks(
    search: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]], query: Tensor, points: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    index = torch.empty(*query.shape[:2], k, dtype=torch.long, device=points.device)
    distance = torch.empty(index.shape, device=points.device)
    limit = _BLOCK_CPU if points.device.type == "cpu" else _BLOCK
    (batch, queries, _), count = query.shape, points.shape[1]
    rows = max(1, min(queries, limit // count))
    clouds = max(1, limit // (rows * count))
    for cloud in range(0, batch, clouds):
        for row in range(0, queries, rows):
            block = slice(cloud, cloud + clouds), slice(row, row + rows)
            distance[block], index[block] = search(query[block], points[block[0]], k)
    return index, distance


def _search_exactly(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distance = _distances(query, points.transpose(1, 2))
    key = _keys(distance, torch.arange(points.shape[1], device=points.device))
    return _of_keys(key.topk(k, largest=False).values)


def _search_groups(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sort the points of k groups alone: those whose nearest points are nearest have the k nearest ones."""
    count = points.shape[1]
    # About as many groups as candidates; powers of two are fastest.
    size = 1 << (math.isqrt(count // k).bit_length() - 1)
    number = -(-count // size)
    # Groups are consecutive points, so that of equal ones the first group has the lowest index; the last is filled up.
    axes = nn.functional.pad(points.transpose(1, 2), (0, number * size - count), value=math.inf)
    axes = axes.unflatten(2, (number, size)).transpose(2, 3).flatten(2)  # (batch, 3, size * groups)
    distance = _distances(query, axes).unflatten(2, (size, number))  # (batch, queries, size, groups)
    # numpy sorts with the processor's vectors.
    nearest = _keys(distance.amin(dim=2), torch.arange(number))
    nearest.numpy().sort(axis=-1)
    group = (nearest[..., :k] & _LOW).unsqueeze(2)  # (batch, queries, 1, k)
    candidates = distance.gather(3, group.expand(-1, -1, size, -1))
    key = _keys(candidates, group * size + torch.arange(size).unsqueeze(1)).flatten(2)
    key.numpy().sort(axis=-1)
    return _of_keys(key[..., :k])


def _distances(query: Tensor, axes: Tensor) -> Tensor:
    """Return squared distances `(batch, queries, points)` to points `(batch, 3, points)`."""
    distance = (query[:, :, None, 0] - axes[:, None, 0]).square_()
    offset = torch.empty_like(distance)
    for axis in (1, 2):
        distance += torch.sub(query[:, :, None, axis], axes[:, None, axis], out=offset).square_()
    return distance


def _keys(distance: Tensor, index: Tensor) -> Tensor:
    # The bits of non-negative floats sort like integers. With the index as last bits, ties go to the lowest index.
    return distance.view(torch.int32).long().bitwise_left_shift_(32).add_(index)


def _of_keys(key: Tensor) -> tuple[Tensor, Tensor]:
    return (key >> 32).int().view(torch.float32), key & _LOW


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
        exact = _search_groups(query[None, rows], points[None], k)
        distance[rows], index[rows] = exact[0][0], exact[1][0]
    return distance, index
