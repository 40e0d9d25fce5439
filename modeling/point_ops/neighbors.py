"""Nearest neighbours of query points."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from hf_any3d.modeling.point_ops.grouping import group, refuse_out_of_range

METHODS = ("auto", "exact", "matmul", "kdtree")
# Distances held at a time: on CPU as many as the core's cache keeps, elsewhere 64 MiB of them.
_BLOCK_CPU, _BLOCK = 1 << 17, 1 << 24
# With fewer points for each neighbour a tree costs more than comparing with all points (measured).
_TREE_POINTS_PER_NEIGHBOR = 16


@torch.no_grad()
def knn(
    query: Tensor, points: Tensor, k: int, *, method: str = "auto", return_distances: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Find the k nearest points of every query, sorted from near to far.

    Equally far points come in the order of their indices, except with "matmul", whose rounding hides what is equal.
    Memory stays bounded for any number of queries.

    Args:
        query: (batch, queries, channels), channels >= 3; only x, y, z count. Other precisions are read as float32.
        points: (batch, points, channels), channels >= 3.
        k: how many neighbours, 1 to points. A query that is itself one of the points is its own first neighbour.
        method: "exact" squares the coordinate differences; "matmul" expands the square into a matrix product, which
            may swap neighbours whose distances nearly agree; "kdtree" searches a tree, on CPU only; "auto" takes the
            tree on CPU if there are many points for each neighbour, else "exact".
        return_distances: also return the squared distances.

    Returns:
        (batch, queries, k) LongTensor, and with `return_distances` the squared distances, (batch, queries, k) float32.

    Raises:
        ValueError: if an argument has the wrong shape, range or device, or if a coordinate is NaN, infinite or
            beyond `LARGEST_COORDINATE`.
    """
    if torch.compiler.is_compiling():
        index, distance = _search_uncompiled(query, points, k, method)
        return (index, distance) if return_distances else index
    query, points = _coordinates("query", query), _coordinates("points", points)
    batch, count = points.shape[:2]
    if query.shape[0] != batch:
        raise ValueError(f"query: batch of {query.shape[0]}; expected {batch}, the batch of points")
    if query.device != points.device:
        raise ValueError(f"query: on device {query.device}; expected {points.device}, the device of points")
    if not 1 <= k <= count:
        raise ValueError(f"k: {k}; expected 1 to {count}, the number of points")
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; expected one of {METHODS}")
    for name, value in (("query", query), ("points", points)):
        refuse_out_of_range(name, value)
    on_cpu = points.device.type == "cpu"
    if method == "kdtree" and not on_cpu:
        raise ValueError(f"method: 'kdtree' on device {points.device}; expected points on the CPU")
    if method == "auto":
        method = "kdtree" if on_cpu and count >= _TREE_POINTS_PER_NEIGHBOR * k else "exact"

    index = torch.empty(batch, query.shape[1], k, dtype=torch.long, device=points.device)
    distance = torch.empty(index.shape, device=points.device)
    if method == "kdtree":
        for cloud in range(batch):
            distance[cloud], index[cloud] = _search_tree(query[cloud], points[cloud], k)
    else:
        search = _search_exact if method == "exact" else _search_matmul
        for block in _blocks(batch, query.shape[1], count, _BLOCK_CPU if on_cpu else _BLOCK):
            distance[block], index[block] = search(query[block], points[block[0]], k)
    return (index, distance) if return_distances else index


# A tree of scipy, and checks of values: a compiler is shown one operator.
@torch.library.custom_op("hf_any3d::knn", mutates_args=())
def _search_uncompiled(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    return knn(query, points, k, method=method, return_distances=True)


@_search_uncompiled.register_fake
def _shape_of_search(query: Tensor, points: Tensor, k: int, method: str) -> tuple[Tensor, Tensor]:
    index = query.new_empty(*query.shape[:2], k, dtype=torch.long)
    return index, torch.empty_like(index, dtype=torch.float32)


def _coordinates(name: str, value: Tensor) -> Tensor:
    if value.dim() != 3 or value.shape[2] < 3:
        raise ValueError(f"{name}: shape {tuple(value.shape)}; expected (batch, {name}, channels) with channels >= 3")
    if not value.is_floating_point():
        raise ValueError(f"{name}: dtype {value.dtype}; expected a floating point dtype")
    return value[..., :3].detach().float()


def _blocks(batch: int, queries: int, count: int, limit: int) -> Iterator[tuple[slice, slice]]:
    rows = max(1, min(queries, limit // count))
    clouds = max(1, limit // (rows * count))
    for cloud in range(0, batch, clouds):
        for row in range(0, queries, rows):
            yield slice(cloud, cloud + clouds), slice(row, row + rows)


def _search_exact(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    difference = query[:, :, None, 0] - points[:, None, :, 0]  # (batch, queries, points)
    distance = difference.square_()
    for axis in (1, 2):
        distance += (query[:, :, None, axis] - points[:, None, :, axis]).square_()
    # The bits of floats that are not negative sort as integers do. With the index behind them no two keys are equal,
    # so that ties are settled, and integers are no slower to select than floats.
    key = distance.view(torch.int32).long() << 32
    key |= torch.arange(points.shape[1], device=points.device)
    key = key.topk(k, dim=-1, largest=False).values  # (batch, queries, k)
    return (key >> 32).int().view(torch.float32), key & 0xFFFFFFFF


def _search_matmul(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # In double precision: small distances are differences of large norms, and autocast and TF32 leave it alone.
    query, points = query.double(), points.double()
    # A query's own norm is the same for all of its neighbours: it cannot change their order.
    score = torch.baddbmm(points.square().sum(-1)[:, None], query, points.transpose(1, 2), alpha=-2)
    score, index = score.topk(k, dim=-1, largest=False)  # (batch, queries, k)
    return (score + query.square().sum(-1, keepdim=True)).clamp_(min=0).float(), index


def _search_tree(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    count = len(points)
    tree = cKDTree(points.numpy(), balanced_tree=False, compact_nodes=False)
    # One neighbour more than asked for tells whether the last place is contested.
    ranks = np.arange(1, min(k + 1, count) + 1)
    distance, index = tree.query(query.numpy(), ranks, workers=torch.get_num_threads())
    equal = distance[:, 1:] == distance[:, :-1]
    distance, index = torch.from_numpy(distance[:, :k]).square().float(), torch.from_numpy(index[:, :k])
    # The tree returns equally far points in any order, and any of them in the last place.
    tied = torch.from_numpy(np.flatnonzero(equal.any(axis=1)))
    for rows in tied.split(max(1, _BLOCK_CPU // count)) if len(tied) else ():
        exact = _search_exact(query[None, rows], points[None], k)
        distance[rows], index[rows] = exact[0][0], exact[1][0]
    return distance, index


def three_nearest_interpolate(query: Tensor, points: Tensor, features: Tensor, eps: float = 1e-8) -> Tensor:
    """Blend the features of the three nearest points at every query.

    The weights are the inverse squared distances, normalised to sum 1; they carry no gradient. In a cloud of fewer
    than three points all of them take part. Sums are float32 or better, under autocast too.

    Args:
        query: (batch, queries, channels), channels >= 3; only x, y, z count.
        points: (batch, points, channels), channels >= 3.
        features: (batch, points, width) of `points`.
        eps: added to the squared distances, so that a query upon a point takes that point's features.

    Returns:
        (batch, queries, width), differentiable in `features`.

    Raises:
        ValueError: if the shapes do not fit together.

    Source: PointNet++, Eq. 2.
    """
    if features.dim() != 3 or features.shape[:2] != points.shape[:2]:
        raise ValueError(
            f"features: shape {tuple(features.shape)}; expected ({', '.join(map(str, points.shape[:2]))}, width)"
        )
    index, distance = knn(query, points, min(3, points.shape[1]), return_distances=True)
    weight = 1 / (distance + eps)  # (batch, queries, 3)
    weight = weight / weight.sum(dim=2, keepdim=True)
    # Not a matrix product, which autocast and TF32 would round; places are blended here, too. It is also slower.
    blended = (weight.unsqueeze(-1) * group(features, index)).sum(dim=2)  # (batch, queries, width)
    return blended.to(features.dtype)
